"""What the pipe to a session's process costs, beside bare sockets and copies.

Each figure is the median of one run; ratios are against the least that any such
pipe could need, measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from obhut.protocol import codec, messages
from obhut.protocol.messages import Batch, Fetch, Free, Open, Put, TensorData
from obhut.transports.pipe.children import Children
from obhut.transports.pipe.control import Settings
from obhut.transports.pipe.parent import Child
from obhut.worker.tensors import from_frame, to_frame


def median(func: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a call."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        func()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def bare_round_trip(rounds: int) -> float:
    """Return the seconds in which 64 bytes go to another process and back."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        while data := theirs.recv(4096):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()

    def trip() -> None:
        ours.sendall(bytes(64))
        ours.recv(4096)

    seconds = median(trip, rounds)
    ours.close()
    os.waitpid(pid, 0)
    return seconds


def socket_copy(data: memoryview, rounds: int) -> float:
    """Return the seconds in which bytes go through a socket into new memory."""
    ours, theirs = socket.socketpair()
    done = threading.Semaphore(0)

    def drain() -> None:
        while True:
            tensor = torch.empty(len(data), dtype=torch.uint8).numpy()
            view, got = memoryview(tensor), 0
            while got < len(data):
                count = theirs.recv_into(view[got:])
                if not count:
                    return
                got += count
            done.release()

    thread = threading.Thread(target=drain)
    thread.start()

    def trip() -> None:
        ours.sendall(data)
        done.acquire()

    seconds = median(trip, rounds)
    ours.close()
    thread.join()
    theirs.close()
    return seconds


class Session:
    """A session in a child, as a client would use it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._number = 0
        self._tell(Open("s", messages.PROTOCOL_VERSION, str(torch.__version__)))

    def _tell(self, message: messages.AnyMessage, *frames: codec.Frame) -> object:
        answer = self._child.exchange("me", codec.encode(message), frames, 0.0)
        return answer.frames

    def batch(self, *requests: messages.AnyRequest, frames: tuple = ()) -> object:
        """Run requests and return the frames that come back."""
        self._number += 1
        return self._tell(Batch("s", self._number, requests), *frames)

    def put(self, tensor: torch.Tensor) -> None:
        """Send a tensor, in place of the last one."""
        data = TensorData("float32", tuple(tensor.shape), 0)
        self.batch(Free((1,)), Put(1, data), frames=(to_frame(tensor),))

    def get(self) -> object:
        """Fetch it."""
        return self.batch(Fetch(1))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    tensor = torch.rand(25_000_000)
    table = Table("what", "measured", "bare", "time / bare time")

    def row(what: str, ours: float, bare: float | None, unit: str) -> None:
        show = {
            "ms": lambda s: f"{1e3 * s:.1f} ms",
            "µs": lambda s: f"{1e6 * s:.0f} µs",
            "GB/s": lambda s: f"{tensor.nbytes / 1e9 / s:.2f} GB/s",
        }[unit]
        table.add_row(
            what,
            show(ours),
            show(bare) if bare else "",
            f"{ours / bare:.2f}" if bare else "",
        )

    bare_trip = bare_round_trip(200 * rounds)
    bare_copy = socket_copy(to_frame(tensor), rounds)
    shape = tuple(tensor.shape)
    plain = median(lambda: from_frame(to_frame(tensor), "float32", shape), rounds)
    with Children(Settings("bob", memory=2 * 2**30)) as children:
        began = time.perf_counter()
        walls = children.ready()
        row("fork server until it can fork", time.perf_counter() - began, None, "ms")
        started: list[Child] = []
        start = median(lambda: started.append(children.start("s")), rounds)
        row("start of a child", start, None, "ms")
        end = median(lambda: started.pop().close(), rounds)
        row("end of a child", end, None, "ms")
        child = children.start("s")
        began = time.perf_counter()
        session = Session(child)
        row("first exchange of a session", time.perf_counter() - began, None, "ms")
        trip = median(session.batch, 200 * rounds)
        row("empty exchange, against a bare socket", trip, bare_trip, "µs")
        session.put(tensor)
        session.get()
        put = median(lambda: session.put(tensor), rounds)
        row("100 MB in, against a bare socket", put, bare_copy, "GB/s")
        row("100 MB in, against one copy to a new tensor", put, plain, "GB/s")
        get = median(session.get, rounds)
        row("100 MB out, into the parent's view", get, bare_copy, "GB/s")
    console = Console()
    console.print(table)
    console.print(f"walls: {', '.join(sorted(walls))}")


if __name__ == "__main__":
    main()
