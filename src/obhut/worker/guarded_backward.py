"""Backward passes behind a guard: whether one fails on values does not show.

Leak: a requester sees errors, and which tensors have a gradient. Rules:

- What may be told depends on the graph's structure only, and is found without running
  it: no graph, one that was freed or written to since, a gradient of another shape.
- What is raised beside that depends on values, or may. The gradients of all tensors
  that the pass would have reached are then NaN, and the graph counts as freed where a
  success would have freed it; only the owner's log says so.
- After a pass that failed in the middle the same gradients exist, whatever is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from .guarded import nothing, spoil
from .shapes import spec_of

# Any below: PyTorch's nodes have no usable type.

_SPENT = "obhut.spent"
"""What marks a node, in its metadata, as freed though PyTorch does not know it."""

FREED = (
    "Trying to backward through the graph a second time (or directly access saved "
    "tensors after they have already been freed). Saved intermediate values of the "
    "graph are freed when you call .backward() or autograd.grad(). Specify "
    "retain_graph=True if you need to backward through the graph a second time or if "
    "you need to access saved tensors after calling backward."
)
"""PyTorch's own words. Source: ERR_BACKWARD_TWICE in saved_variable.cpp."""

_WRITTEN = "modified by an inplace operation"


class Pass(NamedTuple):
    """A backward pass that is asked for.

    Attributes:
        roots: where it begins.
        grads: their gradients; None for 1.
        inputs: where it ends; None for all leaves.
        retain: whether the graph stays.
        create: whether a graph of the gradients is recorded.
    """

    roots: Sequence[torch.Tensor]
    grads: Sequence[torch.Tensor | None]
    inputs: Sequence[torch.Tensor] | None
    retain: bool
    create: bool


class Backwards:
    """Runs the backward passes of one session.

    Args:
        log: takes a line for the owner, without values.
        held: yields the session's tensors, which may ask to keep their gradients.
    """

    def __init__(
        self, log: Callable[[str], None], held: Callable[[], Iterable[torch.Tensor]]
    ) -> None:
        self._log = log
        self._held = held
        self._freed = 0  # nodes from this number on are newer than any freed graph

    def run(self, asked: Pass) -> None:
        """Accumulate gradients."""
        nodes = self._reached(asked)
        try:
            torch.autograd.backward(
                asked.roots,
                asked.grads,
                retain_graph=asked.retain,
                create_graph=asked.create,
                inputs=asked.inputs,
            )
        except Exception as error:
            told = self._failed("backward", asked, nodes, error)
            self._accumulate_nothing(asked, nodes)
            if told is not None:
                raise told from None
        finally:
            self._finish(asked, nodes)

    def grad(self, asked: Pass) -> tuple[torch.Tensor | None, ...]:
        """Return gradients; None for unreached inputs."""
        inputs = asked.inputs or ()
        nodes = self._reached(asked)
        try:
            found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
                asked.roots,
                inputs,
                asked.grads,
                retain_graph=asked.retain,
                create_graph=asked.create,
                allow_unused=True,
            )
            return found
        except Exception as error:
            told = self._failed("grad", asked, nodes, error)
            if told is not None:
                raise told from None
            edges = _edges(asked.roots, nodes)
            return tuple(
                self._nothing(asked, one) if _edge(one, nodes) in edges else None
                for one in inputs
            )
        finally:
            self._finish(asked, nodes)

    def _reached(self, asked: Pass) -> list[Any]:
        """Return the nodes of the roots' graphs.

        Raises:
            RuntimeError: if the pass needs one that was freed.
        """
        nodes = [root.grad_fn for root in asked.roots if root.grad_fn is not None]
        seen = set(nodes)
        old = False
        freed = self._freed
        for node in nodes:
            if node._sequence_nr() < freed:
                old = True
            for after, _ in node.next_functions:
                if after is not None and after not in seen:
                    seen.add(after)
                    nodes.append(after)
        if old and any(_is_freed(node) for node in _needed(asked, nodes)):
            _check(asked)
            raise RuntimeError(FREED)
        return nodes

    def _failed(
        self, what: str, asked: Pass, nodes: Sequence[Any], error: Exception
    ) -> Exception | None:
        """Return what may be told of a failure, or None.

        Raises:
            Exception: what PyTorch checks before it begins.
        """
        _check(asked)
        if any(_has_no_derivative(node) for node in _needed(asked, nodes)):
            return NotImplementedError(
                "an operator of the graph has no derivative; use .detach() before it"
            )
        if any(_was_written(node) for node in _needed(asked, nodes)):
            return RuntimeError(
                "one of the variables needed for gradient computation has been "
                "modified by an inplace operation"
            )
        self._log(f"{what} failed: {type(error).__name__}; its gradients are NaN")
        for node in () if asked.retain else _needed(asked, nodes):
            if _keeps(node):
                node.metadata[_SPENT] = True
        return None

    def _finish(self, asked: Pass, nodes: Sequence[Any]) -> None:
        """Take in that a pass has ended: what it freed is older than what comes."""
        if asked.retain:
            return
        self._freed = torch._C._autograd._get_sequence_nr()
        for node in nodes:
            if node.__class__.__name__ == _OPAQUE:
                node.metadata[_SPENT] = True

    def _accumulate_nothing(self, asked: Pass, nodes: Sequence[Any]) -> None:
        """Leave NaN where a success would have left a gradient."""
        needed = _needed(asked, nodes)
        reached = [n.variable for n in needed if hasattr(n, "variable")]
        reached += [root for root in asked.roots if root.is_leaf]
        if asked.inputs is not None:
            wanted = {id(one) for one in asked.inputs}
            reached = [leaf for leaf in reached if id(leaf) in wanted]
            reached += [one for one in asked.inputs if one.grad_fn in set(needed)]
        among = set(needed)
        reached += [t for t in self._held() if t.retains_grad and t.grad_fn in among]
        for tensor in reached:
            if tensor.grad is not None and not asked.create:
                spoil(tensor.grad)
            else:
                tensor.grad = self._nothing(asked, tensor)

    def _nothing(self, asked: Pass, tensor: torch.Tensor) -> torch.Tensor:
        """Return a gradient of NaN, with a graph if one is recorded."""
        made = nothing(spec_of(torch.empty_like(tensor, requires_grad=False)))
        return made.requires_grad_() * 1 if asked.create else made


