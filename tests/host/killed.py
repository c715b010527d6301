"""Runs an aggregator's gate and ledger in processes that are killed at a point.

A request is a line of JSON, ``[act, folder, point]``. The point is a name, or the
number of the call, of all that the act makes, at which it is killed; 0 for none. The
answer is a line of JSON with the exit code, -9 if it was killed, and whether it had
replied.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from obhut.guard import release
from obhut.guard.audit import Auditor
from obhut.guard.policy import Quorum, encode
from obhut.host.gate import Gate
from obhut.host.ledger import FILE, Ledger, begin_anew
from obhut.protocol.messages import ReleaseQuestion

from .test_ledger import SIGNER

OWNERS = ("a", "b", "c")
POLICY = Quorum(  # releases that are written down were computed by nobody
    aggregators=("hub",), contributors=OWNERS, requesters=("me",), programs="any"
)
POINTS = ("decided", "appended", "marked")
"""Before the entry is written, between it and the mark, and before the reply."""


def opened(folder: Path) -> Ledger:
    """Return the ledger of a folder."""
    return Ledger(folder / FILE, SIGNER)


def asked(number: int) -> ReleaseQuestion:
    """Return a request that may be granted, as its session makes it."""
    terms = tuple((owner, f"{owner}/{number}", 1, 3) for owner in OWNERS)
    return ReleaseQuestion(
        "sum", terms, tuple((owner, encode(POLICY)) for owner in OWNERS)
    )


class Killing:
    """Ends the process at a point.

    Args:
        point: its name, or its number.
    """

    def __init__(self, point: str | int) -> None:
        self._point = point
        self._seen = 0

    def at(self, point: str) -> None:
        """Take in that a point is reached."""
        if point == self._point:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Count calls from here on, of Python's own functions and of others."""
        if isinstance(self._point, int) and self._point:
            sys.setprofile(self._called)

    def _called(self, frame: object, event: str, argument: object) -> None:
        self._seen += 1
        if self._seen == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


class Recording:
    """Writes decisions down, and passes each point."""

    def __init__(self, ledger: Ledger, killing: Killing) -> None:
        self._ledger = ledger
        self._killing = killing
        write = ledger._mark.write

        def marked(head: object) -> None:
            killing.at("appended")
            write(head)  # type: ignore[arg-type]

        ledger._mark.write = marked  # type: ignore[method-assign]

    def extend(
        self, decided: Sequence[tuple[release.Release, release.Decision]], time: int
    ) -> None:
        """Write decisions down."""
        self._killing.at("decided")
        self._killing.watch()
        self._ledger.extend(decided, time)
        self._killing.at("marked")


def decide(folder: Path, killing: Killing, reply: Callable[[], object]) -> None:
    """Start, and grant one request."""
    ledger = opened(folder)
    auditor = Auditor("hub", POLICY)
    ledger.replay(auditor)
    gate = Gate(POLICY, auditor, Recording(ledger, killing))
    if gate.decide("me", [asked(ledger.head.number)]) != [None]:
        raise ValueError("it was refused")
    reply()


def begin(folder: Path, killing: Killing, reply: Callable[[], object]) -> None:
    """Start for the first time."""
    killing.watch()
    opened(folder)
    reply()


def anew(folder: Path, killing: Killing, reply: Callable[[], object]) -> None:
    """Begin anew."""
    killing.watch()
    begin_anew(folder / FILE, SIGNER, "it was lost")
    reply()


ACTS = {"decide": decide, "begin": begin, "anew": anew}


def main() -> None:
    """Answer requests."""
    for line in sys.stdin:
        act, folder, point = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            ACTS[act](Path(folder), Killing(point), partial(os.write, writer, b"r"))
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        replied = os.read(reader, 1) == b"r"
        os.close(reader)
        sys.stdout.write(json.dumps([os.waitstatus_to_exitcode(status), replied]))
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
