"""What an aggregator has in memory while it averages ten models, and how long it adds.

The aggregator is a process of its own, with a child for the session, over mutual TLS on
loopback, under a Quorum. Ten owners deliver, each with an identity of its own, all at
once or two at a time; then the mean is released. Contributions are held in memory, or
in files (``[limits] spool``). Figures are copies of the model: the most that parent and
child have at any moment, beside what they had before, sampled a hundred times in a
second.

Last, what adding takes, as a ratio to plain torch in float64 on the same tensors: as
tensors in memory, and as files that memory has nothing of.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from obhut.cli.processes import Site, start
from obhut.guard.policy import Quorum, encode
from obhut.guard.provenance import digest
from obhut.host.writing import configuration, table
from obhut.identity.folders import CONFIGURATION
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    Batch,
    Deliver,
    Done,
    Expect,
    Fetch,
    Open,
    Ref,
    Results,
    Run,
    TensorData,
)
from obhut.transports.grpc.client import GrpcPending, GrpcTransport
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.pipe.mappings import Mappings
from obhut.transports.pipe.segment import Pool
from obhut.worker.evaluation import evaluate
from obhut.worker.sums import Contribution, Sum
from obhut.worker.tensors import from_frame, to_frame

AGGREGATOR, REQUESTER = "aggregator", "researcher"
COPIES_AT_MOST, RATIO_AT_MOST = 4.0, 2.0
_CACHESTAT = 451

KINDS = ("anonymous", "shared", "files", "cached", "dirty")


class People:
    """An aggregator, owners and a requester, who know each other.

    Args:
        root: an empty folder for theirs.
        owners: how many owners.
    """

    def __init__(self, root: Path, owners: int) -> None:
        self.root = root
        self.owners = [f"owner{k:02}" for k in range(owners)]
        names = [AGGREGATOR, REQUESTER, *self.owners]
        self.identities = {name: Identity.create() for name in names}
        ids = [self.identities[owner].id for owner in self.owners]
        self.policy = Quorum(
            aggregators=(self.identities[AGGREGATOR].id,),
            contributors=tuple(ids),
            requesters=(self.identities[REQUESTER].id,),
        )
        for name, identity in self.identities.items():
            identity.save(root / name)
            known = names[1:] if name == AGGREGATOR else names[:1]
            for peer in known:
                book = PeerBook(root / name / "peers")
                book.add(peer, self.identities[peer].certificate)

    @contextlib.contextmanager
    def serving(self, spool: Path | None) -> Iterator[tuple[int, str]]:
        """Serve the aggregator; yield its process and its address."""
        folder = self.root / AGGREGATOR
        limits = {"memory": "8 GiB"} | ({} if spool is None else {"spool": str(spool)})
        text = configuration(
            AGGREGATOR,
            table("[limits]", **limits),
            table(
                "[policy]",
                kind="Quorum",
                aggregators=[AGGREGATOR],
                contributors=self.owners,
                requesters=[REQUESTER],
            ),
            at={"listen": "127.0.0.1:0"},
            deliver=self.owners,
        )
        (folder / CONFIGURATION).write_text(text)
        with start([Site(AGGREGATOR, "aggregator", folder)]) as (one,):
            yield one.pid, one.address

    def way(self, who: str, address: str) -> GrpcTransport:
        """Return somebody's way to the aggregator."""
        peer = PeerBook(self.root / who / "peers").find(AGGREGATOR)
        credentials, options = channel_credentials(self.identities[who], peer)
        return GrpcTransport(
            address, credentials, options, worker=AGGREGATOR, address=peer.id
        )


