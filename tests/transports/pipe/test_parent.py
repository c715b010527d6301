"""A hostile child as its parent sees it: nothing but bytes on a socket."""

import fcntl
import mmap
import os
import resource
import socket
import struct
from array import array
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import (
    InternalError,
    LimitError,
    RemoteProtocolError,
    SandboxError,
    SessionLostError,
)
from obhut.protocol import codec
from obhut.protocol.messages import Deliver, Done, ReleaseQuestion, TensorData
from obhut.transports.pipe.control import (
    Borrow,
    Departure,
    Down,
    Handle,
    Handled,
    Lend,
    Ready,
    Settings,
    Sizes,
    Told,
    Unanswered,
    Walled,
)
from obhut.transports.pipe.link import (
    _READ_AT_ONCE,
    BODY_BYTES,
    CONTROL_BYTES,
    Link,
)
from obhut.transports.pipe.parent import Child, InSegment
from obhut.transports.pipe.segment import LENT_AT_MOST, places
from obhut.worker.effects import AskRelease, Delivery

LIMIT = 2**24


class Ends:
    """A parent's end and the other end, with no process behind it.

    What the other end says is written before it is asked, where that is enough.
    """

    def __init__(self, policy: bytes = b"") -> None:
        ours, self.theirs = socket.socketpair()
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**23)
        settings = Settings("bob", memory=LIMIT, seconds=5, policy=policy)
        self.ended: list[int] = []
        self.pool = ThreadPoolExecutor(1)
        self.child = Child("s", 7, ours, settings, self._end)
        self.link: Link[Any] = Link(self.theirs.dup(), Down, takes_files=True)

    def _end(self, pid: int) -> int:
        self.ended.append(pid)
        return -9

    def says(self, control: Any, body: bytes = b"") -> None:
        """Say something before it is asked."""
        self.link.send(control, (body,))

    def says_raw(self, data: bytes) -> None:
        """Say anything at all."""
        self.theirs.setblocking(False)
        self.theirs.send(data)

    def answers(self, *controls: Any, body: bytes = b"") -> Future[list[Any]]:
        """Say the next thing whenever it is told something; return what it was told."""

        def serve() -> list[Any]:
            told = []
            for control in controls:
                told.append(self.link.receive())
                self.says(control, body if isinstance(control, Handled) else b"")
            return told

        return self.pool.submit(serve)

    def ask(self, header: bytes = b"x", frames: Any = ()) -> Any:
        """Take a message to the other end."""
        return self.child.exchange("me", header, frames, 0.0)

    def close(self) -> None:
        """Close both ends."""
        self.pool.shutdown()
        self.child.close()
        self.child.dispose()
        self.theirs.close()
        self.link.close()


@pytest.fixture
def pair() -> Iterator[Ends]:
    """Make a pair."""
    made = Ends()
    yield made
    made.close()


def framed(control: bytes, body: bytes = b"") -> bytes:
    """Return a control and a body as they travel."""
    return struct.pack("=II", len(control), len(body)) + control + body


def packed(*fields: object) -> bytes:
    """Return a control with these fields, whether or not it may have them."""
    return msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff" * 64, id="no sizes"),
        pytest.param(struct.pack("=II", CONTROL_BYTES + 1, 0), id="large control"),
        pytest.param(struct.pack("=II", 4, BODY_BYTES + 1), id="large body"),
        pytest.param(framed(b"\xc1garbage"), id="no msgpack"),
        pytest.param(framed(b"\x91" * 100_000), id="deep nesting"),
        pytest.param(framed(packed("handle", "me")), id="for the other direction"),
        pytest.param(framed(packed("handled", [-1, []], [], False)), id="below zero"),
        pytest.param(framed(packed("handled", [2**60], [], False)), id="too large"),
        pytest.param(framed(packed("handled", [5, []], [], False)), id="less came"),
        pytest.param(
            framed(packed("handled", [1, []], [], False), b"xy"), id="more came"
        ),
        pytest.param(
            framed(packed("handled", [0, [2**40] * 1000], [], False)), id="huge frames"
        ),
        pytest.param(
            framed(packed("handled", [0, [0] * 900_000], [], False), b"x"),
            id="many frames",
        ),
        pytest.param(framed(packed("handled", [0, [9]], [], True)), id="nothing lent"),
        pytest.param(framed(packed("ready", ["network"])), id="ready again"),
        pytest.param(framed(packed("failed", "OSError", "")), id="unknown error"),
        pytest.param(framed(packed("failed", "LimitError", "x" * 5000)), id="long"),
        pytest.param(framed(packed("borrow", -1)), id="borrow below zero"),
        pytest.param(
            framed(packed("handled", [0, []], [], False)) + b"!", id="a byte behind"
        ),
        pytest.param(
            framed(packed("handled", [0, []], [["x" * 5000, 0, [0, []]]], False)),
            id="long name",
        ),
    ],
)
def test_garbage(pair: Ends, data: bytes) -> None:
    """What breaks the protocol ends the child, and its session is lost."""
    pair.says_raw(data)
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()
    assert pair.ended == [7]
    assert not pair.child.alive


