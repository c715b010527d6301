"""Steps of optimizers in a graph, and where in it they are taken.

::

    recording.call(step, gradients, parameters, 0, places)    # as the lines have it
    early(graph, looks, exact=True)                           # as soon as may be

Rules:

- A parameter is stepped as soon as its gradient is there and nothing before the step
  reads or writes the parameter any more: the gradient is in the processor's cache then,
  and its memory is free sooner. Small ones wait for large ones: a call takes longer.
- What is computed stays the same, since optimizers treat each parameter by itself.
- Not exact, a gradient that is a product of two matrices, which only the step reads, is
  never made: its factors are handed to the optimizer.
- Where it can't be told what shares memory with what, a step stays where it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .shapes import Spec

# Any below: what operators take and return.

_ATEN = torch.ops.aten

_LARGE = 2**18
"""Bytes of a parameter that is worth a step by itself, as large as a core's cache."""


def step(
    gradients: Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    number: int,
    places: Sequence[int],
) -> None:
    """Stand for a step of an optimizer in a graph.

    Args:
        gradients: those that are there.
        parameters: whose they are.
        number: the optimizer's.
        places: of the parameters, among the optimizer's.
    """


def product(
    one: torch.Tensor,
    other: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    number: int,
    place: int,
) -> None:
    """Stand for a step with the product of two matrices for a gradient.

    Args:
        one: the first.
        other: the second.
        parameters: the parameter, alone.
        number: the optimizer's.
        place: the parameter's, among the optimizer's.
    """


STEPS = (step, product)
"""What stands for a step."""

UPDATES = (_ATEN.native_batch_norm.default, _ATEN._native_batch_norm_legit.default)
"""Operators that update an argument and whose schema does not say so."""

_OF_THE_SAME = (_ATEN._unsafe_view.default, operator.getitem)
"""What returns memory of an argument, and whose schema does not say so."""


def early(graph: fx.Graph, looks: Sequence[Spec], *, exact: bool) -> None:
    """Let steps be taken as soon as they may be.

    Args:
        graph: of operators, ``getitem`` and steps.
        looks: of its inputs.
        exact: whether gradients are all made.
    """
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    sizes = {node: look.nbytes for node, look in zip(inputs, looks, strict=True)}
    for node in [one for one in graph.nodes if one.target is step]:
        _Mover(graph, node, sizes, exact).move()


class _Mover:
    """Moves one step.

    Args:
        graph: the graph.
        node: the step.
        sizes: bytes of the graph's inputs.
        exact: whether gradients are all made.
    """

    def __init__(
        self,
        graph: fx.Graph,
        node: fx.Node,
        sizes: Mapping[fx.Node, int],
        exact: bool,
    ) -> None:
        self._graph = graph
        self._node = node
        self._sizes = sizes
        self._exact = exact
        self._nodes = list(graph.nodes)
        self._end = self._nodes.index(node)
        self._places = {one: place for place, one in enumerate(self._nodes)}
        self._memory = _memory(self._nodes)

    def move(self) -> None:
        """Take the step in parts, each as soon as may be."""
        gradients, parameters, number, places = self._node.args
        given: Any = list(zip(gradients, parameters, places, strict=True))  # type: ignore[arg-type] # lists
        written = {self._memory[one] for _, one, _ in given}
        if len(written) < len(given) or written & {
            self._memory[one] for one, _, _ in given
        }:
            return  # one parameter's step would change another's gradient
        parts: list[tuple[int, list[Any]]] = []
        small: list[tuple[int, Any]] = []
        for one in given:
            ready = self._ready(*one[:2])
            factors = None if self._exact else self._factors(one[0], ready)
            if factors is not None:
                with self._graph.inserting_after(self._nodes[ready]):
                    made = self._graph.call_function(
                        product, (*factors[:2], [one[1]], number, one[2])
                    )
                if factors[2]:
                    with self._graph.inserting_before(made):
                        turned = [
                            self._graph.call_function(_ATEN.t.default, (factor,))
                            for factor in factors[1::-1]
                        ]
                    made.args = (*turned, *made.args[2:])
            elif self._sizes.get(one[1], 0) < _LARGE:
                small.append((ready, one))
            else:
                parts.append((ready, [one]))
        parts.sort(key=lambda part: part[0])
        parts.append((self._end, []))
        for ready, one in small:
            next(part for place, part in parts if place >= ready).append(one)
        for place, part in parts:
            if part:
                part.sort(key=operator.itemgetter(2))
                columns = [list(column) for column in zip(*part, strict=True)]
                with self._graph.inserting_after(self._nodes[place]):
                    self._graph.call_function(
                        step, (columns[0], columns[1], number, columns[2])
                    )
        self._graph.erase_node(self._node)

    def _ready(self, gradient: fx.Node, parameter: fx.Node) -> int:
        """Return after which node a parameter may be stepped."""
        of, own = self._memory[gradient], self._memory[parameter]
        found = self._places[gradient]
        for place, node in enumerate(self._nodes[: self._end]):
            if any(self._memory[one] is own for one in node.all_input_nodes) or any(
                self._memory[one] is of for one in _writes(node)
            ):
                found = max(found, place)
        return found

    def _factors(
        self, gradient: fx.Node, ready: int
    ) -> tuple[fx.Node, fx.Node, bool] | None:
        """Return of what a gradient is the product, and whether it is transposed."""
        turned = False
        while gradient.target is _ATEN.t.default and len(gradient.users) == 1:
            gradient, turned = gradient.args[0], not turned  # type: ignore[assignment] # a node
        if gradient.target is not _ATEN.mm.default or len(gradient.users) != 1:
            return None
        one, other = gradient.args
        memory = {self._memory[one], self._memory[other]}  # type: ignore[index] # nodes
        between = self._nodes[self._places[gradient] : ready + 1]
        if any(self._memory[x] in memory for node in between for x in _writes(node)):
            return None
        return one, other, turned  # type: ignore[return-value] # nodes


def _memory(nodes: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Return of each node whose memory it has, as one node that stands for all."""
    roots: dict[fx.Node, fx.Node] = {}

    def root(node: fx.Node) -> fx.Node:
        while roots[node] is not node:
            node = roots[node]
        return node

    for node in nodes:
        roots[node] = node
        for one in _shares(node):
            roots[root(one)] = root(node)
    return {node: root(node) for node in nodes}


def _shares(node: fx.Node) -> Iterator[fx.Node]:
    """Yield whose memory a node's results may have."""
    if node.target in _OF_THE_SAME:
        yield from node.all_input_nodes
    else:
        yield from _marked(node, lambda marked: True)


def _writes(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what a node writes."""
    if node.target in STEPS:
        yield from node.args[2 if node.target is product else 1]  # type: ignore[misc] # nodes
    elif node.target in UPDATES:
        yield from node.all_input_nodes
    else:
        yield from _marked(node, lambda marked: marked.is_write)


def _marked(node: fx.Node, wanted: Any) -> Iterator[fx.Node]:
    """Yield a node's arguments that its schema marks."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is None or not wanted(argument.alias_info):
            continue
        given = (
            node.args[place]
            if place < len(node.args)
            else node.kwargs.get(argument.name)
        )
        for one in given if isinstance(given, list | tuple) else (given,):
            if isinstance(one, fx.Node):
                yield one
