from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from obhut.cli import processes
from obhut.cli.processes import AGGREGATOR, RESEARCHER, Site, StartError
from obhut.guard.policy import Quorum
from obhut.host import configuration
from obhut.host.data import datasets as host_datasets
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook

Rows = tuple[processes.Array, processes.Array]

MEASUREMENTS = ["width, mean", 'so-called "depth"', "Höhe"]


@pytest.fixture
def rows() -> dict[str, Rows]:
    """Return any finite float32 there is, for three hospitals, and 0 or 1."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, size=4500, dtype=np.uint32).view(np.float32)
    features = bits[np.isfinite(bits)][:4050].reshape(3, -1, 3)
    targets = random.integers(0, 2, size=(3, 450, 1)).astype(np.float32)
    return {
        name: (features[number], targets[number])
        for number, name in enumerate(("aspen", "birch", "cedar"))
    }


@pytest.fixture
def sites(tmp_path: Path, rows: dict[str, Rows]) -> Iterator[list[Site]]:
    """Return the folders of three hospitals and an aggregator; nobody may be left."""
    yield processes.lay_out(tmp_path, rows, MEASUREMENTS, "127.0.0.1:7000")
    assert not list(running_in(tmp_path))


def running_in(folder: Path) -> Iterator[int]:
    """Yield the processes that run in a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
        except OSError:
            continue
        if place.is_relative_to(folder):
            yield int(process.name)


def test_the_rows_in_the_files_are_those_dealt_out(
    sites: list[Site], rows: dict[str, Rows]
) -> None:
    """Of CSV and of .npz, a worker reads the same float32, bit for bit."""
    assert {s.data.suffix for s in sites if s.data is not None} == {".csv", ".npz"}
    for site in sites[1:]:
        declared = configuration.load(site.folder / "worker.toml").datasets
        tensors = host_datasets.load(declared)[processes.DATASET].tensors
        for part, dealt in zip(("features", "target"), rows[site.name], strict=True):
            array = tensors[part]
            assert (array.dtype, array.shape) == ("float32", dealt.shape)
            assert os.pread(array.fd, dealt.nbytes + 1, 0)[: dealt.nbytes] == (
                dealt.tobytes()
            )


def test_access_is_what_the_training_needs_and_no_more(
    tmp_path: Path, sites: list[Site]
) -> None:
    """Only the researcher opens sessions, only hospitals deliver to the aggregator.

    No hospital knows another's certificate; that it is another, its policy says.
    """
    found = {s.name: configuration.load(s.folder / "worker.toml") for s in sites}
    policies = [one.policy for one in found.values()]
    assert all(isinstance(one, Quorum) and one.quorum == 3 for one in policies)
    assert {getattr(one, "contributors", ()) for one in policies} == {
        ("aspen", "birch", "cedar")
    }
    assert {one.access.sessions for one in found.values()} == {(RESEARCHER,)}
    assert {name: one.access.deliver for name, one in found.items()} == {
        AGGREGATOR: ("aspen", "birch", "cedar"),
        "aspen": (),
        "birch": (),
        "cedar": (),
    }
    known = {
        name: {peer.name: peer.id for peer in PeerBook(tmp_path / name / "peers")}
        for name in (RESEARCHER, *found)
    }
    assert known["aspen"].keys() == {RESEARCHER, AGGREGATOR}
    assert known[AGGREGATOR].keys() == {RESEARCHER, "aspen", "birch", "cedar"}
    ids = {name: Identity.load(tmp_path / name).id for name in known}
    assert all(
        ids[peer] == id_ for peers in known.values() for peer, id_ in peers.items()
    )


def test_hospitals_after_the_third_open_no_port(
    tmp_path: Path, rows: dict[str, Rows]
) -> None:
    """They dial out to the aggregator, and only they may attach there."""
    names = ("aspen", "birch", "cedar", "dogwood", "elm")
    dealt = dict.fromkeys(names, rows["aspen"])
    sites = processes.lay_out(tmp_path, dealt, MEASUREMENTS, "127.0.0.1:7000")
    found = {s.name: configuration.load(s.folder / "worker.toml") for s in sites}
    there = {name: (one.listen, one.attach) for name, one in found.items()}
    assert there.pop(AGGREGATOR) == ("127.0.0.1:7000", None)
    for name in names[:3]:
        assert there.pop(name) == ("127.0.0.1:0", None)
    assert set(there.values()) == {(None, "127.0.0.1:7000")}
    assert found[AGGREGATOR].access.attach == tuple(there) == ("dogwood", "elm")


@pytest.mark.slow
def test_a_process_that_does_not_start_is_told_with_its_log(sites: list[Site]) -> None:
    """The error has the hospital and its log's last lines, and the others end."""
    broken = next(s for s in sites if s.data is not None and s.data.suffix == ".csv")
    assert broken.data is not None
    with broken.data.open("a") as stream:
        stream.write("1,2,a few,0\n")
    with pytest.raises(StartError) as raised, processes.start(sites):
        pytest.fail("started")
    assert raised.value.name == broken.name
    assert "row 451" in raised.value.log
    assert "a few" in str(raised.value)


def test_a_process_that_never_serves_is_given_up(sites: list[Site]) -> None:
    """After the time for it there is an error; who does not end in time is killed."""
    with (
        pytest.raises(StartError, match="does not serve after 0 s"),
        processes.start(sites, seconds=0, grace=0),
    ):
        pytest.fail("started")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_processes(number: signal.Signals, sites: list[Site]) -> None:
    """Ctrl-C, SIGTERM and SIGHUP to whoever started them end all processes."""
    site = sites[1]
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from obhut.cli.processes import Site, start\n"
        f"with start([Site({site.name!r}, 'worker', Path({str(site.folder)!r}))]):\n"
        "    print('up', flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert list(running_in(site.folder))
        process.send_signal(number)
        code_of = process.wait(30)
    assert code_of == (-number if number == signal.SIGINT else 128 + number)
