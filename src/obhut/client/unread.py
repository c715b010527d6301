"""Libraries are told where there is no value to read.

PyTorch has a flag for it: while ``torch.compile`` or ``torch.export`` traces a model,
``torch.compiler.is_compiling()`` is true, and a library does without its shortcuts that
depend on values, such as ``if mask.all()``. Behind a guard no value can be read either;
nor can ``torch.distributions`` check its arguments.

Rules:

- It is so while a sent module runs at a guarded worker, and nowhere else: optimizers
  and local code keep their ways.
- As in PyTorch the flags are the process's; they are as they were when the last thread
  is through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.compiler
from torch.distributions import Distribution

from .masks import BY_MASKS
from .session import Session

_lock = threading.Lock()
_inside = 0
_before = (False, True)


# Any: what a module's own code takes and returns.
def run(
    forward: Callable[..., Any],
    session: Session,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Run the ``forward`` of a module that is at a worker.

    Args:
        forward: the module's, bound to it.
        session: with the worker.
        args: what it is called with.
        kwargs: likewise.
    """
    guarded = session.guarded()
    by_masks = BY_MASKS.get(getattr(forward, "__func__", forward))
    with values_unread() if guarded else nullcontext():
        if by_masks is not None:
            return by_masks(forward, guarded, *args, **kwargs)
        return forward(*args, **kwargs)


@contextmanager
def values_unread() -> Iterator[None]:
    """Let ``torch.compiler.is_compiling()`` be true meanwhile."""
    global _inside, _before  # noqa: PLW0603 # as PyTorch's flags are
    with _lock:
        if not _inside:
            _before = _flags()
            _set(True, False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(*_before)


def _flags() -> tuple[bool, bool]:
    return torch.compiler._is_compiling_flag, Distribution._validate_args


def _set(compiling: bool, validates: bool) -> None:
    torch.compiler._is_compiling_flag = compiling
    Distribution.set_default_validate_args(validates)
