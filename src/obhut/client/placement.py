"""``with worker:`` makes factory functions create their tensors there.

Rules:

- Only functions that make tensors from none are placed; all else is left alone.
- The innermost ``with`` decides.
- Data that is written in the program (``torch.tensor([1, 2])``) is made here and
  sent: it is the requester's own.
- What PyTorch makes to load rows, or of lengths of sequences, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from .bodies import Factories
from .call_site import works_here
from .data import is_remote, tensor_at
from .remote_tensor import RemoteTensor, send
from .session import Session

# Any below: what PyTorch's own functions take and return.

_FROM_DATA = frozenset(
    (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)
)
_PLACED = frozenset(_device_constructors()) | _FROM_DATA


class Placement(TorchFunctionMode):
    """While entered, factory functions create at one worker.

    Args:
        session: with the worker.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def enter(self) -> None:
        """Begin to place."""
        self.__enter__()  # type: ignore[no-untyped-call] # PyTorch's own

    def leave(self) -> None:
        """Place no more. Duty: leave in the reverse order of entering."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call] # likewise

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Place what a factory function makes; leave other functions alone."""
        named = dict(kwargs or {})
        if func not in _PLACED or works_here(RemoteTensor):
            return func(*args, **named)
        # The outer placements would take the call for theirs.
        with torch._C.DisableTorchFunction():
            tracked = bool(named.pop("requires_grad", False))
            data = args[0] if args else None
            if isinstance(data, list | tuple) and is_remote(RemoteTensor, data):
                placed = tensor_at(RemoteTensor, self.session, data, named.get("dtype"))
            elif func in _FROM_DATA:
                made = func(*args, **named)
                placed = (
                    made if isinstance(made, RemoteTensor) else send(made, self.session)
                )
            else:
                with Factories(RemoteTensor, self.session):
                    placed = func(*args, **named)
        return placed.requires_grad_() if tracked else placed