@pytest.mark.parametrize("size", [1, 16_000, 16_300, 16_384, 100_000])
def test_nothing_is_behind_an_answer(pair: Ends, size: int) -> None:
    """An answer of any size is read whole, and a byte behind it ends the child."""
    control = packed("handled", [size, []], [], False)
    answer = framed(control, b"x" * size)
    pair.says_raw(answer)
    assert pair.ask().header == b"x" * size
    pair.says_raw(answer + b"!")
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()


def test_an_answer_that_fills_what_is_read_at_once_is_alone(pair: Ends) -> None:
    """Around the size of a first read a byte behind an answer is seen as well."""
    control = len(framed(packed("handled", [_READ_AT_ONCE, []], [], False)))
    for short in (-1, 0, 1):
        size = _READ_AT_ONCE - control - short
        answer = framed(packed("handled", [size, []], [], False), b"x" * size)
        assert len(answer) == _READ_AT_ONCE - short
        pair.says_raw(answer)
        assert pair.ask().header == b"x" * size
        other = Ends()
        other.says_raw(answer + b"!")
        with pytest.raises(SessionLostError, match="broke the protocol"):
            other.ask()
        other.close()


@pytest.mark.parametrize("size", [0, 16_000, 16_330, 16_384, 100_000])
def test_what_is_told_and_an_answer_come_together(pair: Ends, size: int) -> None:
    """However they are read, both are taken in, and nothing is behind the answer."""
    told = framed(packed("told", 250)) + framed(packed("told", 500))
    answer = framed(packed("handled", [size, []], [], False), b"x" * size)
    pair.says_raw(told + answer)
    assert pair.ask().header == b"x" * size
    assert pair.child.progress() == 500
    pair.says_raw(answer)
    assert pair.ask().header == b"x" * size
    pair.says_raw(told + answer + b"!")
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are an answer, a named failure, or the end of the session."""
    pair = Ends()
    try:
        pair.says_raw(data)
        pair.theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(
            (SessionLostError, LimitError, InternalError, RemoteProtocolError)
        ):
            raise LimitError(repr(pair.ask()))
    finally:
        pair.close()


@given(st.lists(st.integers(0, 2**48), max_size=5), st.booleans(), st.integers(0, 99))
def test_any_sizes(sizes: list[int], shared: bool, length: int) -> None:
    """Frames are handed on only if their sizes are those of what came."""
    pair = Ends()
    try:
        pair.says(Handled(Sizes(0, tuple(sizes)), (), shared), body=bytes(length))
        if not shared and sum(sizes) == length:
            assert list(map(len, pair.ask().frames)) == sizes
        else:
            with pytest.raises(SessionLostError):
                pair.ask()
    finally:
        pair.close()


def test_half_a_message(pair: Ends) -> None:
    """A child that ends in the middle of an answer has ended."""
    pair.says_raw(framed(packed("handled", [5, []], [], False), b"abcde")[:-2])
    pair.theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(SessionLostError, match=r"ended \(SIGKILL"):
        pair.ask()


def test_many_files(pair: Ends) -> None:
    """Files that a child sends are not taken in."""
    before = len(os.listdir("/proc/self/fd"))
    message = framed(packed("handled", [0, []], [], False))
    null = os.open("/dev/null", os.O_RDONLY)
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null] * 200))]
    pair.theirs.sendmsg([message], files)
    os.close(null)
    assert pair.ask().header == b""
    assert len(os.listdir("/proc/self/fd")) == before


def lent(pair: Ends) -> int:
    """Let the other end borrow memory, without an answer; return its file."""
    told = pair.answers(Borrow(100_000), Borrow(100_000))
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()
    received = told.result(10)[1]
    assert received.control.segment > 0
    assert received.fd is not None
    return int(received.fd)


def test_seals(pair: Ends) -> None:
    """Memory that the parent maps can be neither shrunk, grown nor sealed."""
    fd = lent(pair)
    size = os.fstat(fd).st_size
    for wrong in (0, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, wrong)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(PermissionError):
        os.posix_fallocate(fd, 0, size + 1)
    os.close(fd)


def test_borrow_too_much(pair: Ends) -> None:
    """A child that asks for more than its limit gets nothing; its word is taken."""
    told = pair.answers(Borrow(LIMIT + 1), Unanswered("LimitError", "too large"))
    with pytest.raises(LimitError, match="too large"):
        pair.ask()
    refused = told.result(10)[1]
    assert (refused.control, refused.fd) == (Lend(0), None)
    assert pair.child.alive


def test_answers_that_nobody_takes_are_bounded(pair: Ends) -> None:
    """So many are held at a time; one that is let go of makes room for the next."""
    answer = Handled(Sizes(0, (LIMIT,)), (), True)
    held = []
    files = []
    for _ in range(3):
        told = pair.answers(Borrow(LIMIT), answer)
        held.append(pair.ask().frames)
        files.append(told.result(10)[1].fd)
    for _ in range(2):
        told = pair.answers(Borrow(LIMIT), Unanswered("LimitError", "too large"))
        with pytest.raises(LimitError, match="too large"):
            pair.ask()
        assert told.result(10)[1].control == Lend(0)
    del held[0]
    told = pair.answers(Borrow(LIMIT), answer)
    held.append(pair.ask().frames)
    assert told.result(10)[1].control.segment > 0
    assert pair.child.alive
    for fd in files:
        os.close(fd)


@pytest.mark.parametrize("size", [2**20 + 1, 2**47])
def test_more_than_was_lent(pair: Ends, size: int) -> None:
    """An answer can't claim more memory than was lent for it."""
    told = pair.answers(Borrow(2**20), Handled(Sizes(0, (size,)), (), True))
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()
    os.close(told.result(10)[1].fd)


