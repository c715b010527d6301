"""The demo's hospitals and aggregator as processes of their own, on this machine.

Each is an ``obhut worker`` or ``obhut aggregator`` with a folder: identity, pinned
peers, configuration, and at a hospital a file of rows.

Rules:

- All are ended when ``running`` is left, however that happens: at its end, by an
  error, by Ctrl-C, SIGTERM or SIGHUP.
- Who knows whom, and who may do what, is what real sites would say; only that the
  demo plays everybody, and pins what ``obhut invite`` and ``obhut join`` would.
- It loads no torch: tensors come as arrays.
"""

from __future__ import annotations

import contextlib
import csv
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import numpy as np
import numpy.typing as npt

from obhut.errors import TransportError
from obhut.host import files, writing
from obhut.host.waiting import Waiting
from obhut.host.writing import table
from obhut.identity.folders import CONFIGURATION
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.guarding import open_ledger

RESEARCHER = "researcher"
"""Who trains: the demo itself, as the client of all workers."""

AGGREGATOR = "aggregator"

DATASET = "tumours"

START_SECONDS = 60.0
"""How long all processes may take until they serve."""

STOP_SECONDS = 15.0
"""How long a process may take to end before it is killed."""

LISTENING = 3
"""How many hospitals listen. Those after them open no port: they dial out to the
aggregator, as from behind a firewall, and are reached through it."""

_TARGET = "benign"
_LOG = "worker.log"
_LINES_SHOWN = 12
_COMMAND = (sys.executable, "-P", "-m", "obhut.cli.main")

Array = npt.NDArray[np.float32]


class StartError(TransportError):
    """A process that does not serve.

    Attributes:
        name: whose.
        why: what happened.
        log: the last lines of its log.
    """

    def __init__(self, name: str, why: str, log: str) -> None:
        super().__init__(f"{name} {why}; its log ends with:\n{log or '(nothing)'}")
        self.name = name
        self.why = why
        self.log = log


@dataclass(frozen=True, slots=True)
class Site:
    """A folder that a process can serve from.

    Attributes:
        name: the worker's.
        role: ``worker`` or ``aggregator``, the command that serves it.
        folder: where all of it is.
        data: the file of rows, of a hospital.
    """

    name: str
    role: str
    folder: Path
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """A process that serves.

    Attributes:
        site: what it serves.
        pid: the process.
        address: where it is reached, ``host:port``.
        dials_out: whether that is where the aggregator listens, and not the worker.
        walls: what its children are walled off from, as its log says.
    """

    site: Site
    pid: int
    address: str
    dials_out: bool
    walls: str


@contextlib.contextmanager
def running(
    folder: Path,
    hospitals: Mapping[str, tuple[Array, Array]],
    measurements: Sequence[str],
    *,
    listening: int = LISTENING,
    unguarded: bool = False,
) -> Iterator[list[Serving]]:
    """Serve hospitals and an aggregator until the block is left.

    ``folder / RESEARCHER`` becomes the client's: its identity and peers.

    Args:
        folder: an empty one.
        hospitals: features, (rows, measurements), and targets, (rows, 1), by name.
        measurements: what the columns are called.
        listening: how many of the hospitals listen; the others dial out.
        unguarded: let everything leave. For measurements of transport only.

    Yields:
        The aggregator, then the hospitals.

    Raises:
        StartError: if one of the processes does not serve.
    """
    with _held_port() as port:
        sites = lay_out(
            folder,
            hospitals,
            measurements,
            f"127.0.0.1:{port}",
            listening=listening,
            unguarded=unguarded,
        )
        with start(sites) as serving:
            yield serving


# --- folders ----------------------------------------------------------------------


def lay_out(
    folder: Path,
    hospitals: Mapping[str, tuple[Array, Array]],
    measurements: Sequence[str],
    address: str,
    *,
    listening: int = LISTENING,
    unguarded: bool = False,
) -> list[Site]:
    """Make the folders of all, the client's too, and write what belongs in them.

    Args:
        folder, hospitals, measurements: as for ``running``.
        address: where the aggregator is to listen.
        listening, unguarded: as for ``running``.

    Returns:
        The aggregator, then the hospitals.
    """
    identities = {name: Identity.create() for name in (RESEARCHER, AGGREGATOR)}
    identities |= {name: Identity.create() for name in hospitals}
    for name, identity in identities.items():
        identity.save(folder / name)
        # A hospital need not reach another.
        known = {RESEARCHER, AGGREGATOR} if name in hospitals else set(identities)
        peers = PeerBook.of(folder / name)
        for peer in sorted(known - {name}):
            peers.add(peer, identities[peer].certificate)

    sites = [Site(AGGREGATOR, "aggregator", folder / AGGREGATOR)]
    policy = (
        table("[policy]", kind="UnsafeOpen")
        if unguarded
        else table(
            "[policy]",
            kind="Quorum",
            aggregators=[AGGREGATOR],
            contributors=list(hospitals),
            requesters=[RESEARCHER],
        )
    )
    names = list(hospitals)
    dialling = names[listening:]
    at = {"listen": address}
    text = writing.configuration(
        AGGREGATOR,
        policy,
        at=at,
        sessions=[RESEARCHER],
        deliver=names,
        attach=dialling,
    )
    files.write(sites[0].folder / CONFIGURATION, text.encode())
    aggregator = table(
        "[[peer]]", name=AGGREGATOR, id=identities[AGGREGATOR].id, address=address
    )
    others = {
        name: table("[[peer]]", name=name, id=identities[name].id) for name in hospitals
    }
    for number, (name, (features, targets)) in enumerate(hospitals.items()):
        path = folder / name / f"{DATASET}.{'npz' if number % 2 else 'csv'}"
        if path.suffix == ".csv":
            _write_csv(path, features, targets, measurements)
            columns: Mapping[str, str | list[str]]
            columns = {"features": "*", "target": [_TARGET]}
        else:
            np.savez(path, measurements=features, benign=targets)
            columns = {"features": "measurements", "target": _TARGET}
        dataset = table("[[dataset]]", name=DATASET, path=path.name, **columns)
        # A share of all rows is what each one's model weighs.
        dataset += table("[dataset.public]", rows="exact")
        sites.append(Site(name, "worker", folder / name, path))
        counted = [others[other] for other in others if other != name]
        text = writing.configuration(
            name,
            policy,
            aggregator,
            *counted,
            dataset,
            at={"attach": address} if name in dialling else {"listen": "127.0.0.1:0"},
            sessions=[RESEARCHER],
        )
        files.write(path.with_name(CONFIGURATION), text.encode())
    return sites