def average(
    people: People,
    pid: int,
    address: str,
    tensors: Sequence[torch.Tensor],
    at_once: int,
) -> tuple[Peak, float]:
    """Deliver, release the mean and check it; return the peak and the seconds."""
    session, count = "bench", len(tensors)
    with contextlib.ExitStack() as stack:
        me = stack.enter_context(contextlib.closing(people.way(REQUESTER, address)))
        ways = [
            stack.enter_context(contextlib.closing(people.way(owner, address)))
            for owner in people.owners
        ]
        me.submit(Open(session, PROTOCOL_VERSION, str(torch.__version__))).result(60)
        ids = [people.identities[owner].id for owner in people.owners]
        expected = tuple(Expect((k,), id) for k, id in enumerate(ids, start=1))
        me.submit(Batch(session, 1, expected)).result(60)
        before = memory(pid)
        began = time.perf_counter()
        with Peak(pid, before) as peak:
            policy = encode(people.policy)
            made = (digest("bench"),)
            pending: collections.deque[GrpcPending] = collections.deque()
            for k, (way, tensor) in enumerate(zip(ways, tensors, strict=True), start=1):
                data = TensorData("float32", tuple(tensor.shape), 0)
                message = Deliver(session, (k,), (data,), policy, digests=made)
                pending.append(way.submit(message, (to_frame(tensor),), steady=True))
                if len(pending) == at_once:
                    finish(pending.popleft())
            for one in pending:
                finish(one)
            adds = []
            for k in range(2, count + 1):
                left = Ref(1) if k == 2 else Ref(100 + k - 1)
                adds.append(
                    Run("aten.add.Tensor", [left, Ref(k)], {}, 100 + k, 1, False)
                )
            mean = Run("aten.div.Tensor", [Ref(100 + count), count], {}, 99, 1, False)
            asked = Batch(session, 2, (*adds, mean, Fetch(99)))
            parcel = me.submit(asked).result(120)
        took = time.perf_counter() - began
        if not isinstance(parcel.message, Results) or len(parcel.frames) != 1:
            raise SystemExit(f"the mean was not released: {parcel.message}")
        found = from_frame(parcel.frames[0], "float32", tuple(tensors[0].shape))
        if not torch.equal(found, summed(tensors).div_(count).to(torch.float32)):
            raise SystemExit("the mean is not torch's own")
    return peak, took


def finish(pending: GrpcPending) -> None:
    """Wait until a delivery is there."""
    reply = pending.result(120).message
    if reply != Done():
        raise SystemExit(f"a delivery was refused: {reply}")


# --- memory -----------------------------------------------------------------------


class Peak:
    """The most memory that a process and those below it have inside the block.

    Args:
        pid: the process.
        before: what they had before, which does not count.

    Attributes:
        most: at the moment when anonymous, shared and cached memory were most.
        dirty: the most that waited for the disk.
    """

    def __init__(self, pid: int, before: Mapping[str, int]) -> None:
        self.most = dict.fromkeys(KINDS, 0)
        self.dirty = 0
        self._pid = pid
        self._before = before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def bytes(self) -> int:
        """All of it together."""
        return together(self.most)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            now = memory(self._pid)
            added = {kind: now[kind] - self._before[kind] for kind in KINDS}
            self.dirty = max(self.dirty, added["dirty"])
            if together(added) > self.bytes:
                self.most = added


def together(found: Mapping[str, int]) -> int:
    """Return all bytes. What is mapped of a spool file is in its cache."""
    return sum(found[kind] for kind in ("anonymous", "shared", "cached"))


def memory(pid: int) -> dict[str, int]:
    """Return the bytes of a process and its children, by kind.

    ``anonymous`` and ``files`` are mapped, shares counted once; ``shared`` is all
    memory in files without a disk, ``cached`` all that memory has of files without a
    name, mapped or not, and ``dirty`` what of that waits for the disk.
    """
    found = dict.fromkeys(KINDS, 0)
    names = {"Pss_Anon": "anonymous", "Pss_File": "files"}
    for one in family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in names:
                    found[names[name]] += int(value.split()[0]) * 1024
    seen = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target, status = os.readlink(file), os.stat(file)
            if not target.endswith(" (deleted)") or status.st_ino in seen:
                continue
            seen.add(status.st_ino)
            if target.startswith("/memfd:"):
                found["shared"] += status.st_blocks * 512
            elif status.st_size >= 2**20:
                pages, dirty = cached(file)
                found["cached"] += pages * 4096
                found["dirty"] += dirty * 4096
    return found


