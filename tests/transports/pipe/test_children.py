"""Children as a worker uses them: exchanges, ends, and what is left afterwards."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from obhut.errors import (
    LimitError,
    RemoteProtocolError,
    SandboxError,
    SessionLostError,
    TransportError,
)
from obhut.protocol import codec, messages
from obhut.protocol.messages import (
    NOWHERE,
    Batch,
    Failed,
    Fetch,
    Fetched,
    Free,
    Move,
    Open,
    Put,
    Ref,
    Refused,
    Results,
    Run,
    TensorData,
    Welcome,
)
from obhut.transports.pipe.children import FORK_SERVER, Children
from obhut.transports.pipe.control import Settings
from obhut.transports.pipe.parent import Child, Exchanged, InSegment
from obhut.worker.effects import Delivery
from obhut.worker.tensors import to_frame

Start = Callable[[str], Child]
Ask = Callable[..., str]
PROBES = (sys.executable, "-P", str(Path(__file__).with_name("probes.py")))


def told(child: Child, message: messages.AnyMessage, *frames: codec.Frame) -> object:
    """Return what a child answers to a message."""
    answer = child.exchange("me", codec.encode(message), frames, 0.0)
    return codec.decode(answer.header, answer.frames)


def opened(child: Child) -> Child:
    """Open a session."""
    hello = Open("s", messages.PROTOCOL_VERSION, str(torch.__version__))
    assert told(child, hello) == Welcome(0)
    return child


def put(child: Child, number: int, tensor: torch.Tensor) -> None:
    """Send a tensor in a batch of its own; both have that number."""
    data = TensorData("float32", tuple(tensor.shape), 0)
    said = told(child, Batch("s", number, (Put(number, data),)), to_frame(tensor))
    assert said == Results(number, ())


def fetched(child: Child, number: int, id: int) -> Exchanged:
    """Ask for a tensor."""
    batch = codec.encode(Batch("s", number, (Fetch(id),)))
    return child.exchange("me", batch, (), 0.0)


def as_tensor(answer: Exchanged) -> torch.Tensor:
    """Return the values that came, flat."""
    return torch.frombuffer(bytearray(answer.frames[0]), dtype=torch.float32)


def gone(pid: int) -> bool:
    """Wait until a process that need not be ours has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        return bool(poll.poll(10_000))
    finally:
        os.close(fd)


# --- exchanges --------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 16_384, 16_385, 1_000_003])
def test_round_trip(start: Start, count: int) -> None:
    """A tensor goes in and comes back bit by bit, beside the message and in memory."""
    child = opened(start("children"))
    tensor = torch.rand(count)
    put(child, 1, tensor)
    assert as_tensor(fetched(child, 2, 1)).equal(tensor)


def test_results(start: Start) -> None:
    """A child computes what torch computes."""
    child = opened(start("children"))
    tensor = torch.rand(100, 100)
    put(child, 1, tensor)
    square = Run("aten.mm.default", [Ref(1), Ref(1)], {}, 9, 1, False)
    told(child, Batch("s", 2, (square,)))
    assert as_tensor(fetched(child, 3, 9)).equal(tensor.mm(tensor).flatten())


def test_answers_in_hand_stay(start: Start) -> None:
    """Frames that the parent holds do not change as further answers come."""
    child = opened(start("children"))
    tensors = [torch.rand(100_000) for _ in range(3)]
    for i, tensor in enumerate(tensors, start=1):
        put(child, i, tensor)
    held = [fetched(child, 3 + i, i) for i in (1, 2, 3)]
    for answer, tensor in zip(held, tensors, strict=True):
        assert as_tensor(answer).equal(tensor)


def test_memory_is_used_again(start: Start) -> None:
    """Large tensors one after the other take one piece of shared memory each way."""
    child = opened(start("children"))
    before = shared_memory()
    tensor = torch.rand(300_000)
    for number in range(1, 16, 3):
        put(child, number, tensor)
        answer = fetched(child, number + 1, number)
        assert as_tensor(answer).equal(tensor)
        del answer
        told(child, Batch("s", number + 2, (Free((number,)),)))
    assert shared_memory() - before == 2
    child.close()
    assert shared_memory() == before


