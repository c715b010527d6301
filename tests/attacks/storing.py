"""Attacks by what stays at an owner between sessions.

It is as private as the rows, and was made as it was made: neither a name nor a detour
over the owner's disk changes that.
"""

from __future__ import annotations

from obhut.client.workers import RemoteWorker

from .attack import Attack, Family
from .direct import FETCH
from .provenance import same, vector
from .stage import Remote, Stage


def _recalled(stage: Stage) -> object:
    bob = stage.at["bob"]
    bob.store("x", 1, [stage.vector("bob")])
    return bob.recall("x", 1)[0].get()


def _stored(worker: RemoteWorker, counts: bool) -> Remote:
    worker.store("x", 1, [vector(worker) * float(counts)])
    return worker.recall("x", 1)[0]


def _chosen(worker: RemoteWorker, counts: bool) -> Remote:
    """Both are stored at each owner, and one is recalled."""
    for version in range(2):
        worker.store("x", version, [vector(worker) * float(version)])
    return worker.recall("x", int(counts))[0]


def _named(worker: RemoteWorker, counts: bool) -> Remote:
    """Under two names, of which one is recalled, then used alike."""
    worker.store("rows", 1, [vector(worker)])
    worker.store("zeros", 1, [vector(worker) * 0])
    return worker.recall("rows" if counts else "zeros", 1)[0] * 2


def _replaced(worker: RemoteWorker, counts: bool) -> Remote:
    """It is stored alike everywhere, and replaced at all but one."""
    worker.store("x", 1, [vector(worker) * 1])
    if not counts:
        worker.store("x", 1, [vector(worker) * 0])
    return worker.recall("x", 1)[0]


ATTACKS = (
    Attack(
        "recalled",
        "get() what was stored and recalled",
        Family.EGRESS,
        _recalled,
        FETCH,
        refused="place",
    ),
    same("stored", "store zeros at all but one", _stored),
    same("stored versions", "recall another version at all but one", _chosen),
    same("stored names", "recall another name at all but one", _named),
    same("stored again", "store zeros in its place at all but one", _replaced),
)
