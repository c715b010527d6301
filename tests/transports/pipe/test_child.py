"""A child's loop, run on a thread: every message is answered, whatever goes wrong."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from obhut.protocol import codec, messages
from obhut.protocol.messages import (
    Batch,
    Clear,
    Count,
    Counted,
    Fetch,
    Open,
    Put,
    Results,
    TensorData,
    Welcome,
)
from obhut.transports.pipe import child
from obhut.transports.pipe.control import (
    Borrow,
    Cancel,
    Down,
    Handle,
    Handled,
    Lend,
    Settings,
    Settle,
    Sizes,
    Told,
    Unanswered,
    Up,
)
from obhut.transports.pipe.link import Link
from obhut.transports.pipe.mappings import Mappings
from obhut.worker.core import Worker
from obhut.worker.effects import Parcel


class Tired(Worker):
    """A worker whose senders' names say how it fails, or that it is slow.

    Attributes:
        gate: it handles what is slow when this is set.
    """

    def __init__(self, cancelled: child.Cancels) -> None:
        super().__init__("bob", cancelled=cancelled)
        self.gate = threading.Event()

    def handle(self, sender: str, parcel: Parcel, now: float) -> Any:
        """Fail, or do as a worker does."""
        if sender == "memory":
            raise MemoryError
        if sender == "bug":
            raise ValueError("private value 0.123")
        if sender == "slow":
            assert self.gate.wait(15)
            sender = "me"
        return super().handle(sender, parcel, now)


class ParentEnd:
    """The parent's end of a pipe to a child that runs on a thread."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.link: Link[Any] = Link(ours, Up, takes_files=False)
        self.other: Link[Any] = Link(theirs, Down, takes_files=True)
        cancels = child.Cancels(self.other)
        self.core = Tired(cancels)
        self.thread = threading.Thread(
            target=child.serve, args=(cancels, self.core, Mappings())
        )
        self.thread.start()

    def ask(self, message: messages.AnyMessage | bytes, sender: str = "me") -> Any:
        """Send a message and return what comes."""
        header = message if isinstance(message, bytes) else codec.encode(message)
        self.link.send(Handle(sender, 0.0, Sizes(len(header))), (header,))
        return self.link.receive()

    def close(self) -> None:
        """Close this end, which ends the child."""
        self.link.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.other.close()


@pytest.fixture
def end() -> Iterator[ParentEnd]:
    """Start a child, and see that it ends."""
    made = ParentEnd()
    yield made
    made.close()


def opened(end: ParentEnd) -> ParentEnd:
    """Open a session."""
    hello = Open("s", messages.PROTOCOL_VERSION, str(torch.__version__))
    assert codec.decode(end.ask(hello).body) == Welcome(0)
    return end


def test_answers(end: ParentEnd) -> None:
    """A message is answered with the core's reply."""
    received = opened(end).ask(Batch("s", 1, ()))
    assert isinstance(received.control, Handled)
    assert codec.decode(received.body) == Results(1, ())


@pytest.mark.parametrize(
    ("sender", "header", "failed"),
    [
        ("me", b"\xc1", ("RemoteProtocolError", "not a message")),
        ("memory", b"", ("LimitError", "no memory")),
        ("bug", b"", ("InternalError", "met ValueError")),
    ],
)
def test_failures(
    end: ParentEnd, sender: str, header: bytes, failed: tuple[str, str]
) -> None:
    """A failure is answered by name, without values, and the child goes on."""
    opened(end)
    said = end.ask(header or Batch("s", 1, ()), sender).control
    assert isinstance(said, Unanswered)
    assert said.kind == failed[0]
    assert failed[1] in said.text
    assert "0.123" not in said.text
    assert codec.decode(end.ask(Batch("s", 1, ())).body) == Results(1, ())


def test_out_of_turn(end: ParentEnd) -> None:
    """Memory that nobody asked for is refused."""
    end.link.send(Lend(0))
    assert end.link.receive().control.kind == "RemoteProtocolError"


