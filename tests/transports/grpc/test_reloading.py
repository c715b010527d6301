"""Data that changes while it is served: new sessions have it, others what they had."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from obhut.client.network import Network, connect
from obhut.errors import (
    CallError,
    ConfigurationError,
    DatasetError,
    ObhutError,
    SessionLostError,
)
from obhut.host import configuration as configurations
from obhut.transports.serving import Served

from .conftest import World, until
from .test_guarded import POLICY


def table(name: str, more: str = "") -> str:
    """Return the declaration of an array."""
    return f'[[dataset]]\nname = "{name}"\npath = "{name}.npy"\n{more}\n'


class Bob:
    """One who serves arrays that change."""

    def __init__(
        self,
        root: Path,
        arrays: Mapping[str, Sequence[object]],
        declared: str = "",
        policy: str = "",
    ) -> None:
        names = ("bob", "me", "you", "secure_worker", "alice", "carol")
        self.world = World(root, names)
        self.folder = root / "bob"
        self._options = {"policy": policy, "deliver": ()} if policy else {}
        for name, values in arrays.items():
            self.write(name, values)
        more = "".join(table(name, declared) for name in arrays)
        self.served: Served = self.world.serve("bob", more=more, **self._options)

    def write(self, name: str, values: Sequence[object]) -> None:
        """Put an array into the place of a file, as an owner's script does."""
        draft = self.folder / "draft.npy"
        np.save(draft, np.array(values, np.float32))
        draft.rename(self.folder / f"{name}.npy")

    def reload(self, more: str, **options: object) -> None:
        """Let the worker read a configuration with these data sets."""
        given = {"sessions": ["me", "you"], "deliver": ["bob", "alice"]}
        given |= self._options | options
        file = self.world.configure("bob", more=more, **given)
        self.served.reload(configurations.load(file))

    @contextlib.contextmanager
    def entered(self, who: str = "me") -> Iterator[Network]:
        """Open a session."""
        with connect(
            self.world.address("bob"), folder=self.world.root / who
        ) as network:
            yield network


@pytest.fixture
def bob(tmp_path: Path) -> Iterator[Bob]:
    """One who serves two arrays openly."""
    made = Bob(tmp_path, {"a": [1.0, 2.0], "b": [5.0]})
    yield made
    made.world.close()


def values(net: Network, name: str) -> list[float]:
    """Return an array."""
    found: list[float] = net["bob"][name].get().tolist()
    return found


def test_open_sessions_keep_what_they_have(
    bob: Bob, caplog: pytest.LogCaptureFixture
) -> None:
    """New ones have the changed file; the log says what was read, and the old goes."""
    caplog.set_level(logging.INFO, logger="obhut.worker")
    kept = bob.served._reading.datasets["b"]
    with bob.entered() as before:
        assert values(before, "a") == [1.0, 2.0]
        bob.write("a", [3.0, 4.0, 6.0])
        bob.reload(table("a") + table("b"))
        with bob.entered("you") as after:
            assert values(after, "a") == [3.0, 4.0, 6.0]
            assert values(after, "b") == [5.0]
            assert values(before, "a") == [1.0, 2.0]
            bob.served._forget_readings()
            assert len(bob.served._former) == 1
    assert bob.served._reading.datasets["b"] is kept
    assert "data set a was read anew: 3 rows" in caplog.messages
    assert not any("data set b" in line for line in caplog.messages)
    server = bob.served._former[0]._children._server._process
    gone = bob.served._former[0].datasets["a"].tensors["features"].fd
    until(lambda: not bob.served._former[0].in_use)
    bob.served._forget_readings()
    assert not bob.served._former
    assert server.poll() is not None
    gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(gone)


def test_data_sets_come_and_go(bob: Bob, caplog: pytest.LogCaptureFixture) -> None:
    """A session has those that there were when it began."""
    caplog.set_level(logging.INFO, logger="obhut.worker")
    with bob.entered() as before:
        assert values(before, "a") == [1.0, 2.0]
        bob.write("c", [7.0])
        bob.reload(table("b") + table("c"))
        with bob.entered("you") as after:
            assert values(after, "c") == [7.0]
            with pytest.raises(CallError, match="has no data set"):
                values(after, "a")
        with pytest.raises(CallError, match="has no data set"):
            values(before, "c")
        assert values(before, "a") == [1.0, 2.0]
    assert "data set c was read anew: 1 rows" in caplog.messages
    assert "data set a is served no more" in caplog.messages
    assert b'"c"' in bob.served._describe(bob.world.id("me"))
    assert b'"a"' not in bob.served._describe(bob.world.id("me"))


