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
from obhut.ops.table import Flag, Kind, admitted

from .argument_checks import CHECKS

# Any below: operators take and return whatever their schema says.


class Guarded:
    """One operator that the op table admits behind a guard.

    Attributes:
        names: its arguments' names, in order.
        written: names of the arguments that it changes.
        unseen: whether it changes them without autograd's notice.
        holds: whether its results are new objects.
    """

    __slots__ = (
        "_check",
        "_rate",
        "_trains",
        "_written",
        "holds",
        "names",
        "random",
        "unseen",
        "written",
    )

    def __init__(self, name: str) -> None:
        row = admitted(name, guarded=True)
        namespace, packet, overload = name.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        self.names = tuple(a.name for a in found._schema.arguments)
        self._written, said = written(found._schema)
        hidden = [name for name in self.names if name in _STATISTICS]
        self.written = tuple(name for _, name in self._written)
        self._trains = next((name for name in self.names if name in _TRAINING), "")
        if said:
            self._trains = ""  # it changes what its schema says, whatever it does
        self.unseen = bool(hidden) or packet.startswith(_UNCOUNTED)
        self.random = (
            Flag.RANDOM in row.flags or torch.Tag.nondeterministic_seeded in found.tags
        )
        self._rate = _RATES.get(packet, "")
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

    def changed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Sequence[tuple[int, Any]]:
        """Return the arguments that a call changes, each with its position.

        They may be tensors, or what a request has for them.
        """
        if self._trains and self.bind(args, kwargs).get(self._trains) is False:
            return ()
        return [
            (at, args[at] if at < len(args) else kwargs.get(name))
            for at, name in self._written
        ]

    def draws(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Tell whether a call draws random numbers."""
        if not self.random:
            return False
        given = self.bind(args, kwargs)
        still = (given.get(name) is False for name in _TRAINING)
        idle = any(still) or given.get(self._rate, 0.0) == 0.0
        return not (self._rate and idle)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


# Any: a schema is untyped.
def written(schema: Any) -> tuple[Sequence[tuple[int, str]], bool]:
    """Return which arguments an operator changes, and whether its schema says of any.

    Returns:
        Of each its position and its name, first those that the schema says.
    """
    names = [one.name for one in schema.arguments]
    said = [
        one.name
        for one in schema.arguments
        if one.alias_info and one.alias_info.is_write
    ]
    hidden = [name for name in names if name in _STATISTICS]
    found = dict.fromkeys((*said, *hidden))
    return tuple((names.index(name), name) for name in found), bool(said)


_STATISTICS = frozenset(("running_mean", "running_var"))
"""Arguments that normalisations change in training, though schemas don't say so."""

_TRAINING = frozenset(("train", "training", "use_input_stats"))
"""Arguments without which an operator neither changes statistics nor drops anything."""

_UNCOUNTED = ("_fused_", "_amp_")
"""How operators begin whose kernels don't count what they write."""

_RATES: Mapping[str, str] = {
    **dict.fromkeys(("alpha_dropout", "dropout", "feature_alpha_dropout"), "p"),
    **dict.fromkeys(("feature_dropout",), "p"),
    **dict.fromkeys(("gru", "lstm", "rnn_relu", "rnn_tanh"), "dropout"),
    "scaled_dot_product_attention": "dropout_p",
}
"""Operators that draw nothing at a rate of 0, or unless they train, and its name."""


@functools.cache
def guarded(name: str) -> Guarded:
    """Return what is known of the operator of that name.

    Raises:
        OpNotAdmittedError: if the op table does not admit it behind a guard.
    """
    return Guarded(name)
