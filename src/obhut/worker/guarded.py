"""What both executions of an owner's session must know of an operator.

::

    how = guarded("aten.lstm.input")             # OpNotAdmittedError, or what is known
    how.check_arguments(args, kwargs)            # CallError, or nothing

Rule: a check looks at sizes, dtypes and numbers, never at values. Low tells its words,
and high is kept from kernels that would trust their arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from obhut.errors import CallError
from obhut.ops.table import Kind, admitted

from .argument_checks import CHECKS

# Any below: operators take and return whatever their schema says.


class Guarded:
    """One operator that the op table admits behind a guard.

    Attributes:
        names: its arguments' names, in order.
        written: names of the arguments that it changes.
        holds: whether its results are new objects.
    """

    __slots__ = ("_check", "holds", "names", "written")

    def __init__(self, name: str) -> None:
        row = admitted(name, guarded=True)
        namespace, packet, overload = name.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        arguments = found._schema.arguments
        self.names = tuple(a.name for a in arguments)
        self.written = tuple(
            a.name for a in arguments if a.alias_info and a.alias_info.is_write
        )
        self.holds = row.kind not in (Kind.INPLACE, Kind.OUT, Kind.VALUE)
        self._check = CHECKS.get(name)

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Check what its kernel would trust, if it has a check.

        Raises:
            CallError: if it does not hold, or can't be checked.
        """
        if self._check is None:
            return
        try:
            self._check(self.bind(args, kwargs))
        except CallError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise CallError("behind a guard expected other arguments") from error

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


@functools.cache
def guarded(name: str) -> Guarded:
    """Return what is known of the operator of that name.

    Raises:
        OpNotAdmittedError: if the op table does not admit it behind a guard.
    """
    return Guarded(name)
