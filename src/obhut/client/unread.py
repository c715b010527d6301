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
from collections.abc import Iterator
from contextlib import contextmanager

import torch.compiler
from torch.distributions import Distribution

_lock = threading.Lock()
_inside = 0
_before = (False, True)


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