def test_how_much_is_done_comes_before_the_answer(pair: Ends) -> None:
    """The last number counts while the child computes, and of the next message none."""
    assert pair.child.progress() == 0
    for done in (10, 40):
        pair.says(Told(done))
    pair.says(Handled(Sizes(1), (), False), b"y")
    assert pair.ask().header == b"y"
    assert pair.child.progress() == 40
    pair.says(Handled(Sizes(1), (), False), b"y")
    pair.ask()
    assert pair.child.progress() == 0


def test_a_child_that_tells_too_often_is_ended(pair: Ends) -> None:
    """Else it kept its parent reading, at the owner's cost."""
    for _ in range(1_000):
        pair.says(Told(1))
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()
    assert pair.ended == [7]


def test_a_child_under_a_policy_tells_nothing() -> None:
    """One that does is ended, and its parent says nothing of what it said."""
    pair = Ends(policy=b"any")
    pair.says(Told(1))
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()
    assert pair.child.progress() is None
    pair.close()


def test_borrowed_for_nothing(pair: Ends) -> None:
    """An answer need not use what was lent for it."""
    told = pair.answers(Borrow(2**20), Handled(Sizes(0, (2,)), (), False), body=b"ab")
    assert bytes(pair.ask().frames[0]) == b"ab"
    os.close(told.result(10)[1].fd)


def test_effects(pair: Ends) -> None:
    """Headers and frames of an answer with deliveries are cut where they say."""
    data = TensorData("uint8", (1,), 0), TensorData("uint8", (0,), 1)
    deliver = Deliver("s", (1, 2), data)
    ask = ReleaseQuestion("sum", (("alice", "1", 1, 1),), ())
    heads = codec.encode(deliver), codec.encode(ask)
    away = (
        Departure("a", 3, Sizes(len(heads[0]), (1, 0))),
        Departure("", 4, Sizes(len(heads[1]))),
    )
    body = b"R" + b"".join(heads) + b"rr" + b"a"
    pair.says(Handled(Sizes(1, (2,)), away, False), body=body)
    answer = pair.ask()
    assert (answer.header, [bytes(f) for f in answer.frames]) == (b"R", [b"rr"])
    delivery, asked = answer.effects
    assert isinstance(delivery, Delivery)
    assert (delivery.to, delivery.message, delivery.index) == ("a", deliver, 3)
    assert [bytes(f) for f in delivery.frames] == [b"a", b""]
    assert asked == AskRelease(ask, 4)


@pytest.mark.parametrize("header", [b"", b"\xc1", codec.encode(Done())])
def test_only_deliveries_and_questions_are_wanted(pair: Ends, header: bytes) -> None:
    """What a child wants done goes out in the worker's name."""
    away = (Departure("a", 0, Sizes(len(header))),)
    pair.says(Handled(Sizes(1), away, False), body=b"R" + header)
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()


