"""Values that stay at a worker beyond a session, under a name and a number.

::

    store(session, "run 7/head", 30, tensors)    # returns before it is done
    stored(session, "run 7/head")                # [30], once it is done
    again = recall(session, "run 7/head", 30)    # in any later session

Rule: nothing travels. What is stored and recalled stays where it was computed.
"""

from __future__ import annotations

from collections.abc import Iterable

from obhut.errors import CallError, InternalError, LocationError
from obhut.protocol.limits import STATE_NAME_CHARACTERS, STATE_TENSORS
from obhut.protocol.messages import (
    Described,
    ListState,
    RecallState,
    StoreState,
    Versions,
)

from .dispatch import to_spec, wrap
from .held import Held
from .remote_tensor import RemoteTensor
from .session import Session


def store(
    session: Session, name: str, version: int, tensors: Iterable[RemoteTensor]
) -> None:
    """Store tensors, as ``RemoteWorker.store`` says it."""
    _check_name(name)
    if not 0 <= version <= 2**62:
        raise CallError(f"expected a version from 0 on, got {version}")
    helds = [_held(session, tensor) for tensor in tensors]
    if not 0 < len(helds) <= STATE_TENSORS:
        raise CallError(
            f"expected from 1 to {STATE_TENSORS:,} tensors to store, got {len(helds):,}"
        )
    ids = tuple(held.id for held in helds)
    leaving = sum(held.spec.nbytes for held in helds)
    session.ask_later(StoreState(name, version, ids), leaving)


def stored(session: Session, name: str) -> list[int]:
    """Return the versions of a name, as ``RemoteWorker.stored`` says it."""
    _check_name(name)
    session.drain()  # what is stored is of an earlier batch
    reply = session.ask(ListState(name))
    if not isinstance(reply, Versions):
        raise InternalError("a list of versions was answered with something else")
    return list(reply.versions)


def recall(session: Session, name: str, version: int) -> list[RemoteTensor]:
    """Return what was stored, as ``RemoteWorker.recall`` says it."""
    _check_name(name)
    session.drain()
    first = session.new_ids(STATE_TENSORS)
    reply = session.ask(RecallState(name, version, first))
    if not isinstance(reply, Described):
        raise InternalError("what is stored was answered with something else")
    found = []
    for id, sent in enumerate(reply.specs, first):
        if sent is None:
            raise InternalError("what is stored was answered with something else")
        look = to_spec(sent)
        held = Held(session, id, look.plain)
        if look.requires_grad:
            held.tracked().become_leaf(True)
        found.append(wrap(RemoteTensor, held))
    return found


def _held(session: Session, tensor: object) -> Held:
    """Return the hold on a tensor at that worker.

    Raises:
        LocationError: if it is elsewhere.
    """
    if not isinstance(tensor, RemoteTensor):
        raise LocationError(
            "store()", ["this process"], f"store what is at {session.worker}"
        )
    held = tensor._held
    held.check()
    if held.session is not session:
        raise LocationError(
            "store()", [held.session.worker], f"store what is at {session.worker}"
        )
    return held


def _check_name(name: str) -> None:
    """Refuse a name that no worker takes.

    Raises:
        CallError: if it is one.
    """
    if not (0 < len(name) <= STATE_NAME_CHARACTERS and name.isprintable()):
        raise CallError(
            f"expected a name of 1 to {STATE_NAME_CHARACTERS} characters that can be "
            f"printed, got {name[:STATE_NAME_CHARACTERS]!r}"
        )
