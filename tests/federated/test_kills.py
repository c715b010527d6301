"""Whoever is killed during a training, it ends as if nobody had been.

At a few points for each, or at as many as ``OBHUT_KILLS`` says (``make kills``). What
passes here is real time: processes start again while the client waits.
"""

from __future__ import annotations

import contextlib
import copy
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.federated.killing import (
    HUB,
    POINTS,
    ROUNDS,
    TRAINING,
    Hospitals,
    Kill,
    Outcome,
    federate,
    make_model,
)

from obhut.client.network import connect
from obhut.errors import TransportError
from obhut.federated import Checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


LAST = 0.9
"""From here on it is the last validation."""


def points(*few: float) -> Sequence[float]:
    """Return shares of a training: a few, or points spread over all of it."""
    return [(k + 0.5) / POINTS for k in range(POINTS)] if POINTS else few


WORKERS = [
    *(("bob", "session", share, False) for share in points(0.02, 0.52)),
    *((HUB, "session", share, False) for share in points()),
    *(("bob", "process", share, False) for share in points()),
    *((HUB, "process", share, False) for share in points(0.7)),
    *(("bob", "process", share, True) for share in points(0.6)),
]
"""Processes of sessions go in the first validation and in a training; an aggregator
that starts again goes on with its record of releases."""

CLIENTS = [
    *(("request", share, False) for share in points(0.4)),
    *(("file", share, False) for share in points(0.62)),
    *(("request", share, True) for share in points(0.5)),
]


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    """Three owners and an aggregator that serve."""
    with Hospitals(tmp_path_factory.mktemp("hospitals")) as hospitals:
        yield hospitals


@pytest.fixture(scope="module")
def wholes(hospitals: Hospitals) -> Sequence[Outcome]:
    """What trainings come to in which nobody is killed, without kept heads and with."""
    found: list[Outcome] = []
    for kept in (False, True):
        outcome = hospitals.train_elsewhere(hospitals.folder(), kept=kept)
        assert outcome is not None
        assert "run again" not in outcome.said
        found.append(outcome)
    return found


@pytest.mark.parametrize(("who", "what", "share", "kept"), WORKERS)
def test_a_worker_that_is_killed(
    hospitals: Hospitals,
    wholes: Sequence[Outcome],
    who: str,
    what: str,
    share: float,
    kept: bool,
) -> None:
    """The round is run again, whoever was lost; model and rounds are bit-identical.

    What computes at a worker is two processes there: one of them has the rows, and
    nobody is told that it ended.
    """
    whole = wholes[kept]
    at = max(1, int(share * whole.seen["request"]))
    outcome = hospitals.train(Kill(who, what, at), kept, retries=3)
    assert outcome == whole
    again = [line for line in outcome.said.splitlines() if "run again" in line]
    print(who, what, at, *again, sep="\n  ")  # noqa: T201 # with -rP
    # Who has delivered its last is not missed at the very end.
    assert len(again) == 1 or (share > LAST and not again)
    assert all(who in line or "all owners" in line for line in again)


@pytest.mark.parametrize(("kind", "share", "kept"), CLIENTS)
def test_a_client_that_is_killed(
    hospitals: Hospitals,
    wholes: Sequence[Outcome],
    tmp_path: Path,
    kind: str,
    share: float,
    kept: bool,
) -> None:
    """It goes on from its last checkpoint, which is whole; also if it wrote one."""
    whole = wholes[kept]
    at = max(1, int(share * whole.seen[kind]))
    assert hospitals.train_elsewhere(tmp_path, kind, at, kept=kept) is None
    last = max(Checkpoint(tmp_path).numbers(), default=-1)
    outcome = hospitals.train_elsewhere(tmp_path, kept=kept)
    assert outcome == whole
    said = [line.split("  ")[0] for line in outcome.said.splitlines()]
    assert [line for line in said if line.startswith("round")] == [
        f"round {number}/{ROUNDS}" for number in range(last + 1, ROUNDS + 1)
    ]
    print(kind, at, f"went on after round {last}")  # noqa: T201 # with -rP


class Screen(io.StringIO):
    """Takes what is said on standard error, and does something about one line of it.

    Args:
        about: part of the line.
        act: what is done when it is said.
    """

    def __init__(self, about: str, act: Callable[[], object]) -> None:
        super().__init__()
        self._about, self._act = about, act

    def write(self, text: str) -> int:
        """Take a text."""
        written = super().write(text)
        if self._about in text:
            self._about = "\0"
            self._act()
        return written


@pytest.mark.skipif(not POINTS, reason="takes a minute: make kills")
def test_a_worker_that_is_away(hospitals: Hospitals) -> None:
    """Between two trainings its process ends, and the aggregator's session.

    Who does not wait hears who is away. Ctrl-C ends the wait, and leaves all as it was.
    Who waits goes on when it is back.
    """
    kill = [Kill("bob", "process", 0), Kill(HUB, "session", 0)]
    model = make_model()
    with connect(*hospitals.places, folder=hospitals.root / "me") as net:
        federation = federate(net)
        federation.fit(model, TRAINING, rounds=1, progress=False)
        hospitals.kill(kill[0].who)
        hospitals.end(kill[1])
        before, losses = copy.deepcopy(model), federation.history
        with pytest.raises(TransportError, match=r"at (hub|bob)"):
            federation.fit(model, TRAINING, rounds=1, progress=False)
        with pytest.raises(TransportError, match=r"^bob did not come back"):
            federation.reconnect(tries=1)
        options: dict[str, Any] = {"rounds": 1, "retries": 1, "on_missing": "wait"}
        screen = Screen("bob is not there", partial(signal.raise_signal, signal.SIGINT))
        with contextlib.redirect_stderr(screen), pytest.raises(KeyboardInterrupt):
            federation.fit(model, TRAINING, **options)
        assert not federation.history
        assert all(map(torch.equal, model.parameters(), before.parameters()))
        screen = Screen("bob is not there", partial(hospitals.start_later, "bob"))
        try:
            with contextlib.redirect_stderr(screen):
                federation.fit(model, TRAINING, **options)
        finally:
            hospitals.join()
        assert len(federation.history) == len(losses) == 1
        assert "run again with" in screen.getvalue()
        assert all(place.session.look(5.0) is None for place in net.values())
