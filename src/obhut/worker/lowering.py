"""Lowers a program's body to a graph of operators without autograd.

::

    lowered = lower(body, looks, make)           # once for each digest and look
    run = lowered.make(*held, *takes)            # for one training
    values = run(x, y)                           # for each batch, below autograd

The body runs once on tensors that have no values, with PyTorch's own autograd, and what
reaches its kernels is kept.

Rules:

- Nobody but PyTorch names a derivative's kernel: a client names forward operators, and
  each of them is checked as the same request would be.
- A graph is for inputs of one look; who runs it checks theirs.
- It is an optimization: a body that can't be lowered runs line by line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from obhut.programs.program import Kind

from .bodies import Applies, Body, Value
from .graph_steps import STEPS, UPDATES, early, step
from .replay import compiled, is_reshaped
from .shape_only_calls import SIZES, Recording
from .shapes import Spec, look_of
from .store import Store

# Any below: what operators take and return.

_ATEN = torch.ops.aten


class Lowered(NamedTuple):
    """A graph, as Python.

    Attributes:
        make: takes what is held and the steps; returns what runs a batch.
        rows_written: whether it changes a batch in place.
    """

    make: Callable[..., Callable[..., list[Any]]]
    rows_written: bool


def lower(
    body: Body,
    looks: Sequence[Spec],
    make: Callable[[Store, Recording], Applies],
    exact: bool = True,
) -> Lowered:
    """Return a body's graph.

    Args:
        body: the body.
        looks: of its inputs, in order.
        make: makes an execution whose operators are recorded.
        exact: whether it does what its lines do, digit for digit.

    Raises:
        Exception: whatever keeps it from being lowered.
    """
    kinds = body.kinds
    recording = Recording()
    inputs = [recording.input(f"i{place}", one) for place, one in enumerate(looks)]
    before = [one._version for one in inputs]
    values = _recorded(recording, body, inputs, make)
    recording.output(values)
    _tidy(recording.graph)
    early(recording.graph, looks, exact=exact)
    recording.graph.eliminate_dead_code(is_impure_node=_has_effect)
    own = zip(inputs[: body.inputs], before, kinds, strict=False)
    return Lowered(
        compiled(recording.graph, recording.constants, kinds),
        any(kind is Kind.ROWS and one._version != then for one, then, kind in own),
    )


def sizes(
    body: Body,
    looks: Sequence[Spec],
    make: Callable[[Store, Recording], Applies],
) -> list[list[int]]:
    """Return the sizes of what a body returns; of a number there are none.

    Args:
        body: the body.
        looks: of its inputs, in order.
        make: makes an execution whose operators are recorded.

    Raises:
        Exception: whatever keeps it from being run without values.
    """
    recording = Recording()
    inputs = [recording.input(f"i{place}", one) for place, one in enumerate(looks)]
    return [
        list(one.shape) if isinstance(one, torch.Tensor) else []
        for one in _recorded(recording, body, inputs, make)
    ]


def _recorded(
    recording: Recording,
    body: Body,
    inputs: Sequence[torch.Tensor],
    make: Callable[[Store, Recording], Applies],
) -> list[Value]:
    """Run a body on tensors without values; return what it returns."""

    def take(
        number: int,
        parameters: Sequence[torch.Tensor],
        gradients: Sequence[torch.Tensor | None],
    ) -> None:
        there = {p: one for p, one in enumerate(gradients) if one is not None}
        stepped = [parameters[p] for p in there]
        recording.call(step, list(there.values()), stepped, number, list(there))
        torch.autograd.graph.increment_version(stepped)

    with recording, torch.enable_grad():
        execution = make(Store("a program", None), recording)
        values = body.run(execution, body.own(inputs), take)
        _check_carried(body, inputs, values)
    return values


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


# --- the graph --------------------------------------------------------------------


def _tidy(graph: fx.Graph) -> None:
    """Take out what has no effect below autograd."""
    for node in list(graph.nodes):
        if node.target in _SAME and not is_reshaped(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=_ATEN.view.default):
        _sum_to_sizes(node)
    graph.eliminate_dead_code(is_impure_node=_has_effect)
    transposed: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is not _ATEN.t.default or is_reshaped(node):
            continue
        (source,) = node.args
        first = transposed.setdefault(source, node)
        if source.target is _ATEN.t.default and not is_reshaped(source):
            first = source.args[0]
        if first is not node:
            node.replace_all_uses_with(first)
    graph.eliminate_dead_code(is_impure_node=_has_effect)


def _sum_to_sizes(view: fx.Node) -> None:
    """Let a sum over rows, as a bias gets it, have the sizes that are wanted."""
    source, sizes = view.args
    if (
        isinstance(source, fx.Node)
        and source.target is _ATEN.sum.dim_IntList
        and source.args[1:] == ([0], True)
        and source.meta[SIZES] == (1, *sizes)  # type: ignore[misc] # a list
        and len(source.users) == 1
        and not is_reshaped(view)
    ):
        source.args = source.args[:2]
        view.replace_all_uses_with(source)


_SAME = (_ATEN.detach.default, _ATEN.alias.default, _ATEN.lift_fresh_copy.default)


def _has_effect(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target in STEPS
    return (
        target._schema.is_mutable
        or torch.Tag.nondeterministic_seeded in target.tags
        or target in UPDATES
    )
