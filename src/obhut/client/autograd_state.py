"""The client's picture of autograd: what requires a gradient, and who has one.

Autograd itself runs at the worker. The client keeps just enough to answer
``requires_grad``, ``is_leaf`` and "is there a ``.grad``?" without asking: for
each result that requires a gradient, which inputs it came from.

Rules:

- A tensor without an ``AutogradState`` requires no gradient and is a leaf.
- Views share their base's fate: what is written into one in place belongs to the
  history of all.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Final


class GraphNode:
    """A place in the graph: an operator's results, or a leaf.

    Attributes:
        parents: the places that its inputs came from.
        origin: where a leaf's gradient goes back to, if it does.
    """

    __slots__ = ("_state", "origin", "parents")

    # A weak reference: the tensor refers to its place, and a cycle would keep
    # gradients at the worker until Python looks for cycles.

    def __init__(
        self, parents: tuple[GraphNode, ...], state: AutogradState | None = None
    ) -> None:
        self.parents = parents
        self._state = None if state is None else weakref.ref(state)
        # Any: its class is defined above this module.
        self.origin: Any = None

    @property
    def state(self) -> AutogradState | None:
        """The tensor that gets a gradient here, while there is a name for it."""
        return None if self._state is None else self._state()

    def retain(self, state: AutogradState) -> None:
        """Let a tensor get a gradient here."""
        self._state = weakref.ref(state)


VAGUE: Final = GraphNode(())
"""A parent of results whose gradient may not be passed on, though it is recorded."""


class _PendingGrad:
    """A gradient that the worker has and no name refers to yet."""

    def __repr__(self) -> str:
        return "PENDING"


PENDING: Final = _PendingGrad()
"""Stands for a gradient that the worker has and no name refers to yet."""


class AutogradState:
    """What autograd knows of one remote tensor.

    Attributes:
        requires_grad: whether it requires a gradient by itself.
        is_leaf: whether it is no operator's result, as autograd sees it.
        node: its place in the graph, if it requires a gradient.
        grad: None, ``PENDING``, or the remote tensor that is its gradient.
        ask: whether only the worker knows what the gradient looks like.
        since: how often the session had been cancelled when ``grad`` was known.
        sources: the places that a gradient with a graph of its own came from.
        retains_grad: whether it keeps its gradient although it is no leaf.
        base: the state of what it is a view of.
        joined: its place together with its base's, where that was rewritten.
        rewritten: whether something that requires a gradient was written into it,
            or into a view of it, in place.
    """

    __slots__ = (
        "__weakref__",
        "ask",
        "base",
        "grad",
        "is_leaf",
        "joined",
        "node",
        "requires_grad",
        "retains_grad",
        "rewritten",
        "since",
        "sources",
    )

    def __init__(self, base: AutogradState | None = None) -> None:
        self.requires_grad = False
        self.is_leaf = True
        self.node: GraphNode | None = None
        # Any: a remote tensor, whose class is defined above this module.
        self.grad: Any = None
        self.ask = False
        self.since = 0
        self.sources: tuple[GraphNode, ...] = ()
        self.retains_grad = False
        self.base = base
        self.rewritten = False
        self.joined: GraphNode | None = None

    def records(self) -> bool:
        """Tell whether the tensor requires a gradient, by itself or by its base."""
        return self.requires_grad or (self.base is not None and self.base.rewritten)

    def place(self) -> GraphNode:
        """Return the tensor's place in the graph; it must require a gradient."""
        own = self.node
        base = self.base
        if base is not None and base.rewritten and base.node is not None:
            parents = (base.node,) if own is None else (own, base.node)
            if self.joined is None or self.joined.parents != parents:
                self.joined = GraphNode(parents, self if self.retains_grad else None)
            return self.joined
        if own is None:
            own = self.node = GraphNode((), self)
        return own

    def become_leaf(self, requires_grad: bool) -> None:
        """Make it a leaf that requires a gradient, or one that does not."""
        self.requires_grad = requires_grad
        self.is_leaf = True
        self.rewritten = False
        self.node = GraphNode((), self) if requires_grad else None

    def become_result(self, parents: tuple[GraphNode, ...]) -> None:
        """Make it the result of an operator that autograd recorded."""
        self.requires_grad = True
        self.is_leaf = False
        self.node = GraphNode(parents, self if self.retains_grad else None)

    def become_unrecorded(self) -> None:
        """Make it a view, taken without grad mode, of what requires a gradient.

        It requires one too, in name: none ever reaches it or passes through it.
        """
        self.requires_grad = True
        self.node = GraphNode(())

    def write(self, parents: tuple[GraphNode, ...]) -> None:
        """Take in that an operator wrote into it in place, recorded by autograd."""
        own = (self.place(),) if self.records() else ()
        base = self.base
        self.become_result((*own, *parents))
        self.rewritten = True
        if base is not None:
            before = (base.node,) if base.node is not None else ()
            base.become_result((*before, *parents, *own))
            base.rewritten = True


def writable(state: AutogradState | None) -> str | None:
    """Return why a tensor can not be written in place while autograd records.

    Returns:
        PyTorch's own words, or None where it can be written.
    """
    if state is None:
        return None
    if state.requires_grad and state.is_leaf:
        return (
            "a leaf Variable that requires grad is being used in an in-place operation."
        )
    base = state.base
    if base is not None and base.requires_grad and base.is_leaf:
        return (
            "a view of a leaf Variable that requires grad is being used in an in-place "
            "operation."
        )
    return None


def reach(
    roots: list[GraphNode], within: Sequence[AutogradState] | None = None
) -> tuple[list[tuple[AutogradState, bool]], list[tuple[GraphNode, bool]]]:
    """Return the tensors that a backward pass from these places gives gradients.

    Args:
        roots: where the pass begins.
        within: only these, leaves or not; None for all leaves and all that retain.

    Returns:
        Each tensor, and whether it is sure to get one; and the places among theirs
        whose gradients go back to an origin, likewise.
    """
    found: list[tuple[AutogradState, bool]] = []
    tied: list[tuple[GraphNode, bool]] = []
    wanted = None if within is None else {id(s.place()): s for s in within}
    seen: set[int] = set()
    waiting, vague, sure = list(roots), list[GraphNode](), True
    while waiting or vague:
        if not waiting:
            waiting, vague, sure = vague, [], False
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        state = node.state if wanted is None else wanted.get(id(node))
        if state is not None:
            found.append((state, sure))
        if node.origin is not None and (wanted is None or state is not None):
            tied.append((node, sure))
        (vague if VAGUE in node.parents else waiting).extend(node.parents)
    return found, tied
