"""An aggregator that is killed between decision, entry, mark and reply.

At each thirteenth of its calls; with ``OBHUT_KILLS``, of ``make kills``, at each.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from obhut.errors import LedgerError
from obhut.host.ledger import FILE, begin_anew
from obhut.host.mark import FILE as MARK

from .killed import POINTS, opened
from .test_ledger import SIGNER

pytestmark = pytest.mark.slow

KILLED = -9
TIMES = 100
STEP = 1 if "OBHUT_KILLS" in os.environ else 13


class Exit(NamedTuple):
    """How a process ended, and whether it had replied."""

    code: int
    replied: bool


class Processes:
    """Runs one process after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, act: str, folder: Path, point: str | int = 0) -> Exit:
        """Run one, which is killed at a point."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([act, str(folder), point]) + "\n")
        self._process.stdin.flush()
        return Exit(*json.loads(self._process.stdout.readline()))


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Return what runs them."""
    command = [sys.executable, "-m", "tests.host.killed"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Processes(process)
        process.kill()


def count(folder: Path) -> int:
    """Start an aggregator and end it; return how many entries it knows."""
    with contextlib.closing(opened(folder)) as ledger:
        return len(list(ledger.entries()))


def rolled_back(folder: Path, copy: Path) -> bool:
    """Put a copy of the ledger back; tell whether an aggregator takes it.

    All is as before afterwards.
    """
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    for end in ("-wal", "-shm"):
        (folder / f"{FILE}{end}").unlink(missing_ok=True)
    shutil.copy(copy, folder / FILE)
    try:
        count(folder)
    except LedgerError:
        return False
    else:
        return True
    finally:
        shutil.rmtree(folder)
        shutil.move(kept, folder)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_point_costs_nothing_that_was_told(
    tmp_path: Path, processes: Processes, point: str
) -> None:
    """A hundred times, at one ledger: it starts, knows all that was told, goes on.

    After a kill before the entry there is none; after any later one there is.
    """
    folder = tmp_path / "hub"
    folder.mkdir(mode=0o700)
    entries = 0
    for _ in range(TIMES):
        assert processes.run("decide", folder, point) == Exit(KILLED, replied=False)
        entries += point != "decided"
        assert count(folder) == entries
        assert processes.run("decide", folder) == Exit(0, replied=True)
        entries += 1
    assert count(folder) == entries


def test_a_kill_at_any_call_lets_nothing_be_rolled_back_that_was_told(
    tmp_path: Path, processes: Processes
) -> None:
    """From the decision to the reply: it starts, and what was told can't be undone.

    A copy of the ledger from before is taken only where nobody was told, and where the
    entry was not marked.
    """
    before = tmp_path / "before"
    before.mkdir(mode=0o700)
    for _ in range(2):
        assert processes.run("decide", before).replied
    assert count(before) == 2  # and all of them are in one file now
    ends = []
    for point in itertools.count(1, STEP):
        folder = tmp_path / "hub"
        shutil.copytree(before, folder)
        ended = processes.run("decide", folder, point)
        entries = count_without_start(folder)
        taken = rolled_back(folder, before / FILE)
        assert not (taken and ended.replied), point
        assert entries == 3 or not ended.replied, point
        assert count(folder) == entries
        assert not (entries == 3 and rolled_back(folder, before / FILE)), point
        ends.append((entries, taken))
        shutil.rmtree(folder)
        if ended.code != KILLED:
            break
    assert ended == Exit(0, replied=True)
    # First nothing, then an entry, then its mark; and never back.
    stages = [stage for stage, _ in itertools.groupby(ends)]
    assert stages == [(2, True), (3, True), (3, False)]
    assert point > TIMES


def count_without_start(folder: Path) -> int:
    """Return how many entries there are, of a copy, so that no mark is written."""
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    try:
        return count(copy)
    finally:
        shutil.rmtree(copy)


def test_a_first_start_that_is_killed_is_made_again(
    tmp_path: Path, processes: Processes
) -> None:
    """At whatever call; and afterwards the ledger and its mark are there."""
    for point in itertools.count(1, STEP):
        folder = tmp_path / "hub"
        folder.mkdir(mode=0o700)
        ended = processes.run("begin", folder, point)
        assert count(folder) == 0
        assert {FILE, MARK} <= {file.name for file in folder.iterdir()}
        shutil.rmtree(folder)
        if ended.code != KILLED:
            break
    assert point > TIMES


def test_a_beginning_anew_that_is_killed_is_made_again(
    tmp_path: Path, processes: Processes
) -> None:
    """It is done, or the aggregator starts as little as before and it is done again.

    What was there is kept, whatever happens.
    """
    before = tmp_path / "before"
    before.mkdir(mode=0o700)
    for _ in range(2):
        assert processes.run("decide", before).replied
    assert count(before) == 2
    spoilt = (before / FILE).read_bytes()[:-4096]
    (before / FILE).write_bytes(spoilt)
    undone = 0
    for point in itertools.count(1, STEP):
        folder = tmp_path / "hub"
        shutil.copytree(before, folder)
        ended = processes.run("anew", folder, point)
        try:
            assert count(folder) == 0
        except LedgerError:
            undone += 1
            assert ended.code == KILLED
            begin_anew(folder / FILE, SIGNER, "it was lost").close()
            assert count(folder) == 0
        aside = [file.read_bytes() for file in folder.glob("ledger-before-*.sqlite")]
        assert spoilt in aside
        shutil.rmtree(folder)
        if ended.code != KILLED:
            break
    assert 0 < undone < point
    assert point > TIMES