def cached(file: Path) -> tuple[int, int]:
    """Return how many pages of a file memory has, and how many the disk has not.

    Source: Linux 6.5, cachestat(2).
    """
    fd = os.open(file, os.O_RDONLY)
    try:
        whole, counts = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(_CACHESTAT, fd, whole, counts, 0):
            raise SystemExit("this kernel can not tell what memory has of a file")
    finally:
        os.close(fd)
    return counts[0], counts[1] + counts[2]


def family(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


# --- adding -----------------------------------------------------------------------


def summed(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return torch's own sum in float64."""
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor in tensors:
        total += tensor.double()
    return total


def added(tensors: Sequence[torch.Tensor], spool: Path, rounds: int) -> list[float]:
    """Return the seconds of torch, and of evaluating from memory and from files."""
    pool, mappings = Pool(0, mapped=False, spool=spool), Mappings()
    spooled = []
    for tensor in tensors:
        frame = to_frame(tensor)
        segment = pool.take(len(frame))
        pool.write(segment, 0, frame)
        pool.finish(segment)
        (mine,) = mappings.frames(segment.number, os.dup(segment.fd), (len(frame),))
        spooled.append(from_frame(mine, "float32", tuple(tensor.shape)))
        pool.lend(segment)
    of = [made_sum(tensors), made_sum(spooled)]
    taken = []
    for _ in range(rounds):
        times = [time.perf_counter()]
        total = summed(tensors).to(torch.float32)
        times.append(time.perf_counter())
        results = []
        for one, passed in zip(of, ((), (mappings.passed,)), strict=True):
            results.append(evaluate(one, None, *passed).values)
            times.append(time.perf_counter())
        if not all(torch.equal(total, result) for result in results):
            raise SystemExit("the sum is not torch's own")
        taken.append([b - a for a, b in itertools.pairwise(times)])
    pool.close()
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def made_sum(tensors: Sequence[torch.Tensor]) -> Sum:
    """Return the sum of these as contributions."""
    terms = {
        Contribution(f"owner{k:02}", f"s/{k}", tensor): Fraction(1)
        for k, tensor in enumerate(tensors)
    }
    return Sum(terms, tuple(tensors[0].shape), tensors[0].dtype)


def main() -> None:
    """Print the table; fail where a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--owners", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spool", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tensors = [torch.randn(options.parameters) for _ in range(options.owners)]
    table = Table(
        title=f"The mean of {options.owners} models of {options.parameters / 1e6:g} "
        "million parameters, in copies of the model"
    )
    for name in ("held in", "at once", "at most", *KINDS[:-1], "dirty", "seconds"):
        table.add_column(name, justify="left" if name == "held in" else "right")
    size, spooled = tensors[0].nbytes, 0
    with tempfile.TemporaryDirectory(dir=options.spool, prefix="bench-") as name:
        spool = Path(name)
        ways = [(None, len(tensors)), (spool, len(tensors)), (spool, 2)]
        for place, at_once in ways:
            with tempfile.TemporaryDirectory() as root:
                people = People(Path(root), options.owners)
                with people.serving(place) as (pid, address):
                    peak, took = average(people, pid, address, tensors, at_once)
            if place is not None:
                spooled = max(spooled, peak.bytes)
            parts = [peak.most[kind] / size for kind in KINDS[:-1]]
            table.add_row(
                "memory" if place is None else "files",
                f"{at_once}",
                *(f"{n:.2f}" for n in (peak.bytes / size, *parts, peak.dirty / size)),
                f"{took:.1f}",
            )
        plain, ours, filed = added(tensors, spool, options.rounds)
    console = Console(width=100)
    console.print(table)
    console.print(
        f"Evaluating beside torch in float64 on one thread: {ours / plain:.2f} from "
        f"memory, {filed / plain:.2f} from files (at most {RATIO_AT_MOST:g})."
    )
    if spooled > COPIES_AT_MOST * size:
        raise SystemExit(f"more than {COPIES_AT_MOST:g} copies were in memory")
    if max(ours, filed) > RATIO_AT_MOST * plain:
        raise SystemExit(f"adding took more than {RATIO_AT_MOST:g} times torch's time")


if __name__ == "__main__":
    main()