def test_shrunk_request(pair: Ends) -> None:
    """A child that shrinks what it was lent for reading costs its session only."""
    pair.says(Handled(Sizes(0), (), False, (1,)))
    pair.ask(frames=(bytes(100_000),))
    received = pair.link.receive()
    assert isinstance(received.control, Handle)
    assert (received.control.segment, received.fd is None) == (1, False)
    os.ftruncate(received.fd, 0)
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask(frames=(bytes(100_000),))
    os.close(received.fd)


def test_shrunk_before_it_came(pair: Ends) -> None:
    """The same, where frames are written as they come."""
    segment = pair.child.segment(2**20)
    os.ftruncate(segment.fd, 0)
    with pytest.raises(RemoteProtocolError, match="shrank"):
        pair.child.write(segment, 0, b"x")
    pair.child.give_back(segment)


def test_memory_comes_back(pair: Ends) -> None:
    """What a child was lent for reading is freed although it holds on to it."""
    pair.says(Handled(Sizes(0), (), False))
    pair.ask(frames=(b"x" * 100_000,))
    received = pair.link.receive()
    assert received.fd is not None
    held = mmap.mmap(received.fd, 100_000, prot=mmap.PROT_READ)
    pair.child.close()
    found = os.fstat(received.fd)
    assert (found.st_size, found.st_blocks) == (0, 0)
    with pytest.raises(PermissionError):
        os.ftruncate(received.fd, 1)
    held.close()
    os.close(received.fd)


def test_outgrown_memory(pair: Ends) -> None:
    """Memory that became too small is freed, and no more is kept than is allowed."""
    small, large = pair.child.segment(10), pair.child.segment(2**21)
    assert small.size == 2**20
    pair.child.give_back(small)
    assert pair.child.segment(2**20) is small
    pair.child.give_back(small)
    larger = pair.child.segment(2**22)
    assert small.fd == -1
    pair.child.give_back(large)
    assert large.fd >= 0
    huge = pair.child.segment(2**30)
    for segment in (larger, huge):
        pair.child.give_back(segment)
    assert (large.fd, huge.fd) == (-1, -1)
    assert larger.fd >= 0
    pair.child.close()
    assert larger.fd == -1


def test_stored_nothing(pair: Ends) -> None:
    """Frames of no bytes may be stored as well."""
    pair.says(Handled(Sizes(0), (), False))
    segment = pair.child.segment(0)
    pair.ask(frames=InSegment(segment, (0, 0)))
    received = pair.link.receive()
    assert received.control.segment == segment.number
    assert received.fd is not None
    os.close(received.fd)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("InternalError", InternalError),
        ("LimitError", LimitError),
        ("RemoteProtocolError", RemoteProtocolError),
    ],
)
def test_failures(pair: Ends, kind: Any, error: type[Exception]) -> None:
    """A child may answer with one of three errors, and goes on."""
    pair.says(Unanswered(kind, "words"))
    with pytest.raises(error, match="words"):
        pair.ask()
    pair.link.receive()
    pair.says(Handled(Sizes(0), (), False))
    assert pair.ask().header == b""


def test_too_large(pair: Ends) -> None:
    """A message that no child takes is refused before anything is sent."""
    with pytest.raises(LimitError, match="ask for less"):
        pair.ask(header=bytes(BODY_BYTES + 1))
    with pytest.raises(LimitError, match="ask for less"):
        pair.ask(frames=(b"",) * (CONTROL_BYTES + 1))
    pair.says(Handled(Sizes(0), (), False))
    assert pair.ask().header == b""


def test_not_ready(pair: Ends) -> None:
    """A child that was not walled in, or says something else, does not start."""
    pair.says(Walled("wall", "why", "what to do"))
    with pytest.raises(SandboxError, match="what to do"):
        pair.child.ready()
    other = Ends()
    other.says(Handled(Sizes(0), (), False))
    with pytest.raises(SessionLostError, match="broke the protocol"):
        other.child.ready()
    other.close()


def test_ready(pair: Ends) -> None:
    """A child says which walls it is behind."""
    pair.says(Ready(("files",)))
    pair.child.ready()
    assert pair.child.walls == {"files"}


def test_silence(pair: Ends) -> None:
    """An answer that does not come in time ends the child."""
    with pytest.raises(SessionLostError, match="in time"):
        pair.child.exchange("me", b"", (), 0.0, seconds=0.05)
    assert pair.ended == [7]


def test_disposed(pair: Ends) -> None:
    """A child whose socket was closed is not alive."""
    pair.child.dispose()
    assert not pair.child.alive


