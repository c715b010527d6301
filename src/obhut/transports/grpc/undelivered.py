"""What a requester is told of a delivery that failed.

Leak: an error may name this worker's peers, and where they are. Nothing of it but its
kind is told, to who named the worker that the delivery was for.
"""

from __future__ import annotations

from collections.abc import Mapping

from obhut.errors import (
    AccessDeniedError,
    CallError,
    LedgerError,
    LimitError,
    ObhutError,
    RemoteProtocolError,
    TransportError,
    WorkerNotFoundError,
)
from obhut.protocol.messages import Refused

_TOLD: Mapping[type[ObhutError], tuple[type[ObhutError], str]] = {
    LedgerError: (
        AccessDeniedError,
        "{worker} delivers nothing to {to}: its record of releases does not go on from "
        "the one that {worker} saw before; ask the owners of both",
    ),
    CallError: (
        WorkerNotFoundError,
        "{worker} has no way to {to}; if its owner is to name that worker as a peer, "
        "with its address, give them this id",
    ),
    AccessDeniedError: (
        AccessDeniedError,
        "{to} takes nothing from {worker}; ask its owner",
    ),
    LimitError: (
        LimitError,
        "{to} did not take what {worker} delivered; send less at once",
    ),
    RemoteProtocolError: (
        RemoteProtocolError,
        "{worker} and {to} do not understand each other; do both run the same "
        "version of obhut?",
    ),
    TransportError: (
        TransportError,
        "{worker} could not reach {to}; try again, and if it goes on, ask its owner "
        "whether it is there",
    ),
}
"""What a requester is told of a delivery that failed, by what went wrong."""


def undelivered(worker: str, to: str, error: Exception) -> Refused:
    """Say that a delivery failed, to who named the worker that it was for.

    Leak: the error may name this worker's peers, and where they are; nothing of
    it but its kind is told.
    """
    for kind, (told, words) in _TOLD.items():
        if isinstance(error, kind):
            return Refused(told.__name__, words.format(worker=worker, to=to))
    return Refused("InternalError", f"{worker} could not deliver to {to}")
