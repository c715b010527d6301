"""What every way to a worker must do; a new transport subclasses one class.

::

    class TestMyTransport(TransportConformance):
        def host(self, id: str) -> Host: ...

Rule: only what a client sees is tested. How bytes travel is the transport's own.
"""

# ruff: noqa: S101
# These are tests, although they are shipped.

from __future__ import annotations

import abc
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from obhut.client.remote_tensor import RemoteTensor, send
from obhut.client.session import Session
from obhut.errors import ObhutError, TransportError, WorkerClosedError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyAnswer,
    AnyMessage,
    AnyRequest,
    Batch,
    Close,
    Count,
    Counted,
    Done,
    Expect,
    Failed,
    Fetch,
    Fetched,
    Move,
    Open,
    Put,
    Ref,
    Refused,
    Results,
    Run,
    TensorData,
    Value,
    Welcome,
)
from obhut.transports import Pending, Transport
from obhut.worker.tensors import DTYPE_NAMES, from_frame, to_frame

THREADS = 8
STEPS = 200


class Host(Protocol):
    """Where a worker runs that a test connects to."""

    def connect(self, principal: str) -> Transport:
        """Return a new way to the worker for a client of that name."""

    def close(self) -> None:
        """Close the worker."""


class Client:
    """Speaks messages through a transport, with nothing in between.

    Args:
        transport: the way to the worker.
        session: the session's name; None for a new one.
    """

    def __init__(self, transport: Transport, session: str) -> None:
        self.transport = transport
        self.session = session
        self.number = 0

    def tell(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> AnyMessage:
        """Send a message and return the reply."""
        return self.transport.submit(message, frames).result().message

    def open(self) -> AnyMessage:
        """Open the session and return the reply."""
        return self.tell(Open(self.session, PROTOCOL_VERSION, str(torch.__version__)))

    def begin(self, *requests: AnyRequest, frames: Sequence[Frame] = ()) -> Pending:
        """Send the next batch and do not wait."""
        self.number += 1
        return self.transport.submit(Batch(self.session, self.number, requests), frames)

    def ask(
        self, *requests: AnyRequest, frames: Sequence[Frame] = ()
    ) -> tuple[AnyAnswer, ...]:
        """Send the next batch and return its answers."""
        message, _ = self.begin(*requests, frames=frames).result()
        assert isinstance(message, Results), message
        assert message.number == self.number
        return message.answers

    def hold(self, id: int, tensor: torch.Tensor) -> None:
        """Send a tensor."""
        data = TensorData(
            DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.requires_grad
        )
        assert not self.ask(Put(id, data), frames=[to_frame(tensor)])

    def value(self, id: int) -> torch.Tensor:
        """Fetch a tensor."""
        return value_of(self.begin(Fetch(id)))


def value_of(pending: Pending) -> torch.Tensor:
    """Return the tensor that is a batch's only answer."""
    message, frames = pending.result()
    assert isinstance(message, Results), message
    (answer,) = message.answers
    assert isinstance(answer, Fetched), answer
    data = answer.data
    return from_frame(frames[data.frame], data.dtype, data.shape)


def run(op: str, *args: Value, out: int = 0, grad: bool = True) -> Run:
    """Return a request to run an operator with one result."""
    return Run(op, list(args), {}, out, 1, grad)


class _NoFunctions(TorchFunctionMode):
    """Fails the test if the worker's functions pass through the caller's mode."""

    # Any: whatever the functions take and return.
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} reached the caller's function mode")


class _NoOperators(TorchDispatchMode):
    """Fails the test if the worker's operators pass through the caller's mode."""

    # Any: whatever the operators take and return.
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} reached the caller's dispatch mode")


