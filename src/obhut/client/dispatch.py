"""One aten overload on remote tensors becomes one message.

::

    call = Call(cls, route, session, grad, (args, kwargs))
    sent, named = call.read_all()                # how the arguments travel
    known = _look(call, args, kwargs, grad)      # what the results look like
    session.post(Run(...))                       # nothing is waited for

Rules:

- Results look like what the overload gives on meta tensors, cached by the
  overload and what its arguments look like; only where that can not be known is
  the worker asked.
- Errors of shape and dtype are found before anything is sent.
- No local autograd state: what requires a gradient is the worker's to record.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from obhut.errors import (
    CallError,
    InternalError,
    OpNotAdmittedError,
    UnsupportedError,
)
from obhut.protocol.limits import RESULTS_PER_REQUEST
from obhut.protocol.messages import (
    NOWHERE,
    Complex,
    Describe,
    Described,
    Returned,
    Run,
    Symbol,
    TensorSpec,
    Value,
)
from obhut.worker.shapes import (
    Inferred,
    Spec,
    UnknownShapeError,
    infer,
    spec,
)
from obhut.worker.tensors import (
    DTYPES,
    SYMBOLS,
)

from .autocast import CAST, as_written, casts
from .autograd_state import VAGUE, AutogradState, writable
from .call import CPU, Call
from .draws import drawing
from .held import Held
from .local_autograd import refuse_local_autograd
from .routes import Route, decompose, is_composite, route_of
from .session import Session

# Any below: operators take and return whatever their schema says.

Remote = TypeVar("Remote", bound=torch.Tensor)
"""The class of remote tensors, defined above this module."""

_CACHED_AT_MOST = 1 << 16
_cache: dict[tuple[object, ...], Inferred | None] = {}
_told: weakref.WeakKeyDictionary[Session, dict[tuple[object, ...], Inferred]] = (
    weakref.WeakKeyDictionary()
)
"""What workers answered where only their device decides the strides."""


def dispatch(
    cls: type[Remote],
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    session: Session | None = None,
) -> Any:
    """Send one operator and return remote tensors for its results.

    Args:
        cls: the class of remote tensors.
        func: the overload.
        args: its arguments.
        kwargs: its arguments by name.
        session: where to run it, if no argument says so.

    Raises:
        LocationError: if the arguments are at places that do not go together.
        OpNotAdmittedError: if workers do not run it.
        UnsupportedError: if it is a local transform that can not work here.
        Exception: PyTorch's own, if the shapes or dtypes do not fit.
    """
    if func is CAST and isinstance(args[0], cls):
        weight: Held = args[0]._held  # type: ignore[attr-defined] # of the class
        made = casts(weight, kwargs)
        if made is not None:
            if weight not in made:
                # Recorded, whoever needs it first: the next may need a gradient.
                with as_written(), torch.enable_grad():
                    made[weight] = dispatch(cls, func, args, kwargs, session)
            return made[weight]
    try:
        route = route_of(func)
    except OpNotAdmittedError:
        if not is_composite(func):
            raise
        # In inference mode, and inside some functions, composites arrive whole.
        return decompose(func, args, kwargs)
    grad = torch.is_grad_enabled()
    call = Call(cls, route, session, grad, (args, kwargs))
    sent, named = call.read_all()
    session = call.at
    _refuse_sparse(call)
    if call.parents:
        refuse_local_autograd(grad)
    lists = route.returns == (True,) and len(call.parents) > 1
    if call.parents and (lists or route.may_leave_out(args)):
        call.parents.append(VAGUE)  # each result of a list may come of one input
    changes = route.changes
    if changes and grad:
        _refuse_write(call)
    if route.random and route.draws(*call.raw):
        with drawing(session, call.generator) as seed:
            return _carry_out(call, sent, named, seed)
    return _carry_out(call, sent, named, None)


def _carry_out(
    call: Call, sent: list[Value], named: dict[str, Value], seed: int | None
) -> Any:
    """Send an operator whose arguments were read."""
    route, session, grad = call.route, call.at, call.grad
    args, kwargs = call.raw
    changes = route.changes
    known = _look(call, args, kwargs, grad and not changes) if route.known else None
    if known is None and route.straight:
        known = _told.get(session, {}).get(tuple(call.key))
    if route.returns_value:
        reply = session.ask(Run(route.name, sent, named, NOWHERE, 0, grad, True, seed))
        if not isinstance(reply, Returned):
            raise InternalError(f"{route.name} was expected to return no tensor")
        return _from_value(reply.value)
    if changes:
        return _change(call, sent, named, known, seed)
    if known is None:
        return _describe(call, sent, named, seed)
    specs = known.results
    if len(specs) > RESULTS_PER_REQUEST:
        raise CallError(
            f"{route.name} gives {len(specs):,} tensors; a worker makes at most "
            f"{RESULTS_PER_REQUEST:,} at once"
        )
    first = session.new_ids(len(specs))
    session.post(
        Run(route.name, sent, named, first, len(specs), grad, False, seed),
        carried=call.carried,
        made=known.growth,
    )
    if route.single:
        only = specs[0]
        if only is None:
            return None
        return _wrap(call, first, only)
    return _restore(
        route,
        [
            None if one is None else _wrap(call, first + position, one)
            for position, one in enumerate(specs)
        ],
    )


def _look(
    call: Call, args: Sequence[Any], kwargs: Mapping[str, Any], grad: bool
) -> Inferred | None:
    """Return what the results look like, or None where only the worker knows."""
    key = tuple(call.key)
    try:
        return _cache[key]
    except KeyError:
        pass
    route = call.route

    cls = call.cls
    # Without grad mode too: a view requires a gradient if its base does. But a leaf
    # that requires one could not be written.
    tracks = not route.changes
    positional = [_described(cls, value, tracks) for value in args]
    named = {name: _described(cls, value, tracks) for name, value in kwargs.items()}
    found: Inferred | None = None
    if not route.straight or (_row_major(positional) and _row_major(named.values())):
        with contextlib.suppress(UnknownShapeError):
            found = infer(route.func, positional, named, grad)
    if len(_cache) >= _CACHED_AT_MOST:
        _cache.clear()
    _cache[key] = found
    return found


def _row_major(described: Iterable[Any]) -> bool:
    """Tell whether all tensors among described arguments are row-major."""
    return all(
        one.row_major
        for value in described
        for one in (value if isinstance(value, list) else (value,))
        if isinstance(one, Spec)
    )


def _described(cls: type[torch.Tensor], value: Any, tracks: bool) -> Any:
    """Return an argument as inference takes it: what it looks like, for tensors."""
    if isinstance(value, torch.Tensor):
        if isinstance(value, cls):
            held: Held = value._held  # type: ignore[attr-defined] # of the class
            tracked = tracks and held.requires_grad()
            return held.spec.tracked if tracked else held.spec
        if value.dim() == 0:
            return value.detach()
        return spec(tuple(value.shape), tuple(value.stride()), value.dtype)
    if isinstance(value, list | tuple):
        return [_described(cls, item, tracks) for item in value]
    return None if isinstance(value, torch.Generator) else value


def _describe(
    call: Call, sent: list[Value], named: dict[str, Value], seed: int | None
) -> Any:
    """Run an operator whose results only the worker can describe."""
    session = call.at
    first = session.new_ids(RESULTS_PER_REQUEST)
    route = call.route
    reply = session.ask(Run(route.name, sent, named, first, 0, call.grad, True, seed))
    if not isinstance(reply, Described):
        raise InternalError(f"{route.name} was expected to return tensors")
    specs = [None if one is None else to_spec(one) for one in reply.specs]
    if route.straight:
        told = _told.setdefault(session, {})
        if len(told) >= _CACHED_AT_MOST:
            told.clear()
        told[tuple(call.key)] = Inferred(tuple(specs), None, 0)
    return _restore(
        route,
        [
            None if one is None else _wrap(call, first + position, one)
            for position, one in enumerate(specs)
        ],
    )


def _change(
    call: Call,
    sent: list[Value],
    named: dict[str, Value],
    known: Inferred | None,
    seed: int | None,
) -> Any:
    """Run an operator that changes its arguments; return those."""
    route, session = call.route, call.at
    request = Run(route.name, sent, named, NOWHERE, 0, call.grad, False, seed)
    session.post(request, carried=call.carried)
    args, kwargs = call.raw
    targets = [
        kwargs.get(place) if isinstance(place, str) else args[place]
        for place in route.written_all
    ]
    for target in pytree.tree_leaves(targets):
        if isinstance(target, call.cls):
            held: Held = target._held  # type: ignore[attr-defined] # of the class
            if call.grad and call.parents and held.spec.differentiable:
                held.tracked().write(tuple(call.parents))
            if route.name == "aten.detach_.default":
                held.tracked().become_leaf(False)
    if route.reshapes:
        _reshape(call, targets, known)
    results = [
        kwargs.get(place) if isinstance(place, str) else args[place]
        for place in route.written
    ]
    if not route.returns:
        return None
    return results[0] if len(route.returns) == 1 else tuple(results)


def _reshape(call: Call, targets: list[Any], known: Inferred | None) -> None:
    """Let the wrappers look like what their tensors have become."""
    flat = pytree.tree_leaves(targets)
    news: Sequence[Spec | None] = [None] * len(flat)
    if known is not None and len(flat) == len(known.results):
        news = known.results
    for target, new in zip(flat, news, strict=True):
        if not isinstance(target, call.cls):
            continue
        held: Held = target._held  # type: ignore[attr-defined] # of the class
        if call.route.is_out and new is not None and new.shape == held.spec.shape:
            continue
        if new is None or call.route.is_out:
            # A tensor that was resized gets strides of the kernel's choice.
            become(target, held, to_spec(describe(held)).plain)
        else:
            become(target, held, new.plain)


def become(tensor: torch.Tensor, held: Held, new: Spec) -> None:
    """Let a wrapper take the sizes, strides and dtype that its tensor has now."""
    if new is held.spec:
        return
    held.session.reshaped(held)
    blank = Held(held.session, NOWHERE, new)
    blank.spend("it only lends its looks")
    fresh = wrap(type(tensor), blank)
    held.spec = new
    with torch._C.DisableTorchFunctionSubclass(), torch._C._DisableTorchDispatch():
        torch._C.TensorBase.data.__set__(tensor, fresh)  # type: ignore[attr-defined] # a slot


def describe(held: Held) -> TensorSpec:
    """Ask the worker what a tensor looks like."""
    reply = held.session.ask(Describe(held.id))
    if not isinstance(reply, Described) or reply.specs[0] is None:
        raise InternalError("a tensor was expected to be described")
    return reply.specs[0]


def to_spec(sent: TensorSpec) -> Spec:
    """Return the specification that a worker answered."""
    return spec(sent.shape, sent.stride, DTYPES[sent.dtype], sent.requires_grad)


def _wrap(call: Call, id: int, result: Spec) -> torch.Tensor:
    """Return the remote tensor for one result."""
    session = call.at
    state: AutogradState | None = None
    if call.route.is_view:
        base = _first(call)
        if base is not None:
            root = base.tracked()
            state = AutogradState(root.base or root)
    if result.requires_grad:
        state = state or AutogradState()
        if call.grad:
            state.become_result(tuple(call.parents))
        else:
            state.become_unrecorded()
    return wrap(call.cls, Held(session, id, result.plain, state))


def _first(call: Call) -> Held | None:
    args = call.raw[0]
    first = args[0] if args else None
    if isinstance(first, call.cls):
        held: Held = first._held  # type: ignore[attr-defined] # of the class
        return held
    return None


def wrap(cls: type[Remote], held: Held) -> Remote:
    """Return the remote tensor of a hold."""
    if torch.is_inference_mode_enabled():
        # PyTorch refuses an inference tensor as the view of one that is none.
        with torch.inference_mode(False):
            return wrap(cls, held)
    look = held.spec
    tensor = torch.Tensor._make_wrapper_subclass(
        cls,
        look.shape,
        look.stride,
        0,
        None,
        look.dtype,
        torch.strided,
        CPU,
    )
    tensor._held = held  # type: ignore[attr-defined] # the class's one attribute
    return tensor


def _restore(route: Route, flat: list[Any]) -> Any:
    """Return flattened results in the form that the schema gives them."""
    if route.returns == (True,):
        return flat
    results: list[Any] = []
    rest = iter(flat)
    for position, is_list in enumerate(route.returns):
        after = len(route.returns) - position - 1
        if is_list:
            count = len(flat) - len(results) - after
            results.append([next(rest) for _ in range(count)])
        else:
            results.append(next(rest, None))
    return results[0] if len(results) == 1 else tuple(results)


def _from_value(value: Value) -> Any:
    """Return what an operator that yields no tensor returned."""
    match value:
        case list():
            return [_from_value(item) for item in value]
        case Complex(real=real, imag=imag):
            return complex(real, imag)
        case Symbol(name=name):
            return SYMBOLS[name]
        case _:
            return value


def _refuse_write(call: Call) -> None:
    """Refuse what autograd does not let be written, in PyTorch's own words."""
    args, kwargs = call.raw
    for place in call.route.written_all:
        target = kwargs.get(place) if isinstance(place, str) else args[place]
        for tensor in target if isinstance(target, list | tuple) else (target,):
            if isinstance(tensor, call.cls):
                held: Held = tensor._held  # type: ignore[attr-defined] # of the class
                why = writable(held.autograd)
                if why is not None:
                    raise RuntimeError(why)


def _refuse_sparse(call: Call) -> None:
    """Refuse what would give a gradient that does not travel."""
    if call.parents and call.grad and call.route.is_sparse(*call.raw):
        raise UnsupportedError(
            f"{call.route.name} with sparse=True",
            "its gradient would be sparse, which does not travel; leave that out",
        )