def test_what_is_cancelled_before_it_comes_is_not_computed(end: ParentEnd) -> None:
    """A batch is cut from its beginning; that it is cancelled is not answered."""
    opened(end)
    end.link.send(Cancel(1))
    end.link.send(Cancel(0))
    assert codec.decode(end.ask(Batch("s", 1, (Count(),))).body) == Results(1, (), 0)
    reply = codec.decode(end.ask(Batch("s", 2, (Count(),))).body)
    assert reply == Results(2, (Counted(0, 0),))


def test_what_is_cancelled_while_it_computes_ends_at_the_next_request(
    end: ParentEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in the pipe is looked at between two requests."""
    monkeypatch.setattr(child, "_LOOK_SECONDS", 0.0)
    opened(end)
    header = codec.encode(Batch("s", 1, (Count(), Clear(), Count())))
    end.link.send(Handle("slow", 0.0, Sizes(len(header))), (header,))
    end.link.send(Cancel(1))
    end.core.gate.set()
    assert codec.decode(end.link.receive().body) == Results(1, (), 0)


def test_what_is_done_is_told_from_time_to_time(
    end: ParentEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a run says so; it is rounded down to thousandths."""
    tells = child.Tells(end.other)
    for share in (0.1239, 0.2, 0.3):
        tells(share)
    monkeypatch.setattr(child, "_TELL_SECONDS", 0.0)
    child.Tells(end.other)(1.0)
    assert [end.link.receive().control for _ in range(2)] == [Told(123), Told(1000)]


def test_settle_unknown(end: ParentEnd) -> None:
    """Outcomes for a session that is not there are refused by the core."""
    end.link.send(Settle("me", "s", ()))
    received = end.link.receive()
    assert codec.decode(received.body).kind == "WorkerClosedError"


def held(end: ParentEnd, count: int) -> None:
    """Send a tensor through shared memory."""
    data = TensorData("float32", (count,), 0)
    header = codec.encode(Batch("s", 1, (Put(1, data),)))
    fd = os.memfd_create("test")
    os.ftruncate(fd, 4 * count)
    part = Sizes(len(header), (4 * count,))
    end.link.send(Handle("me", 0.0, part, 1), (header,), fd=fd)
    os.close(fd)
    assert isinstance(end.link.receive().control, Handled)


def test_borrow(end: ParentEnd) -> None:
    """A large answer is written where the parent says; without room it fails."""
    held(opened(end), 100_000)
    fetch = Batch("s", 2, (Fetch(1),))
    assert end.ask(fetch).control == Borrow(400_000)
    end.link.send(Lend(0))
    assert end.link.receive().control.kind == "LimitError"
    assert end.ask(fetch).control == Borrow(400_000)
    fd = os.memfd_create("test")
    os.ftruncate(fd, 400_000)
    end.link.send(Lend(2), fd=fd)
    assert end.link.receive().control.shared
    assert os.fstat(fd).st_size == 400_000
    os.close(fd)


def test_end_while_borrowing(end: ParentEnd) -> None:
    """A parent that goes away in the middle ends the child."""
    held(opened(end), 100_000)
    assert end.ask(Batch("s", 2, (Fetch(1),))).control == Borrow(400_000)


def test_main() -> None:
    """A child serves with the threads and the limit of its settings."""
    ours, theirs = socket.socketpair()
    link: Link[Any] = Link(theirs, Down, takes_files=True)
    ours.close()
    with pytest.MonkeyPatch.context() as patch:
        chosen: list[int] = []
        patch.setattr(torch, "set_num_threads", chosen.append)
        patch.setattr(torch, "set_num_interop_threads", chosen.append)
        child.main(link, Settings("bob", threads=2))
    assert chosen == [2, 1]
    link.close()


STARTED = """
import sys
import torch
from obhut.worker.shapes import dense, infer
from obhut.worker.warming import warm_up

warm_up()
row = dense((4, 4), torch.float32)
for op, args in (
    (torch.ops.aten.mm.default, (row, row)),
    (torch.ops.aten.gelu.default, (row,)),
    (torch.ops.aten._softmax.default, (row, 0, False)),
    (torch.ops.aten.native_layer_norm.default, (row, [4], None, None, 1e-5)),
):
    infer(op, args, {}, grad=True)
print("torch._dynamo" in sys.modules)
"""


def test_a_worker_loads_no_compiler() -> None:
    """Meta kernels run without it: it takes a second and 60 MB of each worker."""
    command = [sys.executable, "-c", STARTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
