"""What a worker answers: of results, of failures, of tensors on their way.

Leak: a failure's text is PyTorch's own, which may quote values.
"""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from obhut import errors
from obhut.errors import MemoryLimitError, ObhutError
from obhut.protocol import limits
from obhut.protocol.messages import (
    AnyAnswer,
    AnyRequest,
    Described,
    Failed,
    Returned,
    Run,
    RunProgram,
    TensorData,
)

from .executor import to_value
from .tensors import DTYPE_NAMES, spec_of

_KINDS = {
    IndexError: "RemoteIndexError",
    TypeError: "RemoteTypeError",
    ValueError: "RemoteValueError",
    NotImplementedError: "RemoteNotImplementedError",
}
"""Which error stands for PyTorch's own; any other is a RemoteExecutionError."""


def declare(tensor: torch.Tensor, frame: int) -> TensorData:
    """Return how a tensor's frame is to be read."""
    return TensorData(
        DTYPE_NAMES.get(tensor.dtype, ""),
        tuple(tensor.shape),
        frame,
        tensor.requires_grad and tensor.is_leaf,
    )


def describe(index: int, result: object) -> AnyAnswer:
    """Answer what an operator's results look like, or what it returned."""
    if isinstance(result, torch.Tensor):
        return Described(index, (spec_of(result),))
    leaves = pytree.tree_leaves(result)
    if any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return Described(
            index,
            tuple(
                spec_of(leaf) if isinstance(leaf, torch.Tensor) else None
                for leaf in leaves
            ),
            sequence=True,
        )
    return Returned(index, to_value(result))


_WHERE = ("\nException raised from", "\n Python error details:")
"""After these PyTorch names files and lines of this process."""


_CALLED = {"StoreState": "store", "RecallState": "recall", "ListState": "stored"}
"""What users call requests, where that is not their name."""


def failed(error: Exception, index: int, batch: int, request: AnyRequest) -> Failed:
    """Answer for a request that failed by itself."""
    facts: tuple[int, ...] = ()
    text = str(error)
    for where in _WHERE:
        text = text.split(where, maxsplit=1)[0]
    if isinstance(error, ObhutError):
        kind = type(error).__name__
        if isinstance(error, MemoryLimitError):
            facts = tuple(
                min(n, 2**63 - 1) for n in (error.asked, error.held, error.limit)
            )
        elif isinstance(error, errors.ObjectNotFoundError):
            facts, text = (error.id,), error.why
        elif isinstance(error, errors.OpNotAdmittedError):
            text = error.reason
        elif isinstance(error, errors.ReleaseRefusedError):
            text = words(error)
    else:
        kind = next(
            (name for base, name in _KINDS.items() if isinstance(error, base)),
            "RemoteExecutionError",
        )
    return Failed(
        index,
        batch,
        index,
        kind,
        name_of(request)[: limits.TEXT_CHARACTERS],
        text[: limits.TEXT_CHARACTERS],
        facts,
    )


def words(error: ObhutError) -> str:
    """Return an error's text as it travels: a refused release names its rule first."""
    if isinstance(error, errors.ReleaseRefusedError):
        return f"{error.rule}: {error.text}"
    return str(error)


def name_of(request: AnyRequest) -> str:
    """Return what a request is called in an error."""
    if isinstance(request, Run):
        return request.op
    if isinstance(request, RunProgram):
        return f"program {request.program[:8]}"
    name = type(request).__name__
    return _CALLED.get(name, name.lower())
