"""A round of a simulation, as ratios to plain torch in one process.

In each round 10 of 100 clients, or 100 of 1,000, train the model on their rows, once
and in order, and it becomes the weighted mean of theirs. Plain torch goes from client
to client on one thread. Beside it: plain torch in two processes that stay, obhut's
simulation, exact and fused, and Flower's where ``BENCH_PEERS`` names a folder into
which ``flwr[simulation]`` was installed (``pip install --target FOLDER``).

Each is a process of its own with what it starts; their rounds take turns, and a ratio
is that of the medians. While one plays, the others are stopped: a Ray that waits takes
part of a processor, which is no part of a round. The first round counts from the call
that starts a simulation, in a fresh process. Memory is the most that a process has with
all that come from it, pages that they share counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from sim_cases import CASES, Case
from sim_sides import Clients

from obhut.testing.vitals import descendants, vitals

HERE = Path(__file__).parent
OURS = ("exact", "fused")
SCRIPTS = {
    **dict.fromkeys(("plain", "two"), "sim_sides.py"),
    **dict.fromkeys(OURS, "sim_obhut.py"),
    "flower": "peers/flower_simulation.py",
}
FIRST_ROUND = 8.0
"""Seconds to its end, at most."""
SETTLE = 0.2
"""Seconds after which those that stood still have done what they missed."""
TICKS = os.sysconf("SC_CLK_TCK")


class Player:
    """A side in a process of its own.

    Args:
        side: which.
        case: the name of what it plays.
        rows: the file of all clients' rows.
    """

    def __init__(self, side: str, case: str, rows: Path) -> None:
        paths = [str(HERE)]
        if side == "flower":
            paths = [os.environ["BENCH_PEERS"], *paths]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        quiet = {
            "PYTHONPATH": os.pathsep.join(paths),
            "RAY_ADDRESS": "local",
            "RAY_TMPDIR": str(rows.parent),
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        self._pipe, theirs = Pipe()
        self._said = rows.with_name(f"{side}.log")
        what = [HERE / SCRIPTS[side], side, case, rows, str(theirs.fileno())]
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, *what],
                env=os.environ | quiet,
                pass_fds=[theirs.fileno()],
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        theirs.close()
        self._answer()

    def _answer(self) -> Any:  # Any: what the side sends
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(self._said.read_text()[-4_000:]) from None

    def play(self, clients: Clients, *, first: bool = False) -> tuple[float, Clients]:
        """Play a round; return its seconds, and who took part."""
        self._pipe.send(("start" if first else "round", clients))
        return self._answer()

    def model(self) -> list[np.ndarray]:
        """Return the parameters."""
        self._pipe.send(("model", []))
        return self._answer()

    def memory(self) -> int:
        """Return bytes of memory of the process and all that come from it."""
        found = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                found += vitals(pid).pss
        return found

    def processor(self) -> float:
        """Return the seconds of a processor that they took."""
        found = 0
        for pid in self._pids():
            with contextlib.suppress(OSError):
                said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
                found += sum(map(int, said.split()[11:13]))
        return found / TICKS

    @contextlib.contextmanager
    def alone(self, players: Iterable[Player]) -> Iterator[None]:
        """Let the other players stand still meanwhile, with all that come from them."""
        others = [pid for one in players if one is not self for pid in one._pids()]
        _tell(others, signal.SIGSTOP)
        try:
            yield
        finally:
            _tell(others, signal.SIGCONT)
            time.sleep(SETTLE)

    def _pids(self) -> list[int]:
        return [self._process.pid, *descendants(self._process.pid)]

    def close(self) -> None:
        """End the process and all that come from it."""
        self._pipe.close()
        pids = self._pids()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        _tell(pids, signal.SIGKILL)


def _tell(pids: Iterable[int], what: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


def drawn(case: Case, number: int) -> Clients:
    """Return who takes part in a round of plain torch."""
    draw = np.random.default_rng(number)
    return [int(k) for k in draw.permutation(case.clients)[: case.participants]]


def check(players: dict[str, Player]) -> None:
    """Check that the first round came to the same; Flower's has clients of its own.

    A fused update is rounded otherwise: at the kink of a ReLU or a maximum the gradient
    of a row then goes another way.
    """
    plain = players["plain"].model()
    for side, one in players.items():
        if side != "flower":
            off = 1e-4 if side == "fused" else 1e-6
            for ours, theirs in zip(one.model(), plain, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=off)


class Taken(NamedTuple):
    """What a round of a side took.

    Attributes:
        seconds: the median.
        processor: seconds of a processor, the mean.
    """

    seconds: float
    processor: float


def measure(name: str, rows: Path, sides: list[str], rounds: int) -> dict[str, Taken]:
    """Return what a round took, by side."""
    case = CASES[name]
    with contextlib.ExitStack() as stack:
        players = {
            side: stack.enter_context(closing(Player(side, name, rows)))
            for side in sides
        }
        ours = [side for side in sides if side in OURS]
        first = drawn(case, 0)
        for side in (*ours, *(one for one in sides if one not in OURS)):
            _, took_part = players[side].play(first, first=True)
            if side in ours:
                first = took_part
        check(players)
        taken: dict[str, list[Taken]] = {side: [] for side in sides}
        for number in range(1, rounds + 2):
            for side, one in players.items():
                with one.alone(players.values()):
                    before = one.processor()
                    seconds, _ = one.play(drawn(case, number))
                    taken[side].append(Taken(seconds, one.processor() - before))
    return {
        side: Taken(
            statistics.median(one.seconds for one in found[1:]),
            statistics.mean(one.processor for one in found[1:]),
        )
        for side, found in taken.items()
    }


def first_round(name: str, rows: Path, side: str) -> float:
    """Return the seconds of the first round in a fresh process."""
    with closing(Player(side, name, rows)) as one:
        return one.play(drawn(CASES[name], 0), first=True)[0]


def most_memory(name: str, rows: Path, side: str, rounds: int) -> int:
    """Return the most bytes of memory that rounds take, from the start."""
    case, found, over = CASES[name], [0], threading.Event()
    with closing(Player(side, name, rows)) as one:

        def watch() -> None:
            while not over.wait(0.05):
                found.append(one.memory())

        watching = threading.Thread(target=watch)
        watching.start()
        for number in range(rounds):
            one.play(drawn(case, number), first=not number)
        over.set()
        watching.join()
    return max(found)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--sides", nargs="+", choices=list(SCRIPTS))
    options = parser.parse_args()
    sides = options.sides or [
        side for side in SCRIPTS if side != "flower" or "BENCH_PEERS" in os.environ
    ]
    others = [side for side in sides if side != "plain"]
    simulating = [side for side in others if side != "two"]
    speed = Table("case", "plain", title="A round, as ratios to plain torch")
    work = Table("case", "plain", title="Processor time of a round, likewise")
    start = Table("case", title=f"First round (≤ {FIRST_ROUND:.0f} s); memory at most")
    for table, columns in ((speed, others), (work, others), (start, simulating)):
        for side in columns:
            table.add_column(side, justify="right")
    for name in options.cases:
        case = CASES[name]
        reach = {"exact": case.exact, "fused": case.fused}
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder, "rows.pt")
            case.write(rows)
            found = measure(name, rows, ["plain", *others], options.rounds)
            plain = found["plain"]
            speed.add_row(
                name,
                f"{plain.seconds:.3f} s",
                *(
                    told(found[side].seconds / plain.seconds, reach.get(side))
                    for side in others
                ),
            )
            work.add_row(
                name,
                f"{plain.processor:.3f} s",
                *(told(found[side].processor / plain.processor) for side in others),
            )
            start.add_row(
                name,
                *(
                    f"{first_round(name, rows, side):.1f} s, "
                    f"{most_memory(name, rows, side, 5) / 1e6:,.0f} MB"
                    for side in simulating
                ),
            )
    for table in (speed, work, start):
        Console(width=100).print(table)


def told(value: float, at_most: float | None = None) -> str:
    """Return a ratio, beside what it is to be at most."""
    return f"{value:.2f}" if at_most is None else f"{value:.2f} (≤ {at_most:.2f})"


if __name__ == "__main__":
    main()
