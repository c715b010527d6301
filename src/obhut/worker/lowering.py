"""Lowers a program's body to a graph of operators without autograd.

::

    lowered = lower(body, looks, device)         # once for each digest and look
    run = lowered.bind(held, steps)              # for one training
    values = run(x, y)                           # for each batch, below autograd

The body runs once on tensors that have no values, with PyTorch's own autograd, and what
reaches its kernels is kept. Source: ``make_fx`` of ``torch.fx``.

Rules:

- Nobody but PyTorch names a derivative's kernel: a client names forward operators, and
  each of them is checked as the same request would be.
- A graph is for inputs of one look; who runs it checks theirs.
- What is carried to the next batch is memory of its own, and looks like what came.
- It is an optimization: a body that can't be lowered runs line by line.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from obhut.programs.program import Kind

from .bodies import Applies, Body, Value
from .replay import Source, source_of
from .shapes import Spec, look_of
from .store import Store

# Any below: what operators take and return.

_ATEN = torch.ops.aten

Steps: TypeAlias = Sequence[Callable[[Sequence[torch.Tensor | None]], None]]
"""Of each optimizer, what takes a step by the gradients of its parameters."""

_library = torch.library.Library("obhut", "DEF")
_library.define(
    "step(Tensor(a!)[] parameters, Tensor[] gradients, int optimizer, int[] places)"
    " -> ()"
)


def _no_step(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    optimizer: int,
    places: Sequence[int],
) -> None:
    """Stand for a step of an optimizer while a program is lowered."""


_library.impl("step", _no_step, "CompositeExplicitAutograd")
_library.impl("step", _no_step, "Meta")
STEP = torch.ops.obhut.step.default


class Lowered(NamedTuple):
    """A graph, as Python.

    Attributes:
        source: its code and its constants.
        rows_written: whether it changes a batch in place.
        written: the places of constants that it changes, among the inputs.
    """

    source: Source
    rows_written: bool
    written: tuple[int, ...]


def lower(
    body: Body,
    looks: Sequence[Spec],
    device: torch.device,
    make: Callable[[Store], Applies],
) -> Lowered:
    """Return a body's graph.

    Args:
        body: the body.
        looks: of its inputs, in order.
        device: where they are.
        make: makes an execution that runs operators on tensors without values.

    Raises:
        Exception: whatever keeps it from being lowered.
    """
    kinds = body.kinds
    versions: list[bool] = []

    def traced(*inputs: torch.Tensor) -> list[Any]:
        before = [one._version for one in inputs]
        execution = make(Store("a program", None))
        values = body.run(execution, body.own(inputs), _trace_step)
        _check_carried(body, inputs, values)
        versions[:] = [
            one._version != then for one, then in zip(inputs, before, strict=True)
        ]
        return values

    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        inputs = [
            torch.empty_strided(one.shape, one.stride, dtype=one.dtype, device=device)
            for one in looks
        ]
        graph = make_fx(traced, tracing_mode="real")(*inputs)
    _tidy(graph.graph)
    _check(graph)
    changed = [place for place, one in enumerate(versions) if one]
    return Lowered(
        source_of(graph, kinds, STEP),
        any(kinds[place] is Kind.ROWS for place in changed if place < body.inputs),
        tuple(place for place in changed if kinds[place] is Kind.CONSTANT),
    )


def _check_carried(
    body: Body, inputs: Sequence[torch.Tensor], values: Sequence[Value]
) -> None:
    """Check that what is handed on can be taken from a graph.

    Raises:
        TypeError: if it can't.
    """
    memory = {one.untyped_storage()._cdata for one in inputs}
    taken = dict(zip(body.takes, inputs, strict=True))
    for id, value in zip(body.hands_on, values, strict=False):
        if not isinstance(value, torch.Tensor) or (
            value.requires_grad and id not in body.detached
        ):
            raise TypeError("a batch hands on its graph")
        if id in taken and look_of(value) != look_of(taken[id]):
            raise TypeError("a batch hands on what looks otherwise")
        if value.untyped_storage()._cdata in memory:
            raise TypeError("a batch hands on what has another name")
        memory.add(value.untyped_storage()._cdata)


def _trace_step(
    number: int,
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
) -> None:
    places = [place for place, one in enumerate(gradients) if one is not None]
    with torch.no_grad():
        STEP(
            [parameters[place] for place in places],
            [gradients[place] for place in places],
            number,
            places,
        )


# --- the graph --------------------------------------------------------------------


def _tidy(graph: fx.Graph) -> None:
    """Take out what has no effect below autograd."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=_has_effect)
    transposed: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is _ATEN.t.default:
            first = transposed.setdefault(node.args, node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)
    graph.lint()


_SAME = (_ATEN.detach.default, _ATEN.alias.default, _ATEN.lift_fresh_copy.default)


def _has_effect(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return (
        target._schema.is_mutable
        or torch.Tag.nondeterministic_seeded in target.tags
        or target in _UPDATES
    )


_UPDATES = (_ATEN.native_batch_norm.default, _ATEN._native_batch_norm_legit.default)
"""Operators that update an argument and whose schema does not say so."""


def _check(graph: fx.GraphModule) -> None:
    """Check that a graph is made of PyTorch's operators.

    Raises:
        TypeError: if it is not.
    """
    for node in graph.graph.nodes:
        if node.op == "call_function":
            own = node.target is operator.getitem or node.target is STEP
            overload = isinstance(node.target, torch._ops.OpOverload)
            if not own and not (overload and node.target.namespace == "aten"):
                raise TypeError(f"a graph has {node.target}")
        elif node.op not in ("placeholder", "output", "get_attr"):
            raise TypeError(f"a graph has a {node.op}")