def test_many_tensors_are_held(start: Start) -> None:
    """More than may live in what was lent; all are right, and can be written to."""
    child = opened(start("children"))
    tensors = [torch.rand(300_000) for _ in range(40)]
    for number, tensor in enumerate(tensors, start=1):
        put(child, number, tensor)
    doubled = [
        Run("aten.add_.Tensor", [Ref(k), Ref(k)], {}, NOWHERE, 1, False)
        for k in range(1, 41)
    ]
    told(child, Batch("s", 41, tuple(doubled)))
    for number, tensor in enumerate(tensors, start=1):
        assert as_tensor(fetched(child, 41 + number, number)).equal(tensor * 2)


def shared_memory() -> int:
    """Return how many pieces of shared memory this process has."""
    count = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            count += "memfd:obhut" in os.readlink(file)
    return count


def test_frames_that_came_piece_by_piece(start: Start) -> None:
    """Frames can be written into shared memory as they come from a network."""
    child = opened(start("children"))
    tensors = [torch.rand(50_000), torch.rand(0), torch.rand(7)]
    sizes = tuple(t.nbytes for t in tensors)
    segment = child.segment(sum(sizes))
    whole = torch.cat(tensors).numpy().tobytes()
    for offset in range(0, len(whole), 65_536):
        child.write(segment, offset, whole[offset : offset + 65_536])
    puts = tuple(
        Put(i, TensorData("float32", tuple(t.shape), i)) for i, t in enumerate(tensors)
    )
    header = codec.encode(Batch("s", 1, puts))
    child.exchange("me", header, InSegment(segment, sizes), 0.0)
    for i, tensor in enumerate(tensors):
        if tensor.numel():
            assert as_tensor(fetched(child, 2 + i, i)).equal(tensor)
        else:
            assert fetched(child, 2 + i, i).frames[0].nbytes == 0
    child.give_back(child.segment(10))


@pytest.mark.parametrize("count", [5, 100_000])
def test_deliveries(start: Start, count: int) -> None:
    """A move hands its tensors to the parent, and its answer waits for the outcome."""
    child = opened(start("children"))
    tensors = [torch.rand(count), torch.rand(count)]
    put(child, 1, tensors[0])
    put(child, 2, tensors[1])
    moves = tuple(Move((i,), to, "there", (8,)) for i, to in ((1, "a"), (2, "c")))
    answer = child.exchange("me", codec.encode(Batch("s", 3, moves)), (), 0.0)
    for delivery, tensor, to in zip(answer.effects, tensors, "ac", strict=True):
        assert isinstance(delivery, Delivery)
        message = delivery.message
        assert (delivery.to, message.session, message.ids) == (to, "there", (8,))
        found = torch.frombuffer(bytearray(delivery.frames[0]), dtype=torch.float32)
        assert found.equal(tensor)
    last = child.settle("me", "s", (None, Refused("LimitError", "full")))
    said = codec.decode(last.header, last.frames)
    assert said == Results(3, (Failed(1, 3, 1, "LimitError", "move", "full"),))


def test_two_at_once(start: Start, ask: Ask) -> None:
    """Many threads ask two children; each gets the answer to its own question."""
    pair = [start("walled"), start("walled")]

    def question(i: int) -> bool:
        return ask(pair[i % 2], "echo", f"question {i}") == f"question {i}"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(question, range(400)))


def test_no_message(start: Start) -> None:
    """Bytes that are no message are refused, and the session goes on."""
    child = opened(start("children"))
    with pytest.raises(RemoteProtocolError):
        child.exchange("me", b"\xc1", (), 0.0)
    put(child, 1, torch.rand(3))


def test_large_answer(start: Start) -> None:
    """An answer beyond the limit is refused, and the session goes on."""
    child = opened(start("children"))
    put(child, 1, torch.zeros(60_000_000))
    twice = Batch("s", 2, tuple(Fetch(1) for _ in range(5)))
    with pytest.raises(LimitError, match="too large"):
        told(child, twice)
    answer = fetched(child, 3, 1)
    assert isinstance(codec.decode(answer.header, answer.frames).answers[0], Fetched)


def test_memory_limit(start: Start) -> None:
    """10 GiB under a limit of 1 GiB fail by name, in that request only."""
    child = opened(start("children"))
    huge = Run("aten.zeros.default", [[5 * 2**29]], {}, 1, 1, False)
    said = told(child, Batch("s", 1, (huge,)))
    assert isinstance(said, Results)
    assert [a.kind for a in said.answers if isinstance(a, Failed)] == [
        "MemoryLimitError"
    ]
    put(child, 2, torch.rand(3))