class TransportConformance(abc.ABC):
    """The tests; all of them run against what ``host`` returns.

    Attributes:
        checks_frames: whether frames that do not fit their message are refused.
    """

    checks_frames = True

    @abc.abstractmethod
    def host(self, id: str) -> Host:
        """Return a new worker. Those of one test can deliver to each other."""

    @pytest.fixture
    def bob(self) -> Iterator[Host]:
        """A worker."""
        host = self.host("bob")
        yield host
        host.close()

    @pytest.fixture
    def alice(self) -> Iterator[Host]:
        """Another worker."""
        host = self.host("alice")
        yield host
        host.close()

    @pytest.fixture
    def me(self, bob: Host) -> Client:
        """A client with an open session at bob."""
        client = Client(bob.connect("me"), "mine")
        assert client.open() == Welcome(0)
        return client

    def test_a_transport_names_its_worker(self, bob: Host) -> None:
        """It tells the worker's id and the address that others reach it by."""
        transport = bob.connect("me")
        assert transport.worker == "bob"
        assert transport.address

    def test_messages_arrive_in_order(self, me: Client) -> None:
        """Batches that are submitted without waiting are applied one by one."""
        me.hold(1, torch.zeros(1))
        pending = [
            me.begin(
                run("aten.mul_.Tensor", Ref(1), 2, grad=False),
                run("aten.add_.Tensor", Ref(1), k % 3, grad=False),
                run("aten.clone.default", Ref(1), out=2 + k),
                Fetch(2 + k),
            )
            for k in range(20)
        ]
        expected = 0
        for k, one in enumerate(pending):
            expected = expected * 2 + k % 3
            assert value_of(one).item() == expected
            assert one.done()

    def test_a_pending_reply_calls_when_it_is_done(self, me: Client) -> None:
        """The function is called once, before or after, and the reply is there."""
        me.hold(1, torch.ones(1))
        called = threading.Event()
        pending = me.begin(Fetch(1))
        pending.when_done(called.set)
        assert called.wait(timeout=30)
        assert pending.done()
        again = threading.Event()
        pending.when_done(again.set)
        assert again.wait(timeout=30)
        assert value_of(pending).item() == 1.0

    def test_a_frame_may_change_after_it_was_submitted(self, me: Client) -> None:
        """The sender's memory is its own again as soon as ``submit`` returns."""
        tensor = torch.zeros(1_000_000)
        put = Put(1, TensorData("float32", (1_000_000,), 0))
        pending = me.begin(put, frames=[to_frame(tensor)])
        tensor.fill_(1.0)
        pending.result()
        assert not me.value(1).any()

    def test_large_tensors_travel_both_ways(self, me: Client) -> None:
        """Sixteen megabytes arrive as they were sent, and come back as they are."""
        tensor = torch.arange(2_000_000, dtype=torch.float64)
        me.hold(1, tensor)
        assert torch.equal(me.value(1), tensor)

    def test_empty_and_odd_tensors_travel(self, me: Client) -> None:
        """No elements, no dimensions, single bytes: each keeps its frame."""
        tensors = [
            torch.zeros(0, 3),
            torch.tensor(1.5),
            torch.tensor([True]),
            torch.arange(3, dtype=torch.int8),
        ]
        for id, tensor in enumerate(tensors, 1):
            me.hold(id, tensor)
        for id, tensor in enumerate(tensors, 1):
            assert torch.equal(me.value(id), tensor)

    def test_a_long_batch_travels(self, me: Client) -> None:
        """Thousands of requests and answers fit one exchange."""
        me.hold(1, torch.zeros(1))
        answers = me.ask(*(Fetch(1) for _ in range(5_000)))
        assert len(answers) == 5_000

    def test_a_session_that_is_not_open_is_refused(self, bob: Host) -> None:
        """A batch for an unknown session is answered as refused."""
        client = Client(bob.connect("me"), "unknown")
        reply = client.tell(Batch("unknown", 1, (Count(),)))
        assert isinstance(reply, Refused)
        assert reply.kind in ("SessionLostError", "WorkerClosedError")

    def test_a_principal_is_who_connected(self, bob: Host, me: Client) -> None:
        """Another client can not use a session whose name it knows."""
        me.hold(1, torch.ones(1))
        mallory = Client(bob.connect("mallory"), me.session)
        assert isinstance(mallory.open(), Refused)
        assert isinstance(mallory.tell(Batch(me.session, 2, (Fetch(1),))), Refused)
        assert isinstance(mallory.tell(Close(me.session)), Refused)
        assert me.value(1).item() == 1.0

    def test_clients_are_apart(self, bob: Host, me: Client) -> None:
        """The same ids in two clients' sessions name different objects."""
        you = Client(bob.connect("you"), "yours")
        you.open()
        me.hold(1, torch.tensor([1.0]))
        you.hold(1, torch.tensor([2.0]))
        assert me.value(1).item() == 1.0
        assert you.value(1).item() == 2.0
        assert you.tell(Close("yours")) == Done()
        assert me.value(1).item() == 1.0

    def test_a_session_outlives_its_transport(self, bob: Host, me: Client) -> None:
        """A client that connects again goes on where it was."""
        me.hold(1, torch.tensor([1.0]))
        me.transport.close()
        again = Client(bob.connect("me"), me.session)
        assert again.open() == Welcome(1)
        again.number = 1
        assert again.value(1).item() == 1.0

    def test_a_batch_sent_again_is_applied_once(self, me: Client) -> None:
        """The same batch again gets the same answer and does nothing."""
        me.hold(1, torch.zeros(1))
        for _ in range(3):
            me.number = 1
            me.ask(run("aten.add_.Tensor", Ref(1), 1, grad=False), Count())
        assert me.value(1).item() == 1.0

    def test_a_message_that_breaks_the_protocol_ends_nothing(self, me: Client) -> None:
        """It is refused by name, here or there; the session goes on."""
        me.hold(1, torch.ones(1))
        put = Put(2, TensorData("float32", (1,), 0))
        offences: list[tuple[AnyMessage, tuple[bytes, ...]]] = [
            (Batch(me.session, 7, ()), ()),
            (Welcome(1), ()),
        ]
        if self.checks_frames:
            offences += [
                (Batch(me.session, 2, (put,)), ()),
                (Batch(me.session, 2, (put,)), (bytes(3),)),
                (Batch(me.session, 2, ()), (b"x",)),
            ]
        for message, frames in offences:
            try:
                reply: object = me.tell(message, frames)
            except ObhutError as error:
                reply = error
            assert isinstance(reply, Refused | ObhutError)
        assert me.value(1).item() == 1.0

    def test_progress_is_a_share_or_nothing(self, bob: Host, me: Client) -> None:
        """Whatever is asked about, it is answered at once, and nothing is raised."""
        me.hold(1, torch.ones(1))
        for session, number in ((me.session, 1), (me.session, 9), ("unknown", 1)):
            done = me.transport.progress(session, number)
            assert done is None or 0 <= done <= 1
        bob.close()
        assert me.transport.progress(me.session, 1) is None

    def test_a_closed_worker_is_refused(self, bob: Host, me: Client) -> None:
        """After the worker has closed, a message is a transport's error."""
        bob.close()
        with pytest.raises(TransportError):
            me.transport.submit(Batch(me.session, 1, (Count(),))).result()

    # --- between workers ----------------------------------------------------------

    def test_workers_deliver_to_each_other(
        self, bob: Host, alice: Host, me: Client
    ) -> None:
        """Objects go straight from one worker to the other, and are gone here."""
        there = Client(alice.connect("me"), "there")
        there.open()
        values = torch.arange(1000.0)
        me.hold(1, values)
        me.hold(2, torch.tensor([[7]]))
        there.ask(Expect((5, 6), me.transport.address))
        moved = me.ask(Move((1, 2), there.transport.address, "there", (5, 6)))
        assert not moved
        assert torch.equal(there.value(5), values)
        assert torch.equal(there.value(6), torch.tensor([[7]]))
        assert me.ask(Count()) == (Counted(0, 0),)

    def test_a_delivery_that_is_refused_stays(
        self, bob: Host, alice: Host, me: Client
    ) -> None:
        """What nobody expects, or nobody takes, is kept and answered as failed."""
        there = Client(alice.connect("me"), "there")
        there.open()
        me.hold(1, torch.tensor([1.0]))
        address = there.transport.address
        for to, session in ((address, "there"), (address, "?"), ("nobody", "there")):
            (failed,) = me.ask(Move((1,), to, session, (5,)))
            assert isinstance(failed, Failed)
            assert failed.op == "move"
        there.ask(Expect((5,), "somebody else"))
        (failed,) = me.ask(Move((1,), address, "there", (5,)))
        assert isinstance(failed, Failed)
        alice.close()
        (failed,) = me.ask(Move((1,), address, "there", (5,)))
        assert isinstance(failed, Failed)
        assert me.value(1).item() == 1.0

    def test_two_sessions_of_one_worker_can_deliver(self, bob: Host) -> None:
        """A worker delivers to itself as to another."""
        here = Client(bob.connect("me"), "here")
        there = Client(bob.connect("me"), "there")
        here.open()
        there.open()
        here.hold(1, torch.tensor([3.0]))
        address = there.transport.address
        there.ask(Expect((1,), address))
        assert not here.ask(Move((1,), address, "there", (1,)))
        assert there.value(1).item() == 3.0

    def test_workers_deliver_in_both_directions_at_once(
        self, bob: Host, alice: Host
    ) -> None:
        """Workers that deliver to each other do not wait for each other."""
        barrier = threading.Barrier(2)

        def shuttle(source: Host, target: Host, name: str) -> None:
            here = Client(source.connect(name), f"{name} here")
            there = Client(target.connect(name), f"{name} there")
            here.open()
            there.open()
            barrier.wait()
            for id in range(1, 51):
                here.hold(id, torch.tensor([float(id)]))
                there.ask(Expect((id,), here.transport.address))
                address = there.transport.address
                assert not here.ask(Move((id,), address, there.session, (id,)))
                assert there.value(id).item() == id

        with ThreadPoolExecutor(2) as pool:
            for future in (
                pool.submit(shuttle, bob, alice, "one"),
                pool.submit(shuttle, alice, bob, "two"),
            ):
                future.result(timeout=60)

    # --- the caller's modes -------------------------------------------------------

    def _train(self, me: Client) -> None:
        """Do what any of the caller's modes would change."""
        step = me.number * 10 + 10
        me.hold(step, torch.ones(2, 2, requires_grad=True))
        message, frames = me.begin(
            run("aten.mm.default", Ref(step), Ref(step), out=step + 1),
            run("aten.sum.default", Ref(step + 1), out=step + 2),
            Fetch(step + 1),
        ).result()
        assert isinstance(message, Results)
        (answer,) = message.answers
        assert isinstance(answer, Fetched), answer
        assert answer.data.dtype == "float32"
        assert len(frames) == 1

    def _check(self, me: Client) -> None:
        """Check that what was done inside of a mode was done as outside of it."""
        from obhut.protocol.messages import Backward, ReadGrad  # noqa: PLC0415

        step = (me.number - 2) * 10 + 10
        me.ask(Backward((step + 2,), (None,), None, False, False))
        me.ask(ReadGrad(step, step + 3))
        assert torch.equal(me.value(step + 3), torch.full((2, 2), 4.0))

    def test_a_callers_grad_mode_stays_outside(self, me: Client) -> None:
        """The worker records gradients although the caller does not, and back."""
        with torch.no_grad():
            self._train(me)
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
        self._check(me)

    def test_a_callers_inference_mode_stays_outside(self, me: Client) -> None:
        """What is made during the caller's inference mode can be trained later."""
        with torch.inference_mode():
            self._train(me)
            assert torch.is_inference_mode_enabled()
        assert not torch.is_inference_mode_enabled()
        self._check(me)

    def test_a_callers_autocast_stays_outside(self, me: Client) -> None:
        """The worker computes in the types it was asked to compute in."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self._train(me)
            assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cpu")
        self._check(me)

    def test_a_callers_function_mode_stays_outside(self, me: Client) -> None:
        """The worker's functions do not pass through the caller's modes."""
        tensor = to_frame(torch.ones(2, 2))
        put = Put(1, TensorData("float32", (2, 2), 0))
        with _NoFunctions():
            first = me.begin(put, frames=[tensor])
            second = me.begin(run("aten.mm.default", Ref(1), Ref(1), out=2))
        first.result()
        second.result()
        assert torch.equal(me.value(2), torch.full((2, 2), 2.0))

    def test_a_callers_dispatch_mode_stays_outside(self, me: Client) -> None:
        """The worker's operators do not pass through the caller's modes."""
        tensor = to_frame(torch.ones(2, 2))
        put = Put(1, TensorData("float32", (2, 2), 0))
        with _NoOperators():  # type: ignore[no-untyped-call] # PyTorch's own class
            first = me.begin(put, frames=[tensor])
            second = me.begin(run("aten.mm.default", Ref(1), Ref(1), out=2), Fetch(2))
        first.result()
        assert torch.equal(value_of(second), torch.full((2, 2), 2.0))

    def test_a_callers_default_device_stays_outside(self, me: Client) -> None:
        """The worker creates where it computes, whatever the caller's default."""
        with torch.device("meta"):
            pending = me.begin(run("aten.ones.default", [2, 2], out=1), Fetch(1))
        assert torch.equal(value_of(pending), torch.ones(2, 2))

    # --- a session on top ---------------------------------------------------------

    def test_threads_share_a_session(self, bob: Host) -> None:
        """Eight threads on one session lose no operation and mix up none."""
        session = Session(bob.connect("me"))
        shared = send(torch.zeros(1, dtype=torch.int64), session)

        def count(start: int) -> int:
            own: torch.Tensor = send(torch.tensor([start]), session)
            for step in range(STEPS):
                own = own + 1
                shared.add_(1)
                if step % 50 == 0:
                    assert _number(own) == start + step + 1
            return _number(own)

        with ThreadPoolExecutor(THREADS) as pool:
            sums = list(pool.map(count, range(THREADS)))
        assert sums == [start + STEPS for start in range(THREADS)]
        assert _number(shared) == THREADS * STEPS
        session.close()

    def test_a_session_closes(self, bob: Host) -> None:
        """A closed session is refused by name, and the worker serves others."""
        session = Session(bob.connect("me"))
        send(torch.ones(1), session)
        session.close()
        with pytest.raises(WorkerClosedError):
            send(torch.ones(1), session)
        other = Session(bob.connect("me"))
        assert _number(send(torch.tensor([4]), other)) == 4
        other.close()


def _number(tensor: torch.Tensor) -> int:
    """Return the only element of a remote tensor, which stays where it is."""
    assert isinstance(tensor, RemoteTensor)
    return int(tensor.item())
