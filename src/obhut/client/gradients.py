"""``backward``, ``grad`` and ``.grad`` of remote tensors.

Autograd runs at the worker. The client sends what to do and keeps, in
``AutogradState``, who has a gradient afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from obhut.errors import InternalError, LocationError, UnsupportedError
from obhut.protocol.messages import (
    Backward,
    Described,
    Differentiate,
    ReadGrad,
    RetainGrad,
    SetRequiresGrad,
    WriteGrad,
)
from obhut.worker.shapes import Spec, dense

from . import origins
from .autograd_state import PENDING, VAGUE, AutogradState, GraphNode, reach
from .cancelling import interruptible
from .dispatch import to_spec, wrap
from .held import Held
from .local_autograd import refuse_anomaly_detection
from .session import Session

Remote = TypeVar("Remote", bound=torch.Tensor)
"""The class of remote tensors, defined above this module."""

_NO_GRAD = "element 0 of tensors does not require grad and does not have a grad_fn"


def together(op: str, helds: Sequence[Held]) -> None:
    """Check that all are at one worker, and can still be used.

    Raises:
        LocationError: if they are not.
        ObjectNotFoundError: if one of them is spent.
    """
    for held in helds:
        held.check()
        if held.session is not helds[0].session:
            raise LocationError(
                op,
                [helds[0].session.worker, held.session.worker],
                "move them together first: x.move(worker)",
            )


@interruptible
def backward(
    roots: Sequence[Held],
    grads: Sequence[Held | None],
    inputs: Sequence[Held] | None,
    retain_graph: bool | None,
    create_graph: bool,
) -> None:
    """Accumulate gradients at the worker, as ``torch.autograd.backward`` does.

    Those of leaves that have an origin go on to it.

    Raises:
        RuntimeError: in PyTorch's words, if nothing requires a gradient, or the
            gradient of a result that is no scalar is missing.
    """
    refuse_anomaly_detection()
    together("backward", [*roots, *(g for g in grads if g), *(inputs or ())])
    _check_roots(roots, grads)
    within = None if inputs is None else [held.tracked() for held in inputs]
    reached, tied = reach([held.tracked().place() for held in roots], within)
    origins.set_aside(tied)
    sources = _places(*roots, *grads) if create_graph else ()
    since = roots[0].session.cancels
    for state, sure in reached:
        if create_graph:
            state.sources = (*sources, *_sources(state))
        # A leaf's gradient is added to in place; a result's is made anew, as the
        # worker likes it.
        if create_graph or state.grad is None or not state.is_leaf:
            state.grad = PENDING
            state.ask = create_graph or not sure or not state.is_leaf
            state.since = since
    # After that: after Ctrl-C before it, or in it, the worker is asked what there is.
    roots[0].session.post(
        Backward(
            tuple(held.id for held in roots),
            tuple(None if held is None else held.id for held in grads),
            None if inputs is None else tuple(held.id for held in inputs),
            create_graph if retain_graph is None else retain_graph,
            create_graph,
        )
    )
    if tied:
        _go_back(origins.bring_back(tied), retain_graph)


def _go_back(returns: origins.Returns, retain_graph: bool | None) -> None:
    """Go on with a backward pass where its leaves came from."""
    for pairs in returns.there.values():
        sources, added = zip(*pairs, strict=True)
        backward(sources, added, None, retain_graph, False)
    if returns.here:
        tensors, values = zip(*returns.here, strict=True)
        torch.autograd.backward(tensors, values, retain_graph=retain_graph)


@interruptible
def differentiate(
    cls: type[Remote],
    roots: Sequence[Held],
    grads: Sequence[Held | None],
    inputs: Sequence[Held],
    retain_graph: bool | None,
    create_graph: bool,
    allow_unused: bool,
) -> tuple[Remote | None, ...]:
    """Return gradients, as ``torch.autograd.grad`` does.

    Raises:
        RuntimeError: as ``backward``, and if an input was not used.
    """
    refuse_anomaly_detection()
    together("grad", [*roots, *(g for g in grads if g), *inputs])
    _check_roots(roots, grads)
    session = roots[0].session
    first = session.new_ids(len(inputs))
    reply = session.ask(
        Differentiate(
            tuple(held.id for held in roots),
            tuple(None if held is None else held.id for held in grads),
            tuple(held.id for held in inputs),
            first,
            create_graph if retain_graph is None else retain_graph,
            create_graph,
        )
    )
    if not isinstance(reply, Described):
        raise InternalError("gradients were expected to be described")
    parents = _places(*roots, *grads, *inputs)
    results = tuple(
        None
        if sent is None
        else wrap(cls, _graded(session, first + position, to_spec(sent), parents))
        for position, sent in enumerate(reply.specs)
    )
    if not allow_unused and any(one is None for one in results):
        raise RuntimeError(
            "One of the differentiated Tensors appears to not have been used in the "
            "graph. Set allow_unused=True if this is the desired behavior."
        )
    return results


def _graded(
    session: Session, id: int, look: Spec, parents: tuple[GraphNode, ...]
) -> Held:
    state = None
    if look.requires_grad:
        state = AutogradState()
        state.become_result((*parents, VAGUE))  # nobody here knows through which
    return Held(session, id, look.plain, state)


def _places(*helds: Held | None) -> tuple[GraphNode, ...]:
    """Return the places of those that require a gradient."""
    return tuple(h.tracked().place() for h in helds if h and h.requires_grad())


def _sources(state: AutogradState) -> tuple[GraphNode, ...]:
    """Return what the gradient that a tensor has came from, if it has a graph."""
    if state.grad is None or state.grad is PENDING:
        return state.sources if state.grad is PENDING else ()
    return _places(state.grad._held)


@interruptible
def read_grad(cls: type[Remote], held: Held) -> Remote | None:
    """Return ``.grad``: None, or the remote tensor that is the gradient."""
    state = held.autograd
    if state is None or state.grad is None:
        return None
    certain = state.since == held.session.cancels
    if state.grad is not PENDING and certain:
        return state.grad  # type: ignore[no-any-return] # a remote tensor
    id = held.session.new_id()
    if state.ask or not certain:
        state.since = held.session.cancels
        reply = held.session.ask(ReadGrad(held.id, id, describe=True))
        if not isinstance(reply, Described):
            raise InternalError("a gradient was expected to be described")
        if reply.specs[0] is None:
            state.grad = None
            return None
        look = to_spec(reply.specs[0])
        state.grad = wrap(cls, _graded(held.session, id, look, state.sources))
        state.ask = False
    else:
        held.session.post(ReadGrad(held.id, id))
        state.grad = wrap(cls, Held(held.session, id, _like(held.spec)))
    return state.grad  # type: ignore[no-any-return] # a remote tensor


def resolve(cls: type[Remote], held: Held) -> None:
    """Find out whether there is a gradient, where only the worker knows."""
    state = held.autograd
    if state is not None and (state.ask or state.since != held.session.cancels):
        read_grad(cls, held)


@interruptible
def write_grad(held: Held, grad: Held | None, tensor: torch.Tensor | None) -> None:
    """Assign ``.grad``.

    Args:
        held: whose gradient.
        grad: the hold on the new gradient, or None.
        tensor: the same as a remote tensor, or None.

    Raises:
        LocationError: if it is elsewhere.
        RuntimeError: in PyTorch's words, if its shape or dtype does not fit.
    """
    held.check()
    if grad is not None:
        together("grad", (held, grad))
        if grad.spec.shape != held.spec.shape:
            raise RuntimeError(
                f"attempting to assign a gradient of size '{list(grad.spec.shape)}' to "
                f"a tensor of size '{list(held.spec.shape)}'. Please ensure that the "
                "gradient and the tensor are the same size"
            )
        if grad.spec.dtype is not held.spec.dtype:
            raise RuntimeError(
                f"attempting to assign a gradient with dtype '{grad.spec.dtype}' to a "
                f"tensor with dtype '{held.spec.dtype}'. Please ensure that the "
                "gradient and the tensor have the same dtype"
            )
    elif held.autograd is None or held.autograd.grad is None:
        return
    held.session.post(WriteGrad(held.id, None if grad is None else grad.id))
    state = held.tracked()
    state.grad, state.ask, state.since = tensor, False, held.session.cancels


@interruptible
def set_requires_grad(held: Held, value: bool) -> None:
    """Carry out ``requires_grad_(value)``.

    Raises:
        RuntimeError: in PyTorch's words, if the tensor is no leaf or its dtype has
            no gradients.
    """
    held.check()
    if held.requires_grad() is value:
        return
    if not held.tracked().is_leaf:
        raise RuntimeError(
            "you can only change requires_grad flags of leaf variables."
            + (
                ""
                if value
                else " If you want to use a computed variable in a subgraph that "
                "doesn't require differentiation use var_no_grad = var.detach()."
            )
        )
    if value and not held.spec.differentiable:
        raise RuntimeError(
            "only Tensors of floating point and complex dtype can require gradients"
        )
    held.session.post(SetRequiresGrad(held.id, value))
    held.tracked().become_leaf(value)


def retain_grad(held: Held) -> None:
    """Carry out ``retain_grad()``.

    Raises:
        RuntimeError: in PyTorch's words, if the tensor requires no gradient.
    """
    held.check()
    state = held.autograd
    if state is None or not state.records():
        raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
    if state.is_leaf or state.retains_grad:
        return
    held.session.post(RetainGrad(held.id))
    state.retains_grad = True
    state.place().retain(state)


def _check_roots(roots: Sequence[Held], grads: Sequence[Held | None]) -> None:
    if not roots:
        raise UnsupportedError("backward from nothing", "name what to differentiate")
    for position, (held, grad) in enumerate(zip(roots, grads, strict=True)):
        if not held.requires_grad():
            raise RuntimeError(_NO_GRAD.replace("0", str(position)))
        if (
            grad is None
            and held.spec.shape
            and held.spec.nbytes != (held.spec.dtype.itemsize)
        ):
            raise RuntimeError("grad can be implicitly created only for scalar outputs")


def _like(look: Spec) -> Spec:
    """Return how a first gradient is laid out: like its tensor if that is dense.

    Source: the gradient layout contract in PyTorch's accumulate_grad.h.
    """
    expected = 1
    for stride, size in sorted(zip(look.stride, look.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return dense(look.shape, look.dtype)
            expected *= size
    return look
