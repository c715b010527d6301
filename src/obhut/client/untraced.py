"""Code that ``torch.compile`` leaves alone.

A compiled function with remote tensors runs uncompiled: a worker runs operators one by
one. Without this, PyTorch's compiler would trace its way through this package first.

Rule: nothing here loads the compiler, which takes longer than all of obhut.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

from torch._C._dynamo import eval_frame

# Any: a function or a class of whatever kind.
Code = TypeVar("Code", bound=Callable[..., Any])

_SKIP = eval_frame._FrameExecStrategy(
    eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP
)
"""Neither the frame itself nor those that it calls."""


def untraced(code: Code) -> Code:
    """Let a function, or all methods and properties of a class, run uncompiled."""
    members = vars(code).values() if isinstance(code, type) else (code,)
    for member in members:
        wrapped = getattr(member, "__func__", member)
        for function in (wrapped, *(getattr(wrapped, a, None) for a in _ACCESSORS)):
            if isinstance(function, FunctionType):
                eval_frame.set_code_exec_strategy(function.__code__, _SKIP)
                # As torch.compiler.disable marks it: nor is it traced from outside.
                function.__dict__.update(_torchdynamo_disable=True)
    return code


_ACCESSORS = ("fget", "fset", "fdel")
"""The functions of a property."""
