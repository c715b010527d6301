"""Served workers survive what the world does to them.

Cables that break at any byte, processes that end or stop, readers that do not read,
disks that are full, clocks that jump. What is measured of a worker's memory is
measured of a process that only serves.

Proved elsewhere: a killed child costs its session only
(``test_served.test_a_child_that_is_killed_costs_its_session_only``); a killed worker's
processes end with it and its clients hear so
(``cli.test_serve.test_a_worker_that_is_killed_leaves_nothing``); two wrong clocks in an
invitation (``test_invites``).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from torch import nn

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import LimitError, ObhutError, SessionLostError, TransportError
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.protocol import codec
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Batch,
    Fetch,
    Open,
    Put,
    TensorData,
)
from obhut.testing.cables import Cable, Cut, Direction, random_cuts
from obhut.testing.people import People
from obhut.testing.sites import Sites
from obhut.testing.vitals import descendants
from obhut.transports.grpc import wire
from obhut.transports.grpc.client import CHANNEL_OPTIONS, EXCHANGE
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.server import HANDSHAKE_SECONDS

from .conftest import World, until

MEBIBYTE = 2**20

KEEP_ALIVE = (
    ("grpc.keepalive_time_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 1_000),
)
"""Ask after half a second whether the peer is there; wait as long as ever."""

NOTICED_SECONDS = 0.5 + 10
"""After so long a peer that does not answer must be noticed with ``KEEP_ALIVE``."""

HURRIED = (
    *KEEP_ALIVE,
    ("grpc.keepalive_timeout_ms", 500),
    ("grpc.http2.ping_timeout_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 1_000),
)
"""The same, and give up soon."""


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """Two owners and an aggregator in processes of their own; tests leave them up."""
    names = ("aggregator", "bob", "alice", "me", "you")
    with Sites(tmp_path_factory.mktemp("sites"), names) as sites:
        serve(sites, "aggregator")
        for name in ("bob", "alice"):
            serve(sites, name)
        yield sites


def serve(sites: Sites, name: str, more: str = "") -> None:
    """Start one of the sites, or start it again."""
    owner = name != "aggregator"
    sites.serve(
        name,
        sessions=("me", "you"),
        deliver=() if owner else ("bob", "alice"),
        limits='memory = "512 MiB"'
        + ("\nbatch_seconds = 2" if name == "alice" else ""),
        reach={"aggregator": sites.addresses["aggregator"]} if owner else None,
        more=more,
    )


@contextlib.contextmanager
def session(
    sites: People,
    who: str,
    to: str,
    address: str = "",
    *,
    options: Collection[tuple[str, int]] = (),
    reconnect_seconds: float = 20.0,
) -> Iterator[RemoteWorker]:
    """Somebody's session with a worker; it ends with the block."""
    worker = RemoteWorker(
        sites.transport(
            who, to, address, options=options, reconnect_seconds=reconnect_seconds
        )
    )
    try:
        yield worker
    finally:
        worker.close()


# --- cables -----------------------------------------------------------------------