def test_broken_off(pair: Ends) -> None:
    """An exchange that is broken off in the middle costs the session."""
    with pytest.raises(TypeError):
        pair.child.exchange("me", b"", (), 0.0, seconds="soon")  # type: ignore[arg-type]
    assert pair.child.alive
    pair.child._link._reads = None  # type: ignore[assignment] # stands for Ctrl-C
    with pytest.raises(AttributeError):
        pair.ask()
    with pytest.raises(SessionLostError, match="broken off"):
        pair.ask()


# --- memory that a child keeps ----------------------------------------------------


def kept(pair: Ends, returned: tuple[int, ...] = ()) -> int:
    """Send a large frame; return the number of the segment that it was in."""
    pair.says(Handled(Sizes(0), (), False, returned))
    pair.ask(frames=(bytes(100_000),))
    received = pair.link.receive()
    if received.fd is not None:
        os.close(received.fd)
    return int(received.control.segment)


def test_what_a_child_keeps_is_not_used_again(pair: Ends) -> None:
    """Each request gets other memory, until the child says that it is done with it."""
    first, second = kept(pair), kept(pair)
    assert first != second
    third = kept(pair, (first,))
    assert third not in (first, second)
    assert kept(pair, (second, third)) == first


def test_a_file_comes_once(pair: Ends) -> None:
    """What the child has mapped it is only told the number of."""
    number = kept(pair)
    pair.says(Handled(Sizes(0), (), False, (number,)))
    pair.ask()
    assert pair.link.receive().fd is None
    pair.says(Handled(Sizes(0), (), False))
    pair.ask(frames=(bytes(100_000),))
    received = pair.link.receive()
    assert (received.control.segment, received.fd) == (number, None)


def test_a_file_comes_again_after_a_failure(pair: Ends) -> None:
    """The child may not have been able to map it."""
    pair.says(Unanswered("LimitError", "no memory"))
    with pytest.raises(LimitError):
        pair.ask(frames=(bytes(100_000),))
    received = pair.link.receive()
    os.close(received.fd)
    number = received.control.segment
    pair.says(Handled(Sizes(0), (), False, (number,)))
    pair.ask()
    pair.link.receive()
    pair.says(Handled(Sizes(0), (), False))
    pair.ask(frames=(bytes(100_000),))
    received = pair.link.receive()
    assert received.control.segment == number
    assert received.fd is not None
    os.close(received.fd)


@pytest.mark.parametrize("returned", [(1,), (7, 7), (2**60,)])
def test_only_what_was_lent_returns(pair: Ends, returned: tuple[int, ...]) -> None:
    """A number that it was not lent, or twice the same, breaks the protocol."""
    pair.says(Handled(Sizes(0), (), False, returned))
    with pytest.raises(SessionLostError, match="broke the protocol"):
        pair.ask()


def test_a_child_that_returns_nothing_is_ended(pair: Ends) -> None:
    """It can't make its parent run out of files."""
    for _ in range(LENT_AT_MOST):
        kept(pair)
    with pytest.raises(SessionLostError, match="broke the protocol"):
        kept(pair)


def test_bytes_count_as_they_come(pair: Ends) -> None:
    """Announced memory is nobody's; what was written is counted until it is freed."""
    child = pair.child
    announced = [child.segment(LIMIT) for _ in range(4)]
    block = bytes(2**20)

    def fill() -> None:
        for segment in announced:
            for offset in range(0, LIMIT, 2**20):
                child.write(segment, offset, block)

    with pytest.raises(LimitError, match="let go of some"):
        fill()
    written = sum(os.fstat(s.fd).st_blocks * 512 for s in announced)
    assert LIMIT < written <= 2 * LIMIT + 2**20
    with pytest.raises(LimitError):
        child.write(announced[-1], 0, block)
    for segment in announced[:3]:
        child.give_back(segment)
    child.write(announced[-1], 0, block)
    child.give_back(announced[-1])


def test_no_more_files(pair: Ends) -> None:
    """A parent that can open no more files refuses the message, not the session."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(LimitError, match="no room"):
            pair.child.segment(100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pair.child.alive


@given(st.lists(st.integers(0, 2**18), max_size=8))
def test_places(sizes: list[int]) -> None:
    """Frames do not overlap; large ones begin where tensors may."""
    offsets, end = places(sizes)
    ends = [o + s for o, s in zip(offsets, sizes, strict=True)]
    assert all(a <= b for a, b in zip([0, *ends], [*offsets, end], strict=True))
    large = [o for o, s in zip(offsets, sizes, strict=True) if s >= 2**16]
    assert not any(offset % 64 for offset in large)
    assert end <= sum(sizes) + 64 * len(sizes)
