"""An aggregator that computes each operator when it is asked for, as torch does.

What may leave is decided as ever, on coefficients; the values that leave are those of
the expression, with what floating point lost on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from obhut.guard.policy import Quorum
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    Alias,
    AnyAnswer,
    AnyRequest,
    Fetch,
    Fetched,
    Inline,
    Put,
    ReadData,
    Ref,
    Run,
    Symbol,
    TensorData,
)
from obhut.worker.aggregation import Wanted
from obhut.worker.executor import operator
from obhut.worker.tensors import DTYPE_NAMES, SYMBOLS, from_frame, to_frame

from .tapped import Tapped

# Any below: operators take whatever their schema says.


class EagerAggregation(Tapped):
    """Applies one session's requests at an aggregator, with values beside the sums.

    Args:
        args: as for ``Tapped``.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._values: dict[int, torch.Tensor] = {}
        self._asked: dict[int, int] = {}

    def deliver(
        self,
        ids: Sequence[int],
        sender: str,
        tensors: Sequence[torch.Tensor],
        policy: Quorum | None,
        spoilt: bool = False,
        digests: Sequence[bytes] = (),
    ) -> None:
        """Hold what an owner delivered."""
        super().deliver(ids, sender, tensors, policy, spoilt, digests)
        self._values.update(zip(ids, tensors, strict=True))

    def put(self, request: Put, tensor: torch.Tensor) -> None:
        """Hold what the requester sent."""
        super().put(request, tensor)
        self._values[request.out] = tensor

    def apply(self, request: AnyRequest, index: int) -> AnyAnswer | None:
        """Apply a request, with values."""
        answer = super().apply(request, index)
        match request:
            case Run(op=op, args=args, kwargs=kwargs, out=out):
                values = [self._value(one) for one in args]
                named: Mapping[str, Any] = {
                    k: self._value(v) for k, v in kwargs.items()
                }
                with torch.no_grad():
                    self._values[out] = operator(op).call(*values, **named)
            case ReadData(id=id, out=out) | Alias(id=id, out=out):
                self._values[out] = self._values[id]
            case _:
                pass
        return answer

    def ask(self, request: Fetch, index: int) -> Wanted:
        """Return what the guard must be asked before a value leaves."""
        asked = super().ask(request, index)
        self._asked[id(asked.sum)] = request.id
        return asked

    def release(
        self, asked: Wanted, index: int, frame: int
    ) -> tuple[Fetched, Frame, frozenset[str]]:
        """Return a value that may leave: that of the expression."""
        *_, bad = super().release(asked, index, frame)
        values = self._values[self._asked[id(asked.sum)]]
        data = TensorData(DTYPE_NAMES[values.dtype], tuple(values.shape), frame)
        return Fetched(index, data), to_frame(values), bad

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, Ref):
            return self._values[argument.id]
        if isinstance(argument, list):
            return [self._value(one) for one in argument]
        if isinstance(argument, Symbol):
            return SYMBOLS[argument.name]
        if isinstance(argument, Inline):
            return from_frame(argument.data, argument.dtype, argument.shape)
        return argument