_OPAQUE = "CppFunction"
"""Nodes that don't show what they keep."""


def _check(asked: Pass) -> None:
    """Raise what PyTorch checks before it runs a graph."""
    grads = torch.autograd._make_grads(
        tuple(asked.roots), tuple(asked.grads), is_grads_batched=False
    )
    del grads
    for number, root in enumerate(asked.roots):
        if not root.requires_grad:
            raise RuntimeError(
                f"element {number} of tensors does not require grad and does not have "
                "a grad_fn"
            )
    if asked.inputs is not None:
        if not asked.inputs:
            raise RuntimeError("`inputs` argument cannot be empty.")
        for one in asked.inputs:
            if not one.requires_grad:
                raise RuntimeError(
                    "One of the differentiated Tensors does not require grad"
                )


def _edge(tensor: torch.Tensor, nodes: Sequence[Any]) -> tuple[Any, int] | None:
    """Return where a tensor's gradient arrives."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn, tensor.output_nr
    for node in nodes:
        if getattr(node, "variable", None) is tensor:
            return node, 0
    return None


def _edges(roots: Sequence[torch.Tensor], nodes: Sequence[Any]) -> set[Any]:
    """Return where gradients arrive in the roots' graphs."""
    edges: set[Any] = {
        (root.grad_fn, root.output_nr) for root in roots if root.grad_fn is not None
    }
    for node in nodes:
        edges.update(node.next_functions)
    return edges


def _needed(asked: Pass, nodes: Sequence[Any]) -> Sequence[Any]:
    """Return the nodes that lie on the way from roots to inputs."""
    if asked.inputs is None:
        return nodes
    needed = {edge[0] for one in asked.inputs if (edge := _edge(one, nodes))}
    ends = {one.grad_fn for one in asked.inputs if one.grad_fn is not None}
    before: dict[Any, list[Any]] = {}
    for node in nodes:
        for after, _ in node.next_functions:
            if after is not None:
                before.setdefault(after, []).append(node)
    passed: set[Any] = set()
    todo = list(needed)
    for node in todo:
        for earlier in before.get(node, ()):
            passed.add(earlier)
            if earlier not in needed:
                needed.add(earlier)
                todo.append(earlier)
    # Where a pass ends at a node's results, the node itself is not run.
    return [n for n in nodes if n in needed and (n not in ends or n in passed)]


def _saved(node: Any) -> Iterable[Any]:
    """Yield what a node keeps; raises as PyTorch does where it can not be had."""
    if getattr(node, "keeps_nothing", False):
        return  # PyTorch calls such a node freed, and runs it again all the same
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            yield getattr(node, name.removeprefix("_raw"), None)
            if name == "_raw_saved_tensors":
                yield from node.saved_tensors


def _is_freed(node: Any) -> bool:
    if _SPENT in node.metadata:
        return True
    try:
        for _ in _saved(node):
            pass
    except RuntimeError as error:
        return str(error) == FREED
    return False


def _was_written(node: Any) -> bool:
    try:
        for _ in _saved(node):
            pass
    except RuntimeError as error:
        return _WRITTEN in str(error)
    return False


def _has_no_derivative(node: Any) -> bool:
    name: str = node.name()
    return name.endswith("::NotImplemented")


def _keeps(node: Any) -> bool:
    """Tell whether a node that was freed can not run again."""
    if node.__class__.__name__ == _OPAQUE:
        return True
    try:
        return any(saved is not None for saved in _saved(node))
    except RuntimeError:
        return True
