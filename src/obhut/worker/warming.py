"""What PyTorch does once in a process, done before it is waited for.

::

    leave_compiler_out()                         # before anything runs on meta tensors
    warm_up()                                    # before children are forked
"""

from __future__ import annotations

import gc
import inspect
from types import CodeType, FunctionType

import torch
import torch.fx.experimental.symbolic_shapes  # which meta kernels load

from .shapes import dense, infer


def warm_up() -> None:
    """Let PyTorch do what it does once in a process, before children are walled in.

    It loads Python when its meta kernels are first used. And it looks at the processor
    when its first real kernel runs: behind the walls it can't, takes its plainest
    kernels, and differs in the last digit.
    """
    leave_compiler_out()
    row, matrix = dense((2,), torch.float32), dense((2, 2), torch.float32)
    infer(torch.ops.aten.linear.default, (matrix, matrix, row), {}, grad=True)
    ones = torch.ones(2, 2)
    torch.add(ones @ ones, ones, alpha=2.0)


def leave_compiler_out() -> None:
    """Let meta kernels run without PyTorch's compiler.

    Those that are written in Python would load it, to be told that it leaves them
    alone: a second, and 60 MB in each worker. It is for processes that compile nothing.
    """
    for code in torch._compile._disable_dynamo.__code__.co_consts:
        if isinstance(code, CodeType) and code.co_name == "inner":
            for wrapper in gc.get_referrers(code):
                if isinstance(wrapper, FunctionType):
                    kernel = inspect.getclosurevars(wrapper).nonlocals["fn"]
                    setattr(kernel, "__dynamo_disable", kernel)