# --- ends -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probe", "words"),
    [("segfault", "SIGSEGV"), ("abort", "SIGABRT"), ("leave", "exited with 7")],
)
def test_crash(start: Start, ask: Ask, probe: str, words: str) -> None:
    """A crash costs its session, which is told how; the others go on."""
    one, other = start("walled"), start("walled")
    with pytest.raises(SessionLostError, match=words) as caught:
        ask(one, probe)
    assert "open a new session" in str(caught.value)
    assert not one.alive
    with pytest.raises(SessionLostError, match=words):
        ask(one, "echo")
    assert ask(other, "echo", "here") == "here"


def test_no_answer(start: Start) -> None:
    """A child that does not answer in time is ended, whatever it ignores."""
    child = start("walled")
    child.exchange("ignore_signals", b"", (), 0.0)
    with pytest.raises(SessionLostError, match="in time"):
        child.exchange("hang", b"", (), 0.0, seconds=0.2)
    assert gone(child.pid)


def test_slow_answer(start: Start) -> None:
    """A deadline holds for the whole answer, however it trickles in."""
    child = start("walled")
    with pytest.raises(SessionLostError, match="in time"):
        child.exchange("drip_link", b"", (), 0.0, seconds=0.5)
    assert gone(child.pid)


def test_deaf(start: Start) -> None:
    """A child that stops reading is given up when a message does not fit any more."""
    child = start("walled")
    child.exchange("deaf_link", b"", (), 0.0)
    with pytest.raises(SessionLostError, match="in time"):
        child.exchange("echo", bytes(2**24), (), 0.0, seconds=0.5)


def test_interrupt(start: Start, ask: Ask) -> None:
    """Ctrl-C in the parent's terminal is nothing to a child."""
    child = start("walled")
    os.kill(child.pid, signal.SIGINT)
    assert ask(child, "echo", "here") == "here"


def test_close_while_it_works(start: Start) -> None:
    """Closing a child ends it at once; who waits for its answer is told."""
    child = start("walled")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(child.exchange, "hang", b"", (), 0.0)
        assert not waiting.done()
        child.close()
        child.close()
        with pytest.raises(SessionLostError, match="closed"):
            waiting.result(10)
    assert not child.alive
    assert gone(child.pid)


def test_idle_death() -> None:
    """That an idle child was killed is noticed at once, and told once."""
    lost: list[Child] = []
    noticed = threading.Event()

    def tell(child: Child) -> None:
        lost.append(child)
        noticed.set()
        raise ValueError("whatever a callback raises")

    with Children(Settings("bob"), lost=tell, command=PROBES) as children:
        victim, closed = children.start("s"), children.start("t")
        closed.close()
        os.kill(victim.pid, signal.SIGKILL)
        assert noticed.wait(10)
        assert lost == [victim]
        assert not victim.alive
        with pytest.raises(SessionLostError, match="SIGKILL"):
            victim.exchange("echo", b"", (), 0.0)
        # The watcher outlives a callback that fails.
        noticed.clear()
        another = children.start("u")
        os.kill(another.pid, signal.SIGKILL)
        assert noticed.wait(10)
    assert lost == [victim, another]


def test_fork_server_killed() -> None:
    """Without its fork server a child dies too; the next one gets a new server."""
    lost = threading.Event()
    with Children(
        Settings("bob"), lost=lambda child: lost.set(), command=PROBES
    ) as children:
        child = children.start("s")
        parent = Path(f"/proc/{child.pid}/stat").read_text().split()[3]
        os.kill(int(parent), signal.SIGKILL)
        assert lost.wait(10)
        assert gone(child.pid)
        again = children.start("t")
        assert again.exchange("echo", b"here", (), 0.0).header == b"here"
    assert gone(again.pid)
    with pytest.raises(TransportError, match="closed"):
        children.start("u")


def server_of(child: Child) -> int:
    """Return the number of a child's fork server."""
    return int(Path(f"/proc/{child.pid}/stat").read_text().split()[3])


def test_whose_fork_server_was_killed_is_blameless() -> None:
    """A child that ended by itself is not, before and after."""
    lost: list[Child] = []
    told = threading.Semaphore(0)

    def tell(child: Child) -> None:
        lost.append(child)
        told.release()

    with Children(Settings("bob"), lost=tell, command=PROBES) as children:
        crashed, *others = (children.start(name) for name in "stu")
        os.kill(crashed.pid, signal.SIGSEGV)
        assert told.acquire(timeout=10)
        os.kill(server_of(others[0]), signal.SIGKILL)
        assert all(told.acquire(timeout=10) for _ in others)
        again = children.start("v")
        os.kill(again.pid, signal.SIGSEGV)
        assert told.acquire(timeout=10)
        assert [child.blameless for child in lost] == [False, True, True, False]
        with pytest.raises(SessionLostError, match="not by what you asked"):
            others[0].exchange("echo", b"", (), 0.0)


