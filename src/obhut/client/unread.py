"""Libraries are told where there is no value to read.

PyTorch has a flag for it: while ``torch.compile`` or ``torch.export`` traces a model,
``torch.compiler.is_compiling()`` is true, and a library does without its shortcuts that
depend on values, such as ``if mask.all()``. Behind a guard no value can be read either.

Rules:

- It is so while a sent module runs at a guarded worker, and nowhere else: optimizers
  and local code keep their ways.
- As in PyTorch the flag is the process's; it goes down when the last thread is through.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.compiler

_lock = threading.Lock()
_inside = 0
_before = False


@contextmanager
def values_unread() -> Iterator[None]:
    """Let ``torch.compiler.is_compiling()`` be true meanwhile."""
    global _inside, _before  # noqa: PLW0603 # as PyTorch's flag is
    with _lock:
        if not _inside:
            _before = torch.compiler._is_compiling_flag
        _inside += 1
        torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.compiler._is_compiling_flag = _before