def _write_csv(
    path: Path, features: Array, targets: Array, measurements: Sequence[str]
) -> None:
    """Write rows so that the same float32 values are read again.

    Numpy writes the shortest decimals that are read as the same float32.
    """
    path.touch(0o600)  # a worker refuses what others may change
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*measurements, _TARGET])
        writer.writerows(
            map(str, row) for row in np.concatenate((features, targets), axis=1)
        )


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """Yield a free port that nobody else is given, but that can be listened at.

    The hospitals' configurations name the aggregator's port, and all start together.
    """
    with socket.socket() as holder:
        # Two sockets that both say so may have one port, while one does not listen.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


# --- what was decided -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decided:
    """What the aggregator's ledger says.

    Attributes:
        released: sums that it let out.
        refused: those that it did not.
        rules: the rules that refused them, each once.
    """

    released: int
    refused: int
    rules: tuple[str, ...]


def read_ledger(folder: Path) -> Decided:
    """Verify the aggregator's ledger, when its process has ended, and count it.

    Args:
        folder: as for ``running``.

    Raises:
        LedgerError: if it is not what was written.
    """
    home = folder / AGGREGATOR
    with contextlib.closing(
        open_ledger(home, Identity.load(home), reading=True)
    ) as ledger:
        entries = list(ledger.entries())
    refused = [entry.rule for entry in entries if not entry.permits]
    return Decided(
        len(entries) - len(refused), len(refused), tuple(dict.fromkeys(refused))
    )


# --- processes --------------------------------------------------------------------


@contextlib.contextmanager
def start(
    sites: Sequence[Site],
    *,
    seconds: float = START_SECONDS,
    grace: float = STOP_SECONDS,
) -> Iterator[list[Serving]]:
    """Start a process for each site, all at once; end them when the block is left.

    Args:
        sites: what to serve.
        seconds: how long all may take until they serve.
        grace: seconds that they may take to end, before they are killed.

    Raises:
        StartError: if one of them does not serve.
    """
    processes: dict[str, subprocess.Popen[str]] = {}
    with _signals_raised():
        try:
            for site in sites:
                processes[site.name] = _start(site)
            with Waiting(f"waiting for {', '.join(processes)} to serve"):
                addresses = _wait(sites, processes, seconds)
            yield [
                Serving(s, processes[s.name].pid, *addresses[s.name], _walls(s))
                for s in sites
            ]
        finally:
            _end(list(processes.values()), grace)


def _start(site: Site) -> subprocess.Popen[str]:
    with (site.folder / _LOG).open("w", encoding="utf-8") as log:
        return subprocess.Popen(  # noqa: S603 # this Python, on files made above
            [*_COMMAND, site.role, "--config", str(site.folder / CONFIGURATION)],
            cwd=site.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl-C comes to the demo only, which closes its sessions first.
            start_new_session=True,
        )


def _wait(
    sites: Sequence[Site],
    processes: Mapping[str, subprocess.Popen[str]],
    seconds: float,
) -> dict[str, tuple[str, bool]]:
    """Wait until each process has said where it serves; return that by name.

    With each address comes whether the worker dialled out to it.
    """
    addresses: dict[str, tuple[str, bool]] = {}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for site in sites:
            output = processes[site.name].stdout
            if output is not None:
                selector.register(output, selectors.EVENT_READ, (site, output))
        while waiting := selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                site, _ = next(iter(waiting.values())).data
                raise _failed(site, f"does not serve after {seconds:g} s")
            for key, _ in ready:
                site, output = key.data
                selector.unregister(output)
                addresses[site.name] = _address(site, output)
    return addresses


def _address(site: Site, output: IO[str]) -> tuple[str, bool]:
    said = re.fullmatch(r"\S+ serves (at|through) (\S+), id \S+\n", output.readline())
    if said is None:
        raise _failed(site, "did not start")
    return said[2], said[1] == "through"


def _failed(site: Site, why: str) -> StartError:
    lines = _log(site).splitlines()[-_LINES_SHOWN:]
    return StartError(site.name, why, "\n".join(lines))


def _walls(site: Site) -> str:
    said = re.search(r", walls: (.+)$", _log(site), re.MULTILINE)
    return said[1] if said is not None else ""


def _log(site: Site) -> str:
    return (site.folder / _LOG).read_text(encoding="utf-8", errors="replace")


def _end(processes: Sequence[subprocess.Popen[str]], grace: float) -> None:
    """Ask all to end at once, and kill those that don't."""
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + grace
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            # Only who has not been waited for surely has its number still.
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave the block as Ctrl-C does: by an exception."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