def test_nothing_is_read_again_without_need(bob: Bob) -> None:
    """As long as neither a file nor its declaration changes; else it is."""
    reading = bob.served._reading
    bob.reload(table("a") + table("b"))
    assert bob.served._reading is reading
    bob.reload(table("a", 'description = "said"') + table("b"))
    assert bob.served._reading.changed(reading.datasets["a"])
    assert not bob.served._reading.changed(reading.datasets["b"])
    os.utime(bob.folder / "b.npy", (1, 1))
    bob.reload(table("a", 'description = "said"') + table("b"))
    assert bob.served._reading.changed(reading.datasets["b"])


def test_all_or_nothing(bob: Bob) -> None:
    """One file that can't be loaded, and all is as before, also who may come."""
    reading, before = bob.served._reading, bob.served.configuration
    bob.write("a", [8.0])
    (bob.folder / "b.npy").write_bytes(b"no array")
    with pytest.raises(DatasetError, match=r"b\.npy"):
        bob.reload(table("a") + table("b"), sessions=["you"])
    assert bob.served._reading is reading
    assert bob.served.configuration is before
    with bob.entered() as net:
        assert values(net, "a") == [1.0, 2.0]
    with pytest.raises(ConfigurationError, match=r"\[limits\]"):
        bob.reload(table("a"), limits='memory = "1 GiB"')
    assert bob.served._reading is reading
    assert not bob.served._former


def test_processes_that_do_not_start_change_nothing(
    bob: Bob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun is ended."""
    begun = []

    def fails(reading: object) -> frozenset[str]:
        begun.append(reading)
        raise ObhutError("no process")

    monkeypatch.setattr("obhut.transports.readings.Reading.ready", fails)
    bob.write("a", [8.0])
    with pytest.raises(ObhutError, match="no process"):
        bob.reload(table("a") + table("b"))
    monkeypatch.undo()
    (reading,) = begun
    assert reading._children._server.ended
    with bob.entered() as net:
        assert values(net, "a") == [1.0, 2.0]


def test_who_may_not_use_it_any_more_loses_the_session(bob: Bob) -> None:
    """Also one that was opened two readings ago; who may goes on."""
    with bob.entered("you") as you, bob.entered() as me:
        assert values(you, "a") == values(me, "a") == [1.0, 2.0]
        bob.write("b", [6.0])
        bob.reload(table("a") + table("b"))
        assert values(you, "a") == [1.0, 2.0]
        bob.reload(table("a", 'requesters = ["me"]') + table("b"))
        with pytest.raises(SessionLostError, match="what it may use has changed"):
            values(you, "b")
        assert values(me, "b") == [5.0]
    with bob.entered("you") as you:
        assert values(you, "b") == [6.0]
        with pytest.raises(CallError, match="has no data set"):
            values(you, "a")


def test_who_has_the_rows_never_differs_from_who_answers(tmp_path: Path) -> None:
    """Under a policy: also a process that takes another's place has the old data."""
    policy = POLICY + "minimum_rows = 2\n"
    hidden = 'public = { rows = "hidden" }'
    bob = Bob(tmp_path, {"a": [[1.0] * 2_000] * 100}, hidden, policy)

    def session_of(net: Network) -> tuple[int, int]:
        with pytest.raises(CallError, match="is hidden"):
            values(net, "a")
        (one,) = [
            session
            for session in bob.served.node._sessions.values()
            if session.owner == bob.world.id(who)
        ]
        return one.started.pid, one.following

    try:
        who = "me"
        with bob.entered() as before:
            _, following = session_of(before)
            bob.write("a", [[1.0] * 2_000] * 3)
            bob.reload(table("a", hidden))
            process = following._there().pid
            assert mapped(process) >= 100 * 8_000
            os.kill(process, signal.SIGKILL)
            until(lambda: not following._process.alive)
            again = following._there().pid
            assert again != process
            assert mapped(again) >= 100 * 8_000
            who = "you"
            with bob.entered("you") as after:
                low, later = session_of(after)
                assert mapped(later._there().pid) < 2**16
                assert mapped(low) == 0
        bob.write("a", [[1.0] * 2_000])
        with pytest.raises(DatasetError, match="has 1 rows, and minimum_rows"):
            bob.reload(table("a", hidden))
    finally:
        bob.world.close()


def mapped(process: int) -> int:
    """Return the bytes of data sets that a process has mapped."""
    found = 0
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        if "obhut-data" in line:
            begin, end = line.split(" ", 1)[0].split("-")
            found += int(end, 16) - int(begin, 16)
    return found


def test_a_session_that_begins_has_one_reading(bob: Bob) -> None:
    """It is not let go between the start of what answers and of what follows."""
    starting = bob.served._starting(bob.world.id("me"))
    bob.write("a", [8.0])
    bob.reload(table("a") + table("b"))
    bob.served._forget_readings()
    assert len(bob.served._former) == 1
    child = starting.answers("late", 2**26)
    assert mapped(child.pid) > 0
    child.close()
    del starting
    until(lambda: not bob.served._former[0].in_use)
