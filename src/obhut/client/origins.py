"""Gradients that go back to where a tensor came from.

A leaf at a worker may stand for a tensor that is elsewhere: one of this process that
was sent, or one of another worker that was moved. When a backward pass reaches the
leaf, what it adds goes there and on through that tensor's history.

Rules:

- What goes back is what one pass adds, and not what ``.grad`` has gathered.
- An origin lives as long as the graph, or a name, that the leaf is in.
- All that goes back to one place goes in one backward pass: two tensors there may share
  a history, which is walked once.

Leak: what goes back to a tensor of this process comes to this process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from obhut.errors import InternalError
from obhut.protocol.messages import (
    NOWHERE,
    Alias,
    Described,
    ReadGrad,
    Run,
    WriteGrad,
)

from .autograd_state import AutogradState, GraphNode
from .held import Held
from .session import Session
from .transfer import fetch, relocate


class Origin:
    """Where a leaf's gradient goes back to.

    Args:
        leaf: the leaf; it requires a gradient.
        source: the tensor that it was made of.

    Attributes:
        source: likewise.
    """

    def __init__(self, leaf: Held, source: torch.Tensor | Held) -> None:
        self.source = source
        # A name of its own: the leaf's may go while the graph is still there.
        self._name = alias(leaf)
        self._before: Held | None = None

    def set_aside(self, state: AutogradState | None) -> None:
        """Let the next pass begin without a gradient, keeping the one that is there.

        Args:
            state: what autograd knows of the leaf, while there is a name for it.
        """
        self._before = None  # after Ctrl-C in a pass, what it had set aside is gone
        if state is not None and state.grad is not None:
            since = self._name.session.cancels
            self._before = self._read(state.ask or state.since != since)
        self._write(None)

    def take(self, sure: bool) -> Held | None:
        """Return what the pass added, and put the whole gradient into its place.

        Args:
            sure: whether it has reached the leaf.
        """
        before, self._before = self._before, None
        added = self._read(not sure)
        if before is not None:
            if added is not None:
                terms = [before.ref, added.ref]
                add = Run("aten.add_.Tensor", [*terms], {}, NOWHERE, 0, False)
                before.session.post(add)
            self._write(before)
        return added

    def _read(self, ask: bool) -> Held | None:
        session = self._name.session
        grad = Held(session, session.new_id(), self._name.spec)
        if not ask:
            session.post(ReadGrad(self._name.id, grad.id))
            return grad
        reply = session.ask(ReadGrad(self._name.id, grad.id, describe=True))
        if not isinstance(reply, Described):
            raise InternalError("a gradient was expected to be described")
        return None if reply.specs[0] is None else grad

    def _write(self, grad: Held | None) -> None:
        request = WriteGrad(self._name.id, None if grad is None else grad.id)
        self._name.session.post(request)


@dataclass(frozen=True, slots=True)
class Returns:
    """What goes back, by place.

    Attributes:
        here: tensors of this process with their gradients.
        there: by session, tensors there with their gradients, which are there too.
    """

    here: Sequence[tuple[torch.Tensor, torch.Tensor]]
    there: Mapping[Session, Sequence[tuple[Held, Held]]]


def alias(held: Held) -> Held:
    """Return another name for the same object, without what autograd knows of it."""
    held.check()
    session = held.session
    name = Held(session, session.new_id(), held.spec)
    session.post(Alias(held.id, name.id))
    return name


def tie(leaf: Held, source: torch.Tensor | Held) -> None:
    """Let the gradients of a leaf go back to the tensor that it was made of."""
    leaf.tracked().place().origin = Origin(leaf, source)


def set_aside(nodes: Sequence[tuple[GraphNode, bool]]) -> None:
    """Prepare a pass that may reach these leaves, each with whether it surely does."""
    for node, _ in nodes:
        node.origin.set_aside(node.state)


def bring_back(nodes: Sequence[tuple[GraphNode, bool]]) -> Returns:
    """Bring what a pass added to these leaves to where they came from.

    Raises:
        ReleaseRefusedError: if a policy keeps it where it is.
    """
    here: list[tuple[torch.Tensor, Held]] = []
    there: dict[Session, list[tuple[Held, Held]]] = {}
    for node, sure in nodes:
        added, source = node.origin.take(sure), node.origin.source
        if added is None:
            continue
        if isinstance(source, torch.Tensor):
            if source.requires_grad:
                here.append((source, added))
            continue
        (moved,) = relocate([added], source.session)
        there.setdefault(source.session, []).append((source, moved))
    values = fetch([added for _, added in here]).result() if here else []
    return Returns(
        [(source, value) for (source, _), value in zip(here, values, strict=True)],
        there,
    )
