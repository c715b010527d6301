"""What operators do to tensors without values.

::

    with shape_only_mode():
        loss = torch.nn.functional.linear(data, weight).sum()
        loss.backward()
    weight.grad.shape                            # (2, 3)

Rules:

- Inside ``shape_only_mode`` every result is shape-only, also of factories, which C++
  derivatives call without a tensor.
- A tensor with values may take part, if it has no dimensions: a number that whoever
  asks has written down. No other is ever in the same process.
- What needs a value is refused by the operator's name.
- What an operator leaves behind is learnt once for arguments that look alike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from obhut.errors import InternalError, OpNotAdmittedError

from .aftermath import KEPT, NEW, Aftermath, Changed, Made
from .looks import Remembered
from .overloads import NEEDS_VALUES, Overload
from .shape_only import Func, ShapeOnly, join, like, new, reform, shape_only, view
from .shape_only_arguments import (
    count_writes,
    is_public,
    learn_call,
    memory_of,
    note,
    parts_of,
)
from .shapes import Part, Spec, look_of

# Any below: operators take and return whatever their schema says.


class ShapeOnlyMode(TorchDispatchMode):
    """Makes every result shape-only."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else PyTorch loads its compiler, to be told at each operator not to compile.
        return False

    def __torch_dispatch__(
        self,
        func: Func,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _run(func, args, kwargs)

    # As TorchDispatchMode does, less what only modes of PyTorch's own need.
    def __enter__(self) -> ShapeOnlyMode:
        torch._C._push_on_torch_dispatch_stack(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: object
    ) -> None:
        torch._C._pop_torch_dispatch_stack(None)
        if kind is not None and kind is RuntimeError and _NO_DATA in str(error):
            raise OpNotAdmittedError("a kernel of its own", NEEDS_VALUES) from None


_NO_DATA = "its data is not allocated yet"
"""What PyTorch says where its own code reads elements. Source: TensorImpl.h."""


_mode = ShapeOnlyMode()  # type: ignore[no-untyped-call] # torch's is untyped


def shape_only_mode() -> ShapeOnlyMode:
    """Return a context in which every operator's results are shape-only.

    It may be entered again inside. Reading bytes belongs outside: there, memory that
    has just been made has to be there.
    """
    return _mode


SIZES = "sizes"
"""Under which name a node of a recorded graph has the sizes of what it makes."""

_NODE = "recorded"
"""Under which name a tensor without values has its node of the graph."""


class Recording(ShapeOnlyMode):
    """The same, and keeps what ran: every operator that autograd has called too.

    Attributes:
        graph: what ran, in order.
        constants: tensors with values that took part, by their names in the graph.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's is untyped
        self.graph = fx.Graph()
        self.constants: dict[str, torch.Tensor] = {}
        # Of tensors with values, which are kept so that an address names no other. One
        # without has its node itself: autograd sees who else has hold of a gradient.
        self._nodes: dict[int, tuple[torch.Tensor, fx.Node]] = {}

    def __torch_dispatch__(
        self,
        func: Func,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = _run(func, args, kwargs)
        if func.namespace != "profiler" and isinstance(
            result, torch.Tensor | tuple | list
        ):
            made = self.graph.call_function(
                func, self._named(tuple(args)), self._named(dict(kwargs or {}))
            )
            self._keep(result, made)
        elif func._schema.is_mutable:
            self.graph.call_function(
                func, self._named(tuple(args)), self._named(dict(kwargs or {}))
            )
        return result

    def input(self, name: str, look: Spec) -> torch.Tensor:
        """Return a tensor that is an input of the graph."""
        made = shape_only(look)
        self._name(made, self.graph.placeholder(name))
        return made

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what looks like a tensor with values, and stands for it."""
        made = like(tensor)
        self._name(made, self._node(tensor))
        return made

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Write a function down, which is called with the values of its arguments."""
        self.graph.call_function(function, self._named(args))

    def output(self, results: Sequence[Any]) -> None:
        """End the graph with what it returns."""
        self.graph.output(self._named(list(results)))

    def _named(self, value: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, self._node, value)

    def _node(self, tensor: torch.Tensor) -> fx.Node:
        if isinstance(tensor, ShapeOnly):
            own: fx.Node | None = tensor.__dict__.get(_NODE)
            if own is None:
                raise InternalError("a tensor without values came from nowhere")
            return own
        known = self._nodes.get(id(tensor))
        if known is not None:
            return known[1]
        name = f"constant{len(self.constants)}"
        with _disable_current_modes():
            self.constants[name] = tensor.detach().clone()
        node = self.graph.create_node("get_attr", name)
        self._name(tensor, node)
        return node

    def _name(self, tensor: torch.Tensor, node: fx.Node) -> None:
        if isinstance(tensor, ShapeOnly):
            tensor.__dict__.setdefault(_NODE, node)
        else:
            self._nodes.setdefault(id(tensor), (tensor, node))

    def _keep(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, torch.Tensor):
            node.meta[SIZES] = tuple(result.shape)
            self._name(result, node)
            return
        for place, one in enumerate(result):
            if isinstance(one, torch.Tensor | tuple | list):
                item = self.graph.call_function(operator.getitem, (node, place))
                self._keep(one, item)


# --- one operator -----------------------------------------------------------------


def _run(func: Func, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Return what an operator returns.

    Raises:
        OpNotAdmittedError: if that depends on values.
        Exception: whatever the operator says of arguments that look so.
    """
    overload = _overloads.get(id(func))
    if overload is None:
        overload = _overload(func)
    if overload.special is not None:
        return overload.special(func, args, kwargs)
    given: list[Any] = []
    key: list[object] = [overload, torch.get_default_dtype()]
    floats = overload.floats_matter
    for value in args:
        kind = value.__class__
        if kind is ShapeOnly:
            key.append(value.look)
            given.append(value)
        elif kind is int:
            key += (int, value)
        else:
            note(value, key, given, floats)
    if kwargs:
        for name, value in kwargs.items():
            key.append(name)
            note(value, key, given, floats)
    parts: list[Part] | None = None
    if overload.offsets or (
        overload.writes
        and len(given) > 1
        and len({memory_of(one) for one in given}) < len(given)
    ):
        parts = parts_of(given)
        key += parts
    cached = tuple(key)
    known = _known.get(cached)
    if known is None:
        if is_public(overload, args, kwargs or {}, given):
            result = func(*args, **(kwargs or {}))
            count_writes(overload, args, kwargs)
            return result  # and learn nothing
        known = learn_call(overload, args, kwargs or {}, given, parts)
        _known[cached] = known
    if isinstance(known, str):
        raise OpNotAdmittedError(overload.name, known)
    if known.single is not None:
        return new(known.single)
    if overload.lists:
        count_writes(overload, args, kwargs)
    for change in known.changes:
        _change(change, given, overload.name, parts is not None)
    return _built(known.result, given, parts is not None, [])


def _overload(func: Func) -> _Ready:
    """Return an overload, ready to be called; the same for the same."""
    made = _overloads[id(func)] = _Ready(func)
    return made


class _Ready(Overload):
    """An overload, with what stands in for it where a few need something else.

    Attributes:
        func: the overload, kept so that its address names no other.
        special: what is called instead, or None.
    """

    __slots__ = ("func", "special")

    def __init__(self, func: Func) -> None:
        super().__init__(func)
        self.func = func
        marks = func.namespace == "profiler"
        self.special = _as_it_is if marks else _SPECIAL.get(self.name)


_overloads: dict[int, _Ready] = {}

_known: Remembered[Aftermath | str] = Remembered()
"""What operators leave behind, or why they are refused, by what their arguments are."""


def _built(
    template: Any, given: Sequence[Any], absolute: bool, made: list[ShapeOnly]
) -> Any:
    """Return a result as its template describes it."""
    kind = template.__class__
    if kind is Made:
        if template.same:
            made.append(given[template.source])
        elif template.source >= 0 and given[template.source].__class__ is ShapeOnly:
            source = given[template.source]
            offset = template.offset + (0 if absolute else int(source.storage_offset()))
            made.append(view(template.look, offset, source))
        elif template.sibling >= 0:
            made.append(view(template.look, template.offset, made[template.sibling]))
        else:
            made.append(new(template.look, template.offset, template.nbytes))
        return made[-1]
    if kind is tuple:
        return tuple(_built(one, given, absolute, made) for one in template)
    if kind is list:
        return [_built(one, given, absolute, made) for one in template]
    return template


def _change(change: Changed, given: Sequence[Any], name: str, absolute: bool) -> None:
    """Give a tensor the sizes, strides and memory that an operator gives it."""
    tensor = given[change.position]
    if tensor.__class__ is not ShapeOnly:
        raise OpNotAdmittedError(name, "a written number stays as it is")
    offset = change.offset + (0 if absolute else int(tensor.storage_offset()))
    if change.source == NEW:
        join(tensor, new(change.look, offset))
    elif change.source != KEPT:
        join(tensor, given[change.source])
    reform(tensor, change.look, offset)


# --- what is not learnt -----------------------------------------------------------


def _detach(func: Func, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Return the same under another name: autograd asks for it at each step."""
    (tensor,) = args
    if tensor.__class__ is not ShapeOnly:
        return new(look_of(tensor))
    return view(tensor.look, int(tensor.storage_offset()), tensor)


def _fresh(func: Func, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Return what ``torch.tensor`` has made of written numbers, with its values."""
    return args[0]


def _as_it_is(func: Func, args: Sequence[Any], kwargs: Any) -> Any:
    """Call what marks a place for a profiler, as PyTorch's optimizers do."""
    return func(*args, **(kwargs or {}))


def _choose(func: Func, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Any:
    """Return which kernel the CPU would take; it looks at nothing but looks."""
    with torch._C._DisableTorchDispatch():
        return func(*args, **(kwargs or {}))


_SPECIAL: Mapping[str, Callable[[Func, Sequence[Any], Any], Any]] = {
    "aten.detach.default": _detach,
    "aten.lift_fresh.default": _fresh,
    "aten._fused_sdp_choice.default": _choose,
}

ShapeOnly.answer = staticmethod(_run)
