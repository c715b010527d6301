"""Where in the caller's code a request came from.

A failure at a worker shows when a value is asked for, which may be long after
the line that caused it; the session remembers that line for each request.
"""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import NamedTuple

import torch

_INTERNAL_FOLDERS = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.dirname(os.path.abspath(torch.__file__)) + os.sep,
)
_CALLERS = tuple(_INTERNAL_FOLDERS[0] + name + os.sep for name in ("cli", "testing"))

_LOADING = os.path.join(_INTERNAL_FOLDERS[1], "utils", "data", "")
_PACKING = os.path.join(_INTERNAL_FOLDERS[1], "nn", "utils", "rnn.py")
_RUNNING = os.path.join(_INTERNAL_FOLDERS[0], "client", "modules.py")
"""Where rows are loaded, sequences packed, and a sent module enters its worker."""

_internal: dict[str, bool] = {}

_APPLY: CodeType = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined] # a classmethod's function


class CallSite(NamedTuple):
    """A line of code.

    Attributes:
        file: the file's name, or what a notebook calls its cell.
        line: the line's number, from 1.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def _is_internal(file: str) -> bool:
    known = file.startswith(_INTERNAL_FOLDERS) and not file.startswith(_CALLERS)
    _internal[file] = known
    return known


def current_call_site() -> CallSite | None:
    """Return the innermost line that is neither PyTorch's nor obhut's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        known = _internal.get(file)
        if known is None:
            known = _is_internal(file)
        if not known:
            return CallSite(file, frame.f_lineno)
        frame = frame.f_back
    return None


def raised_at(error: BaseException) -> CallSite | None:
    """Return the innermost line that an error came by, and is the user's."""
    found: CallSite | None = None
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        known = _internal.get(file)
        if not (_is_internal(file) if known is None else known):
            found = CallSite(file, trace.tb_lineno)
        trace = trace.tb_next
    return found


def works_here(cls: type[torch.Tensor]) -> bool:
    """Tell whether PyTorch calls for what is here: rows to load, lengths of sequences.

    What a data set does to load a row counts, but not what a sent module does for it.

    Args:
        cls: the class of remote tensors.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_LOADING):
            return True
        if file == _PACKING:
            named = (frame.f_locals.get(name) for name in ("lengths", "permutation"))
            return not any(isinstance(value, cls) for value in named)
        if file == _RUNNING:
            return False
        frame = frame.f_back
    return False


def custom_function() -> type | None:
    """Return whose ``torch.autograd.Function.apply`` the caller is inside, if any."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _APPLY:
            function: type = frame.f_locals["cls"]
            return function
        frame = frame.f_back
    return None
