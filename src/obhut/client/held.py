"""A client's hold on one object at a worker."""

from __future__ import annotations

from typing import NoReturn

from obhut.errors import NotSendableError, ObjectNotFoundError
from obhut.protocol.messages import Ref
from obhut.worker.shapes import Spec

from .autograd_state import AutogradState
from .session import Asked, Session


class Held:
    """One name for one object at a worker; the object goes when the name goes.

    Attributes:
        session: with which worker.
        ref: the object's id, as it stands in messages.
        spec: what the tensor looks like, without requires_grad.
        autograd: what autograd knows of it; None if nothing.
        spent: why the name can not be used any more; empty while it can.
        arriving: the move that the object is still on its way with, and the hold
            on it where it came from.
        kept: whether the object stays when the name goes.
        blocked: whether ``check`` must be called before the name is used.
        tags: the tags it was given.
        description: what it was described as.
    """

    __slots__ = (
        "__weakref__",
        "arriving",
        "autograd",
        "blocked",
        "description",
        "kept",
        "ref",
        "session",
        "spec",
        "spent",
        "tags",
    )

    def __init__(
        self,
        session: Session,
        id: int,
        spec: Spec,
        autograd: AutogradState | None = None,
    ) -> None:
        self.session = session
        self.ref = Ref(id)
        self.spec = spec
        self.autograd = autograd
        self.kept = False
        self.spent = ""
        self.arriving: tuple[Asked, Held] | None = None
        self.blocked = False
        self.tags: tuple[str, ...] = ()
        self.description = ""
        session.watch(self, id)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # A second hold on the same id would free the object under the first.
        raise NotSendableError(
            f"the hold on an object at {self.session.worker}",
            "copy the remote tensor itself: x.copy()",
        )

    @property
    def id(self) -> int:
        """The object's id."""
        return self.ref.id

    def check(self) -> None:
        """Check that the name can be used now, waiting for what is on its way.

        Raises:
            ObjectNotFoundError: if the object was fetched, moved or cleared.
            ObhutError: what went wrong with its move.
        """
        if self.spent:
            raise ObjectNotFoundError(self.ref.id, self.session.worker, self.spent)
        if self.arriving is not None:
            move, source = self.arriving
            arrived = move.wait()
            self.arriving, self.blocked = None, False
            if not arrived:
                # It stayed where it was: so does the name.
                self.session.forget(self.ref.id)
                self.session, self.ref = source.session, source.ref
                self.session.watch(self, self.ref.id)
            source.session.raise_unseen()

    def spend(self, why: str) -> None:
        """Let the name go for good: the object went elsewhere."""
        self.spent, self.blocked = why, True
        self.session.unwatch(self.ref.id)

    def keep(self, kept: bool) -> None:
        """Let the object stay when the name goes, or go with it."""
        if kept is not self.kept and not self.spent:
            if kept:
                self.session.unwatch(self.ref.id)
            else:
                self.session.watch(self, self.ref.id)
        self.kept = kept

    def arrive(self, move: Asked, source: Held) -> None:
        """Let the first use wait until the other worker has delivered the object.

        If it does not, the name goes back to the object where it was.
        """
        self.arriving, self.blocked = (move, source), True

    def tracked(self) -> AutogradState:
        """Return what autograd knows, beginning to keep it if need be."""
        if self.autograd is None:
            self.autograd = AutogradState()
        return self.autograd

    def requires_grad(self) -> bool:
        """Tell whether autograd at the worker records what is done with it."""
        return self.autograd is not None and self.autograd.records()

    def is_tracked_leaf(self) -> bool:
        """Tell whether it is a leaf that requires a gradient."""
        state = self.autograd
        return state is not None and state.is_leaf and state.requires_grad