def train(worker: RemoteWorker, steps: int) -> tuple[list[float], list[torch.Tensor]]:
    """Train there; return the losses, each of which is asked for, and the weights."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 10), torch.randn(64)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
    x, y = obhut.send(x, worker), obhut.send(y, worker)
    obhut.send(model, worker)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((model(x).squeeze(1) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [p.get().detach() for p in model.parameters()]


@pytest.mark.slow
def test_two_hundred_cuts_at_any_byte_change_nothing(world: World) -> None:
    """Losses and weights are those of the uncut run, bit for bit.

    Connections break in the handshake, in a frame of HTTP/2, in a message, in a
    reply that was already carried out: wherever a random byte is.
    """
    steps = 400
    with session(world, "me", "bob") as bob:
        expected, weights = train(bob, steps)
    # The handshake takes some 2,900 bytes there and 3,700 back.
    early, late = range(3_600), (range(3_000, 5_000), range(3_700, 4_000))
    where = {
        way: (early, *[one] * 12) for way, one in zip(Direction, late, strict=True)
    }
    cuts = random_cuts(20_260_707, 200, where)
    with Cable(world.address("bob"), cuts) as cable:
        with session(world, "me", "bob", cable.address) as bob:
            losses, torn = train(bob, steps)
        assert cable.broken == 200
    assert losses == expected
    assert all(map(torch.equal, torn, weights))


@pytest.mark.parametrize("direction", Direction)
def test_cuts_in_a_large_tensor_change_no_byte(
    world: World, direction: Direction
) -> None:
    """Megabytes that break off again and again arrive whole, there and back."""
    tensor = torch.randn(1_000_000)
    cuts = [Cut(direction, 100_000 * k + 17) for k in range(1, 6)]
    with Cable(world.address("bob"), cuts) as cable:
        with session(world, "me", "bob", cable.address) as bob:
            back = obhut.send(tensor, bob).get()
        assert cable.broken == len(cuts)
    assert torch.equal(back, tensor)


def test_a_network_that_swallows_for_a_while_changes_nothing(world: World) -> None:
    """The client tries again until bytes pass; what it asked is done once."""
    with (
        Cable(world.address("bob")) as cable,
        session(world, "me", "bob", cable.address, options=HURRIED) as bob,
    ):
        x = obhut.send(torch.zeros(1), bob)
        assert x.item() == 0.0
        cable.swallow()
        x.add_(1)
        bob.session.flush()
        until(lambda: cable.connections >= 3)  # it has given up two
        cable.pass_on()
        assert x.item() == 1.0


# --- a peer that does not answer --------------------------------------------------


def test_who_does_not_answer_is_noticed(world: World, sites: Sites) -> None:
    """A stopped worker, a network that swallows, a stranger who says nothing.

    The first two end for their clients with an error that says what to do, the third
    for the worker, each within the time that it may take. All at once, since each
    takes that long.
    """
    host, _, port = world.address("bob").rpartition(":")
    errors: dict[str, tuple[float, BaseException]] = {}
    with (
        Cable(world.address("bob")) as cable,
        session(
            sites, "me", "alice", options=KEEP_ALIVE, reconnect_seconds=0
        ) as stopped,
        session(
            world, "you", "bob", cable.address, options=KEEP_ALIVE, reconnect_seconds=0
        ) as swallowed,
        socket.create_connection((host, int(port))) as silent,
    ):
        began = time.monotonic()

        def ask(name: str, x: torch.Tensor) -> None:
            try:
                x.sum().item()
            except ObhutError as error:
                errors[name] = time.monotonic() - began, error

        tensors = {
            name: obhut.send(torch.ones(1), worker)
            for name, worker in (("stopped", stopped), ("swallowed", swallowed))
        }
        assert [x.item() for x in tensors.values()] == [1.0, 1.0]
        os.kill(sites.pids["alice"], signal.SIGSTOP)
        try:
            cable.swallow()
            threads = [threading.Thread(target=ask, args=t) for t in tensors.items()]
            for thread in threads:
                thread.start()
            silent.settimeout(2 * HANDSHAKE_SECONDS)
            assert silent.recv(1) == b""
            assert time.monotonic() - began < HANDSHAKE_SECONDS + 3
            for thread in threads:
                thread.join()
        finally:
            os.kill(sites.pids["alice"], signal.SIGCONT)
    assert errors.keys() == {"stopped", "swallowed"}
    for took, error in errors.values():
        assert isinstance(error, SessionLostError), error
        assert "open a new session" in str(error)
        assert took < NOTICED_SECONDS + 3
    with session(sites, "me", "alice") as alice:
        assert obhut.send(torch.ones(1), alice).item() == 1.0


def test_a_worker_that_stopped_goes_on_where_it_was(sites: Sites) -> None:
    """A client that gives it time finds its session as it left it."""
    with session(sites, "me", "alice", options=HURRIED) as alice:
        x = obhut.send(torch.zeros(1), alice)
        assert x.item() == 0.0
        os.kill(sites.pids["alice"], signal.SIGSTOP)
        try:
            x.add_(1)
            alice.session.flush()
            call = alice.session._transport._call  # type: ignore[attr-defined]
            until(lambda: not call.is_active())
        finally:
            os.kill(sites.pids["alice"], signal.SIGCONT)
        assert x.item() == 1.0


def test_a_session_that_does_not_answer_ends_at_its_deadline(sites: Sites) -> None:
    """What can not be answered is an error in bounded time, and costs that session.

    Its process is stopped, as one is that hangs. The parent ends it after the seconds
    that a message may take.
    """
    with session(sites, "you", "alice") as you, session(sites, "me", "alice") as me:
        y = obhut.send(torch.ones(1), you)
        assert y.item() == 1.0
        before = descendants(sites.pids["alice"])
        x = obhut.send(torch.ones(1), me)
        assert x.item() == 1.0
        (child,) = set(descendants(sites.pids["alice"])) - set(before)
        os.kill(child, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(SessionLostError, match="did not answer in time") as caught:
            x.sum().item()
        assert 1.5 < time.monotonic() - began < 6
        assert "open a new session" in str(caught.value)
        assert y.sum().item() == 1.0


# --- processes that end -----------------------------------------------------------


def test_an_aggregator_that_is_killed_while_owners_deliver(sites: Sites) -> None:
    """What it had accepted is said to be lost; what it had not is still at its owners.

    The aggregator starts again where it was. The owners, who were never told, reach
    it at the next delivery.
    """
    tensors = {name: torch.randn(2_000_000) for name in ("bob", "alice")}
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(session(sites, "me", "aggregator"))
        owners = {n: stack.enter_context(session(sites, "me", n)) for n in tensors}
        held = {n: obhut.send(tensors[n], owner) for n, owner in owners.items()}
        for x in held.values():  # both have connections now
            assert x.clone().move(there).sum().item() == x.sum().item()
        moved = [held[name].move(there) for name in owners]
        for owner in owners.values():
            owner.session.flush()
        sites.kill("aggregator")
        serve(sites, "aggregator")
        for one in moved:
            with pytest.raises(TransportError, match="open a new"):
                one.sum().item()
        for name, x in held.items():
            with contextlib.suppress(SessionLostError):  # the aggregator's
                assert torch.equal(x.get(), tensors[name]), "it did not stay"
        again = stack.enter_context(session(sites, "me", "aggregator"))
        for name, owner in owners.items():
            x = obhut.send(tensors[name], owner)
            assert torch.equal(x.move(again).get(), tensors[name])


# --- readers and writers that do not go on ----------------------------------------


@contextlib.contextmanager
def raw(sites: Sites, who: str, to: str) -> Iterator[grpc.Channel]:
    """A channel of somebody who does not keep to obhut's client."""
    peer = sites.peers(who).find(to)
    credentials, options = channel_credentials(sites.identities[who], peer)
    with grpc.secure_channel(
        sites.addresses[to], credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:
        yield channel


def chunks(message: AnyMessage, *frames: bytes) -> list[bytes]:
    """Return a message as it travels."""
    return list(wire.cut(codec.encode(message), frames))


def test_who_does_not_read_holds_up_nobody_else(sites: Sites) -> None:
    """Replies wait for their reader one at a time; the worker serves the others.

    Ten replies of 64 MiB are due on each of three streams, and nobody takes one.
    """
    size = 64 * MEBIBYTE
    before = sites.vitals("bob").pss
    never = threading.Event()

    def messages(name: str) -> Iterator[bytes]:
        yield from chunks(Open(name, PROTOCOL_VERSION, str(torch.__version__)))
        data = TensorData("uint8", (size,), 0)
        yield from chunks(Batch(name, 1, (Put(1, data),)), bytes(size))
        for number in range(2, 12):
            yield from chunks(Batch(name, number, (Fetch(1),)))
        never.wait(60)

    with raw(sites, "me", "bob") as channel, session(sites, "you", "bob") as you:
        exchange = channel.stream_stream(EXCHANGE)
        calls = [exchange(messages(f"slow-{k}")) for k in range(3)]
        for call in calls:  # Welcome, that it was put, and a piece of the first reply
            for _ in range(3):
                assert next(call)
        x = obhut.send(torch.zeros(1_000), you)
        for k in range(200):
            x.add_(1)
            assert x[0].item() == k + 1
        # A request and a reply of each are in memory that is shared with its child.
        assert sites.vitals("bob").pss - before < 3 * (2 * size + 16 * MEBIBYTE)
        for call in calls:
            call.cancel()
        never.set()
    with session(sites, "you", "bob") as you:
        assert obhut.send(torch.ones(1), you).item() == 1.0


def test_half_a_message_and_then_nothing(sites: Sites) -> None:
    """It costs its sender a connection, and the worker what has come, till it ends."""
    size = 64 * MEBIBYTE
    half = size // 2
    before = sites.vitals("bob").pss
    over = threading.Event()
    data = TensorData("uint8", (size,), 0)
    put = chunks(Batch("half", 1, (Put(1, data),)), bytes(size))

    def messages() -> Iterator[bytes]:
        yield from chunks(Open("half", PROTOCOL_VERSION, str(torch.__version__)))
        yield from put[: len(put) // 2]
        over.wait(60)

    with raw(sites, "me", "bob") as channel, session(sites, "you", "bob") as you:
        call = channel.stream_stream(EXCHANGE)(messages())
        assert next(call)
        x = obhut.send(torch.zeros(1), you)
        for _ in range(50):
            x.add_(1)
        assert x.item() == 50.0
        assert sites.vitals("bob").pss - before < half + 32 * MEBIBYTE
        call.cancel()
        over.set()
        until(lambda: sites.vitals("bob").pss - before < 32 * MEBIBYTE)
        assert x.item() == 50.0


# --- full disks -------------------------------------------------------------------

COMMAND = (sys.executable, "-P", "-m", "obhut.cli.main")


def on_a_full_disk(*arguments: object, room: int = 0) -> str:
    """Run ``obhut`` where a file may have so many bytes; return its one sentence."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    ended = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        # Only sets a limit in the child, between fork and exec.
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 1, ended
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


@pytest.fixture
def alone(tmp_path: Path) -> Sites:
    """A worker that is configured and does not serve."""
    sites = Sites(tmp_path, ("bob", "me"))
    sites.configure("bob", sessions=["me"])
    return sites


def test_no_room_for_the_process_file(alone: Sites) -> None:
    """A worker that can not write its number does not start, in one sentence."""
    folder = alone.root / "bob"
    said = on_a_full_disk("worker", "--config", folder / "worker.toml")
    assert "worker.pid" in said
    assert alone.serve("bob", sessions=["me"])
    alone.close()


def test_no_room_for_the_data(alone: Sites) -> None:
    """A data set that does not fit into memory is named; nothing is half-loaded."""
    np.savez(alone.root / "bob" / "d.npz", x=np.zeros((50_000, 2), dtype=np.float32))
    alone.configure(
        "bob",
        sessions=["me"],
        more='[[dataset]]\nname = "d"\npath = "d.npz"\nfeatures = "x"\n',
    )
    config = alone.root / "bob" / "worker.toml"
    assert "d.npz" in on_a_full_disk("worker", "--config", config, room=100_000)


def test_no_room_for_an_identity(tmp_path: Path) -> None:
    """``obhut init`` says so and leaves nothing that looks like an identity."""
    assert "File too large" in on_a_full_disk("init", "--folder", tmp_path / "new")
    assert not [*(tmp_path / "new").glob("*.key"), *(tmp_path / "new").glob(".*.*")]
    Identity.create().save(tmp_path / "new")


def test_no_room_for_a_peer(alone: Sites) -> None:
    """A peer that can not be written is not known, and those before stay known."""
    book = alone.peers("bob")
    stranger = Identity.create()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            book.add("stranger", stranger.certificate)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for one in (book, PeerBook(book.folder)):
        assert [peer.name for peer in one] == ["me"]
        assert not one.broken
    assert book.add("stranger", stranger.certificate).name == "stranger"


def test_no_room_for_tensors_while_it_serves(sites: Sites) -> None:
    """A tensor for which the machine has no memory is refused; all else goes on."""
    pid = sites.pids["bob"]
    with session(sites, "me", "bob") as bob:
        x = obhut.send(torch.ones(1), bob)
        assert x.item() == 1.0
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(LimitError):
                obhut.send(torch.ones(1_000_000), bob).sum().item()
            with pytest.raises(LimitError):
                x.repeat(1_000_000).get()
            assert x.item() == 1.0
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        assert obhut.send(torch.ones(1_000_000), bob).sum().item() == 1_000_000


def test_no_room_for_the_log(alone: Sites) -> None:
    """A worker whose log can not be written serves all the same."""
    config = alone.root / "bob" / "worker.toml"
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [*COMMAND, "worker", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[3].rstrip(",")
            with session(alone, "me", "bob", address) as bob:
                assert obhut.send(torch.ones(1), bob).item() == 1.0
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


# --- clocks that jump -------------------------------------------------------------

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The wall clock, moved by the seconds that a file says; other clocks as they are. */
static const volatile long *offset;
static int (*clock_real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("OBHUT_TEST_CLOCK"), O_RDONLY | O_CLOEXEC);
    offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    clock_real = dlsym(RTLD_NEXT, "clock_gettime");
    close(file);
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int code = clock_real(which, now);
    if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)
        now->tv_sec += *offset;
    return code;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
"""

DAY = 86_400


class Clock:
    """The wall clock of processes that start while it is in place."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source, library = folder / "clock.c", folder / "clock.so"
        source.write_text(CLOCK)
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler to build a clock with")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
        )
        self._file = folder / "clock"
        self.jump(0)
        monkeypatch.setenv("LD_PRELOAD", str(library))
        monkeypatch.setenv("OBHUT_TEST_CLOCK", str(self._file))

    def jump(self, seconds: int) -> None:
        """Let the wall clock be so many seconds off from now on."""
        # Written in place: processes have it mapped.
        with open(self._file, "r+b" if self._file.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.mark.slow
def test_a_wall_clock_that_jumps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions neither end nor live longer for it; the log shows that it did jump.

    Whoever is connected stays so. Who connects while the clock is outside the days of
    the certificates is refused, is told of them, and is served when it is right again.
    """
    with Sites(tmp_path, ("bob", "me", "you")) as sites:
        clock = Clock(tmp_path, monkeypatch)
        sites.serve("bob", sessions=["me", "you"], limits="session_seconds = 4")
        monkeypatch.undo()  # only the worker's clock
        with (
            Cable(sites.addresses["bob"]) as cable,
            session(sites, "me", "bob", cable.address) as me,
        ):
            x = obhut.send(torch.zeros(1), me)
            for k, days in enumerate((365, -365, 4_000, -4_000), start=1):
                clock.jump(days * DAY)
                x.add_(1)
                assert x.item() == k
            with pytest.raises(TransportError):
                ask_once(sites, "you")
            clock.jump(3_600)
            assert ask_once(sites, "you") == 1.0
            year = (datetime.now(UTC) + timedelta(seconds=3_600)).year
            assert f"{year}-" in sites.log("bob")
            assert x.item() == 4
            # One that nobody is connected to ends at its time by the even clock.
            cable.swallow()
            cable.cut()
            pid = descendants(sites.pids["bob"])[-1]
            child = os.pidfd_open(pid)
            clock.jump(-365 * DAY)
            began = time.monotonic()
            with contextlib.closing(os.fdopen(child, closefd=True)) as ended:
                wait_for(ended.fileno(), 20)
            assert 3 < time.monotonic() - began < 12
            clock.jump(0)
            cable.pass_on()
            with pytest.raises(SessionLostError, match="expired"):
                x.item()


def ask_once(sites: Sites, who: str) -> float:
    """Return what a worker answers to somebody who does not try twice."""
    with session(sites, who, "bob", reconnect_seconds=0) as bob:
        return obhut.send(torch.ones(1), bob).item()


def wait_for(process: int, seconds: float) -> None:
    """Wait until a process has ended, as ``pidfd_open`` named it."""
    import select

    ended, _, _ = select.select([process], [], [], seconds)
    assert ended


@pytest.mark.parametrize("hours", [-23, 23])
def test_a_peer_whose_clock_is_a_day_off_is_served(
    tmp_path: Path, world: World, hours: int
) -> None:
    """A certificate that was made by a clock that is less than a day off holds."""
    now = datetime.now(UTC) + timedelta(hours=hours)
    assert meet(world, Identity.create(now)) == 1.0


@pytest.mark.parametrize("hours", [25, -24 * 3_653])
def test_a_peer_whose_clock_is_further_off_is_refused(world: World, hours: int) -> None:
    """Its certificate is not valid here, and its client is told so in bounded time."""
    now = datetime.now(UTC) + timedelta(hours=hours)
    with pytest.raises(TransportError, match="bob at"):
        meet(world, Identity.create(now))


def meet(world: World, identity: Identity) -> float:
    """Return what bob answers to a client who shows that identity as ``you``."""
    book = world.peers("bob")
    known = book.remove("you")
    assert known == "you"
    book.add("you", identity.certificate)
    mine, world.identities["you"] = world.identities["you"], identity
    try:
        with session(world, "you", "bob", reconnect_seconds=0) as bob:
            return obhut.send(torch.ones(1), bob).item()
    finally:
        world.identities["you"] = mine
        book.remove("you")
        book.add("you", mine.certificate)


def test_peers_are_read_again_whatever_their_files_times_say(tmp_path: Path) -> None:
    """A file that was written by a clock in the past or the future is seen."""
    book = PeerBook(tmp_path / "peers")
    for number, when in zip(itertools.count(), (0, 4_000_000_000, 1), strict=False):
        identity = Identity.create()
        other = PeerBook(tmp_path / "peers")
        other.add(f"peer-{number}", identity.certificate)
        for path in (*book.folder.iterdir(), book.folder):
            os.utime(path, (when, when))
        assert book.find(identity.id).name == f"peer-{number}"