def test_a_stopped_fork_server_is_replaced_and_its_children_go_on() -> None:
    """Soon; they can be ended meanwhile, and it is gone with the last of them."""
    with Children(Settings("bob"), command=PROBES) as children:
        one, two = children.start("s"), children.start("t")
        server = server_of(one)
        os.kill(server, signal.SIGSTOP)
        began = time.monotonic()
        fresh = children.start("u")
        assert time.monotonic() - began < 20
        assert server_of(fresh) != server
        for child in (one, two, fresh):
            assert child.exchange("echo", b"here", (), 0.0).header == b"here"
        one.close()
        assert gone(one.pid)
        assert two.exchange("echo", b"here", (), 0.0).header == b"here"
        two.close()
        assert gone(server)
        assert fresh.exchange("echo", b"here", (), 0.0).header == b"here"
    assert gone(fresh.pid)


def test_a_child_of_a_stopped_fork_server_can_be_ended_at_once() -> None:
    """Nobody waits long for who says nothing; a close ends the stopped one too."""
    with Children(Settings("bob"), command=PROBES) as children:
        one, two = children.start("s"), children.start("t")
        server = server_of(one)
        os.kill(server, signal.SIGSTOP)
        began = time.monotonic()
        one.close()
        assert gone(one.pid)
        assert two.exchange("echo", b"here", (), 0.0).header == b"here"
    assert time.monotonic() - began < 15
    assert gone(server)
    assert gone(two.pid)


def test_a_fork_of_the_parent_holds_nothing_up() -> None:
    """It has the parent's ends as well, as a data loader's workers do."""
    children = Children(Settings("bob", memory=2**30, seconds=60))
    children.ready()
    reading, writing = os.pipe()
    code = f"import os; os.read({reading}, 1)"
    kept = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) != writing]
    held = [fd for fd in kept if os.path.exists(f"/proc/self/fd/{fd}")]
    other = subprocess.Popen([sys.executable, "-c", code], pass_fds=held)
    try:
        closing = threading.Thread(target=children.close, daemon=True)
        closing.start()
        closing.join(30)
        assert not closing.is_alive()
    finally:
        os.close(writing)
        os.close(reading)
        assert other.wait(30) == 0


def test_parent_killed() -> None:
    """Children and fork server die with the parent, however it dies."""
    script = (
        "import os, signal\n"
        "from obhut.transports.pipe.children import Children\n"
        "from obhut.transports.pipe.control import Settings\n"
        f"children = Children(Settings('bob'), command={PROBES!r})\n"
        "child = children.start('s')\n"
        "child.exchange('ignore_signals', b'', (), 0.0)\n"
        "stat = open(f'/proc/{child.pid}/stat').read().split()\n"
        "print(child.pid, stat[3], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    pids = list(map(int, done.stdout.split()))
    assert len(pids) == 2
    assert all(map(gone, pids))


def test_no_fork_server() -> None:
    """A fork server that does not start is reported with its exit code."""
    command = (sys.executable, "-c", "raise SystemExit(3)")
    with (
        Children(Settings("bob"), command=command) as children,
        pytest.raises(TransportError, match="exited with 3"),
    ):
        children.start("s")


def test_no_wall_to_the_network() -> None:
    """Where neither namespaces nor filters can be had, no child is started."""
    command = (sys.executable, "-P", str(Path(__file__).with_name("poor_host.py")))
    with Children(Settings("bob"), command=command) as children:
        with pytest.raises(SandboxError, match='sandbox = "none"'):
            children.ready()
        with pytest.raises(SandboxError, match="wall to the network"):
            children.start("s")
    open_ = Settings("bob", sandbox="none")
    with Children(open_, command=command) as children:
        assert children.start("s").walls == frozenset()


def test_parent_loads_no_torch() -> None:
    """The parent's side loads neither torch nor gRPC."""
    script = (
        "import sys\n"
        "import obhut.transports.pipe.children\n"
        "print({'torch', 'grpc', 'pickle'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
    assert FORK_SERVER[0] == sys.executable
