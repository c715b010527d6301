"""Functions of PyTorch's that make tensors of their own while they run.

Their code, in Python or in C++, makes what they need from nothing: random samples,
indices, a scalar. It must be made where their arguments are.

Rules:

- While such a function runs, an operator that takes no tensor runs at the worker.
- What a function written in Python calls does not ask the remote tensor first, as
  a call from outside would; there, composites that have a row in the op table
  arrive undecomposed, and travel whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .dispatch import dispatch
from .routes import decompose, is_admitted, is_composite
from .session import Session

# Any below: what PyTorch's own functions take and return.


class Factories(TorchDispatchMode):
    """While entered, operators that take no tensor run at a worker.

    Args:
        cls: the class of remote tensors.
        session: with the worker.
    """

    def __init__(self, cls: type[torch.Tensor], session: Session) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # PyTorch's own
        self._cls = cls
        self._session = session

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Send a factory; let other operators be."""
        named = kwargs or {}
        if any(isinstance(x, torch.Tensor) for x in pytree.tree_leaves((args, named))):
            if is_admitted(func) or not is_composite(func):
                return func(*args, **named)
            with self:
                return decompose(func, args, named)
        return dispatch(self._cls, func, args, named, self._session)


@contextmanager
def inside(
    function: Callable[..., Any], cls: type[torch.Tensor], session: Session
) -> Iterator[None]:
    """Let the body of one of PyTorch's functions run as if at a worker.

    Args:
        function: the function; what it calls of Python's no remote tensor sees.
        cls: the class of remote tensors.
        session: with the worker.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(function, FunctionType):
            stack.enter_context(torch._C._AutoDispatchBelowAutograd())
        stack.enter_context(Factories(cls, session))
        yield


def undivided(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a function whose composites arrive at the remote tensor undecomposed."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch._C._disabled_torch_function_impl(function, (), args, kwargs)


MAKERS: Sequence[Callable[..., Any]] = (
    F.ctc_loss,
    F.embedding_bag,
    F.fractional_max_pool2d,
    F.fractional_max_pool2d_with_indices,
    F.fractional_max_pool3d,
    F.fractional_max_pool3d_with_indices,
    F.multi_head_attention_forward,
    torch._C._nn.one_hot,
    torch._C._nn.pad_sequence,
    torch.combinations,
    torch.linalg.matrix_rank,
    torch.nanquantile,
    torch.pca_lowrank,
    torch.quantile,
    torch.svd_lowrank,
    torch.vander,
    torch.Tensor.nanquantile,
    torch.Tensor.quantile,
)
"""The functions whose bodies need it."""

UNDIVIDED: Sequence[Callable[..., Any]] = (
    F.batch_norm,
    F.instance_norm,
    torch.batch_norm,
    torch.instance_norm,
)
"""The functions whose composites travel whole, under autocast too, which lets them be.

What their kernels return beside the result has sizes that only the kernels know, and
that no caller sees: nobody has to ask for them, and a guard needs to know none.
"""
