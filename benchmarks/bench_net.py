"""What served workers cost over mutual TLS on loopback, as ratios in one run.

Workers are processes of their own, with a child for each session. Plain torch, a
bare gRPC stream with the same certificates, chunks and options, and the served worker
take turns; each figure is a median. An epoch by program is one message, beside the same
loop in plain torch. Last, sixteen sessions deliver to one aggregator at a time: what
its processes have at most, beside what was delivered.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import torch
from bench import cnn, mlp, squared, step_of, training_step
from rich.console import Console
from rich.table import Table
from torch import nn

import obhut
from obhut.cli.processes import AGGREGATOR, RESEARCHER, Serving, running
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc import wire
from obhut.transports.grpc.client import CHANNEL_OPTIONS
from obhut.transports.grpc.credentials import channel_credentials, server_credentials

METHOD = "/bench/Echo"
MEGABYTES = 100
ROWS, BATCH = 1_000, 32


def seconds(func: Callable[[], object], count: int = 1) -> float:
    """Return the seconds of one call, from so many in a row."""
    began = time.perf_counter()
    for _ in range(count):
        func()
    return (time.perf_counter() - began) / count


def turns(rounds: int, *sides: Callable[[], float]) -> list[float]:
    """Return each side's median; they take turns."""
    found = [[side() for side in sides] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


# --- a bare stream, to compare with -----------------------------------------------


def echo(folder: Path) -> None:
    """Serve streams that take all chunks and send as many bytes as are asked for."""

    def serve(
        chunks: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        block = bytes(wire.CHUNK_BYTES)
        for chunk in chunks:
            if chunk[:1] == b"?":
                for _ in range(MEGABYTES * 1_000_000 // len(block)):
                    yield block
            if chunk[:1] in b"?.":
                yield b"."

    class Methods(grpc.GenericRpcHandler):
        def service(self, handler_call_details: object) -> object:
            """Serve every method alike."""
            return grpc.stream_stream_rpc_method_handler(serve)

    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=CHANNEL_OPTIONS, handlers=[Methods()]
    )
    credentials = server_credentials(Identity.load(folder), PeerBook(folder / "peers"))
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
    server.start()
    server.wait_for_termination()


class Bare:
    """A bare stream to a process that serves ``echo``.

    Args:
        server: the server's folder.
        client: the client's folder.
    """

    def __init__(self, server: Path, client: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--echo", str(server)],
            stdout=subprocess.PIPE,
            text=True,
        )
        port = self.process.stdout.readline().strip()
        peer = PeerBook(client / "peers").find(Identity.load(server).id)
        credentials, options = channel_credentials(Identity.load(client), peer)
        channel = grpc.secure_channel(
            f"127.0.0.1:{port}", credentials, (*CHANNEL_OPTIONS, *options)
        )
        self.outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.replies = channel.stream_stream(METHOD)(iter(self.outbox.get, None))
        self.block = b"x" * wire.CHUNK_BYTES

    def ping(self) -> None:
        """Send a byte and wait for one."""
        self.outbox.put(b".")
        next(self.replies)

    def send(self) -> None:
        """Send the megabytes and wait until they have come."""
        for _ in range(MEGABYTES * 1_000_000 // len(self.block)):
            self.outbox.put(self.block)
        self.outbox.put(b".")
        next(self.replies)

    def fetch(self) -> None:
        """Ask for the megabytes and wait until they are here."""
        self.outbox.put(b"?")
        while next(self.replies) != b".":
            pass


# --- the table --------------------------------------------------------------------


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--echo", type=Path)
    options = parser.parse_args()
    if options.echo:
        echo(options.echo)
        return
    torch.set_num_threads(1)
    rows = np.zeros((2, 2), dtype=np.float32), np.zeros((2, 1), dtype=np.float32)
    table = Table(title="Served workers over mutual TLS on loopback, one thread each")
    for name in ("what", "beside", "remote", "ratio", "reach"):
        table.add_column(name, justify="left" if name == "what" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        with running(
            folder, {"bob": rows, "alice": rows}, ["a", "b"], unguarded=True
        ) as serving:
            net = obhut.connect(
                *(one.address for one in serving), folder=folder / RESEARCHER
            )
            started = time.perf_counter() - began
            measure(table, net, folder, options.rounds)
            net.close()
            deliveries(table, serving, folder / RESEARCHER)
    console = Console(width=100)
    console.print(table)
    console.print(f"All processes started and connected in {started:.1f} s.")


def measure(table: Table, net: obhut.Network, folder: Path, rounds: int) -> None:
    """Fill the table."""
    bob, alice = net["bob"], net["alice"]

    def row(what: str, beside: float, ours: float, reach: str) -> None:
        table.add_row(
            what,
            f"{beside * 1e3:,.2f} ms",
            f"{ours * 1e3:,.2f} ms",
            f"{ours / beside:.2f}",
            reach,
        )

    pair, truth = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [0.0]])
    sgd, cross = torch.optim.SGD, nn.functional.cross_entropy

    def remote(
        build: Callable[[], nn.Module],
        data: torch.Tensor,
        target: torch.Tensor,
        loss: Callable[..., torch.Tensor],
        worker: obhut.RemoteWorker,
    ) -> Callable[[], None]:
        model = obhut.send(build(), worker)
        sent = obhut.send(data, worker), obhut.send(target, worker)
        return training_step(model, *sent, loss, sgd)

    def linear() -> nn.Module:
        return nn.Linear(2, 1)

    plain = training_step(linear(), pair, truth, squared, sgd)
    step = remote(linear, pair, truth, squared, bob)
    model = obhut.send(linear(), bob)
    x, y = obhut.send(pair, bob), obhut.send(truth, bob)
    optimizer = sgd(model.parameters(), lr=0.01)

    def fetching() -> None:
        optimizer.zero_grad()
        loss = squared(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()

    def drained(
        worker: obhut.RemoteWorker, count: int, do: Callable[[], None]
    ) -> float:
        def all_of_it() -> None:
            for _ in range(count):
                do()
            worker.wait()

        return seconds(all_of_it) / count

    for warm in (step, fetching, plain):
        seconds(warm, 50)
    beside, lazy, eager = turns(
        rounds,
        lambda: seconds(plain, 300),
        lambda: drained(bob, 300, step),
        lambda: seconds(fetching, 100),
    )
    row("linear step, no value fetched", beside, lazy, "4")
    row("linear step, a loss fetched each", beside, eager, "8")

    bare = Bare(folder / "bob", folder / RESEARCHER)

    def fetched() -> None:
        (x + 1).get()

    for warm in (bare.ping, fetched):
        seconds(warm, 50)
    trip, got = turns(
        rounds, lambda: seconds(bare.ping, 200), lambda: seconds(fetched, 100)
    )
    row("(x + 1).get(), beside a bare round trip", trip, got, "")

    images, labels = torch.randn(32, 1, 28, 28), torch.randint(0, 10, (32,))
    plain = training_step(cnn(), images, labels, cross, sgd)
    at_bob = remote(cnn, images, labels, cross, bob)
    at_alice = remote(cnn, images, labels, cross, alice)

    def both() -> float:
        def loops() -> None:
            for _ in range(10):
                at_bob()
                at_alice()
            bob.wait()
            alice.wait()

        return seconds(loops) / 10

    for warm in (at_bob, at_alice, plain):
        seconds(warm, 3)
    beside, one, two = turns(
        rounds, lambda: seconds(plain, 10), lambda: drained(bob, 10, at_bob), both
    )
    row("CNN step", beside, one, "1.2")
    row("CNN steps at two workers, beside one", one, two, "1.3")

    for name, build, shape in ("MLP", mlp, (784,)), ("CNN", cnn, (1, 28, 28)):
        data = torch.randn(ROWS, *shape), torch.arange(ROWS) % 10
        loops = epochs(build, data, bob)
        for warm in loops:
            seconds(warm, 2)
        beside, ours = turns(rounds, *(partial(seconds, one) for one in loops))
        row(f"{name} epoch of {ROWS:,} rows by program", beside, ours, "1.05")

    large = torch.randn(MEGABYTES * 250_000)
    kept: list[obhut.RemoteTensor] = []

    def send() -> None:
        kept.append(obhut.send(large, bob))
        bob.wait()

    def fetch() -> None:
        kept.pop().get()

    for warm in (bare.send, bare.fetch, send, fetch):
        warm()
    results = turns(
        rounds,
        lambda: seconds(bare.send),
        lambda: seconds(bare.fetch),
        lambda: seconds(send),
        lambda: seconds(fetch),
    )
    bare.process.kill()
    row(f"{MEGABYTES} MB sent, beside a bare stream", results[0], results[2], "1.25")
    row(f"{MEGABYTES} MB fetched, beside a bare stream", results[1], results[3], "1.25")


def epochs(
    build: Callable[[], nn.Module],
    data: tuple[torch.Tensor, torch.Tensor],
    worker: obhut.RemoteWorker,
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a loop in plain torch, and the same epoch in one message, to its end."""
    step = step_of(nn.functional.cross_entropy)
    local = build()
    remote = obhut.send(copy.deepcopy(local), worker)
    sent = tuple(obhut.send(one, worker) for one in data)
    here, there = (
        torch.optim.SGD(one.parameters(), lr=1e-3) for one in (local, remote)
    )
    program = obhut.program(step)
    ready = list(zip(*(one.split(BATCH) for one in data), strict=True))

    def ours() -> None:
        program.run(model=remote, optimizer=there, data=sent, batch_size=BATCH)
        worker.wait()

    def plain() -> None:
        for x, y in ready:
            step(local, here, x, y)

    return plain, ours


# --- many deliveries at once ------------------------------------------------------

SENDERS = 16


def deliveries(table: Table, serving: list[Serving], folder: Path) -> None:
    """Add what an aggregator's processes have while many deliver to it."""
    aggregator = next(one for one in serving if one.site.name == AGGREGATOR)
    sources = [one for one in serving if one is not aggregator]
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(obhut.connect(aggregator.address, folder=folder))
        place = target[AGGREGATOR]
        sent: list[obhut.RemoteTensor] = []
        for k in range(SENDERS):
            source = sources[k % len(sources)]
            net = stack.enter_context(obhut.connect(source.address, folder=folder))
            worker = net[source.site.name]
            sent.append(
                obhut.send(torch.full((MEGABYTES * 250_000,), float(k)), worker)
            )
        for one in sent:
            one.location.wait()
        place.wait()
        before = memory(aggregator.pid)
        with Peak(aggregator.pid) as peak:
            moved = [one.move(place) for one in sent]
            last = [one[-1].get().item() for one in moved]
        assert last == list(range(SENDERS))
    held = SENDERS * MEGABYTES * 1e6
    table.add_row(
        f"{SENDERS} deliveries of {MEGABYTES} MB, memory of the aggregator",
        f"{held / 1e6:,.0f} MB",
        f"{(peak.bytes - before) / 1e6:,.0f} MB",
        f"{(peak.bytes - before) / held:.2f}",
        "1.2",
    )


class Peak:
    """The most memory that a process and its children have inside the block.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.bytes = max(self.bytes, memory(self._pid))


def memory(pid: int) -> int:
    """Return the bytes of a process and its children, shared memory once."""
    found = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in {"Pss_Anon", "Pss_File"}:
                    found += int(value.split()[0]) * 1024
    # What is in files without a name is nobody's, or everybody's who maps it.
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(file).startswith("/memfd:"):
                found += os.stat(file).st_blocks * 512
    return found


def family(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


if __name__ == "__main__":
    main()
