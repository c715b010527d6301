"""Sessions: batches, cut exchanges, Ctrl-C, failures that show later."""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import subprocess
import sys
import weakref

import pytest
import torch
from expecttest import assert_expected_inline
from torch import nn

import obhut
from obhut.client.session import REQUESTS_IN_BATCH, Session
from obhut.client.workers import RemoteWorker
from obhut.errors import (
    CallError,
    LimitError,
    LocationError,
    ObhutError,
    ObjectNotFoundError,
    RemoteExecutionError,
    RemoteIndexError,
    RemoteProtocolError,
    TransportError,
    WorkerClosedError,
)
from obhut.protocol.messages import Batch, Done, Free, Refused
from obhut.testing.faults import (
    Fault,
    FaultyTransport,
    InterruptingTransport,
    Late,
    LateTransport,
)
from obhut.testing.traces import TracingTransport
from obhut.transports.local import Arrived, LocalNetwork, LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.effects import Parcel


@pytest.fixture
def way():
    """A function that makes a worker and returns a new way to it."""

    def make(id="bob", **options):
        return LocalTransport(LocalShell(Worker(id, **options), network=LocalNetwork()))

    return make


@pytest.fixture
def bob(way):
    """A worker that is reached through a trace."""
    worker = RemoteWorker(TracingTransport(way()))
    yield worker
    worker.close()


def trace(worker):
    """Return the trace through which a worker is reached."""
    return worker.session._transport


# --- training, whole and in pieces --------------------------------------------------


def train(worker, steps, retry=lambda do: do(), every=10):
    """Train a small network at a worker and return its weights.

    What asks for a value, every so many steps, is done through ``retry``; nothing
    else is.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    data, target = torch.randn(32, 4), torch.randn(32, 1)
    model = obhut.send(model, worker)
    x, y = obhut.send(data, worker), obhut.send(target, worker)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        if step % every == 0:
            retry(loss.item)
    retry(lambda: obhut.get(model))
    return [parameter.detach() for parameter in model.parameters()]


def patiently(do):
    """Do it again as long as the transport fails."""
    while True:
        try:
            return do()
        except TransportError:
            continue


@pytest.fixture(scope="module")
def uncut():
    """The weights after training without any fault."""
    shell = LocalShell(Worker("bob"), network=LocalNetwork())
    return train(RemoteWorker(LocalTransport(shell)), 200)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("faults", [[fault] for fault in Fault] + [list(Fault)])
def test_two_hundred_cuts_change_nothing(way, uncut, eager, faults):
    """A training that is cut again and again ends with the very same weights."""
    turn = itertools.cycle(faults)
    cuts = 0

    def fault(number):
        nonlocal cuts
        # Not twice in a row: trying again gets through.
        if number % 5:
            return None
        cuts += 1
        return next(turn)

    transport = FaultyTransport(way(), fault)
    transport.eager = eager
    worker = RemoteWorker(transport)
    if eager:
        worker.session._enough = 1  # each request leaves alone: the most to cut
    weights = train(worker, 200, patiently, every=10 if eager else 1)
    assert all(map(torch.equal, weights, uncut))
    assert cuts >= (200 if eager else 50)
    assert patiently(worker.objects_count) == 0


def test_a_cut_while_opening(way):
    """A session whose first words are lost opens when it is tried again."""
    for fault in Fault:
        worker = RemoteWorker(FaultyTransport(way(), {1: fault}))
        x = obhut.send(torch.ones(2), worker)
        with pytest.raises(TransportError):
            worker.wait()
        assert x.get().tolist() == [1.0, 1.0]


def test_a_large_tensor_is_sent_as_it_was(way):
    """A tensor that changes after its send was cut arrives as it was sent."""
    for fault in Fault:
        worker = RemoteWorker(FaultyTransport(way(), {2: fault}))
        big = torch.zeros(1_000_000)
        sent = obhut.send(big, worker)
        big.fill_(1.0)
        assert not patiently(lambda sent=sent: (sent + 0).get()).any()


def test_an_operator_is_not_done_twice_by_trying_again(way):
    """A value that is asked for again after a cut is the value; writes happen once."""
    for fault in Fault:
        transport = FaultyTransport(way(), {3: fault})
        worker = RemoteWorker(transport)
        x = obhut.send(torch.zeros(1), worker)
        worker.wait()
        x += 1
        with pytest.raises(TransportError):
            x.item()
        assert x.item() == 1.0
        assert x.get().item() == 1.0


def test_a_loop_that_asks_for_nothing_survives_cuts(way):
    """Only who asks for a value hears of the transport; what waits is sent later."""
    worker = RemoteWorker(FaultyTransport(way(), {2: Fault.REQUEST, 4: Fault.REPLY}))
    x = obhut.send(torch.zeros(1), worker)
    for _ in range(10 * REQUESTS_IN_BATCH):
        x += 1
    assert patiently(x.item) == 10 * REQUESTS_IN_BATCH


# --- Ctrl-C -------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_ctrl_c_in_a_step_leaves_the_worker_usable(way, when, at):
    """After an interruption at any exchange a later step is right."""
    transport = InterruptingTransport(way(), **{when: {at}})
    worker = RemoteWorker(transport)
    interrupted = False
    total, x = 0.0, None
    for step in range(8):
        try:
            x = obhut.send(torch.full((3,), float(step)), worker)
            total = (x * 2).sum().item()
        except KeyboardInterrupt:
            interrupted = True
            continue
        assert total == step * 6
    assert interrupted
    del x
    assert worker.objects_count() <= 2


# --- finalizers ---------------------------------------------------------------------


def test_letting_go_sends_nothing(bob):
    """Dropping tensors causes no message; the next batch carries what to free."""
    x = obhut.send(torch.ones(2), bob)
    kept = [x + k for k in range(10)]
    bob.wait()
    before = len(trace(bob).messages)
    gone = [tensor.id_at_location for tensor in kept]
    kept.clear()
    gc.collect()
    assert len(trace(bob).messages) == before
    x.sum().item()
    frees = [r for r in trace(bob).requests if isinstance(r, Free)]
    assert set(gone) <= set(itertools.chain(*(free.ids for free in frees)))
    assert len(frees) <= 2
    del x
    assert bob.objects_count() == 0


def test_a_finalizer_in_the_middle_of_a_batch(bob):
    """An id is freed after the last request that names it, wherever it is dropped."""
    x = obhut.send(torch.ones(2), bob)
    results = []
    for k in range(3 * REQUESTS_IN_BATCH):
        temporary = x * k
        results.append(temporary.sum())
        del temporary
    assert [r.item() for r in results] == [2.0 * k for k in range(len(results))]
    assert bob.objects_count() == len(results) + 1


def test_what_went_is_freed_before_the_next_request(bob):
    """In a loop that never waits, each tensor goes before another is made."""
    x = obhut.send(torch.ones(2), bob)
    bob.wait()
    trace(bob).messages.clear()
    for _ in range(3):
        y = x * 2
    del y
    bob.wait()
    assert_expected_inline(
        trace(bob).render(),
        """\
%2 = aten.mul.Tensor(%1, 2)
%3 = aten.mul.Tensor(%1, 2)
free %2
%4 = aten.mul.Tensor(%1, 2)
free %3, %4
""",
    )


def test_a_loop_that_never_waits_stays_within_the_limit(way):
    """A limit that a loop keeps to when it waits it keeps to when it does not."""
    megabyte = 1 << 20
    for eager in (False, True):
        bob = RemoteWorker(LateTransport(way(memory_limit=5 * megabyte)))
        trace(bob).eager = eager
        x = obhut.send(torch.ones(megabyte // 4), bob)
        for _ in range(500):
            y = (x * 2).relu() + x[0]
        assert y.sum().item() == 3 * megabyte // 4
        trace(bob).gate.set()
        bob.close()


def test_a_session_is_let_go(way):
    """A session that nobody uses is no longer in memory."""
    session = Session(way())
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None


# --- failures -----------------------------------------------------------------------


def failing(x):
    """Return what an operator that fails at the worker would have made."""
    index = obhut.send(torch.tensor([99]), x.location)
    return x.index_select(0, index)


def test_a_failure_shows_at_the_first_value_with_its_line(bob):
    """The error names the user's file and line, and has PyTorch's own words."""
    x = obhut.send(torch.ones(3), bob)
    index = obhut.send(torch.tensor([99]), bob)
    made = x.index_select(0, index)
    here = inspect.currentframe().f_lineno - 1
    then = made * 2
    with pytest.raises(RemoteIndexError) as caught:
        then.sum().item()
    assert caught.value.site == f"{__file__}:{here}"
    assert caught.value.op == "aten.index_select.default"
    assert caught.value.worker == "bob"
    with pytest.raises(IndexError) as local:
        torch.ones(3).index_select(0, torch.tensor([99]))
    assert caught.value.text == str(local.value)
    assert f"{__file__}:{here}" in str(caught.value)


def test_a_failure_in_another_branch_is_not_lost(bob):
    """A sound value waits: the failure that nobody has seen comes first, once."""
    x = obhut.send(torch.ones(3), bob)
    failing(x)
    sound = x * 2
    with pytest.raises(RemoteIndexError):
        sound.sum().item()
    assert sound.sum().item() == 6.0
    assert sound.get().tolist() == [2.0, 2.0, 2.0]


def test_a_failure_is_told_again_to_who_depends_on_it(bob):
    """Each value that could not be made says why, whenever it is asked for."""
    x = obhut.send(torch.ones(3), bob)
    made = failing(x)
    for _ in range(3):
        with pytest.raises(RemoteIndexError, match=r"test_session\.py:"):
            made.sum().item()
    assert x.sum().item() == 3.0


def test_several_failures_are_told_together(bob):
    """The oldest is raised, the others are notes of it; then all have been seen."""
    x = obhut.send(torch.ones(3), bob)
    for _ in range(3):
        failing(x)
    with pytest.raises(RemoteIndexError) as caught:
        x.sum().item()
    notes = caught.value.__notes__
    assert len([note for note in notes if note.startswith("and then: ")]) == 2
    assert x.sum().item() == 3.0


def test_waiting_tells_of_failures(bob):
    """``wait`` raises what went wrong, if nobody has seen it yet."""
    x = obhut.send(torch.ones(3), bob)
    failing(x)
    with pytest.raises(RemoteIndexError):
        bob.wait()
    bob.wait()


def test_more_failures_than_are_remembered(bob):
    """Thousands of failures that nobody asked about end in one error, and it ends."""
    x = obhut.send(torch.ones(3), bob)
    index = obhut.send(torch.tensor([99]), bob)
    for _ in range(2_500):
        x.index_select(0, index)
    with pytest.raises(RemoteIndexError):
        x.sum().item()
    assert x.sum().item() == 3.0


def test_a_failed_backward_is_not_lost(bob):
    """A second backward through a freed graph fails with PyTorch's words."""
    x = obhut.send(torch.ones(3, requires_grad=True), bob)
    loss = x.exp().sum()
    loss.backward()
    loss.backward()
    with pytest.raises(RemoteExecutionError, match="backward through the graph a sec"):
        bob.wait()
    assert x.grad.get().tolist() == torch.ones(3).exp().tolist()


def test_blocking_raises_at_the_line_itself(way):
    """With ``blocking`` the line that causes a failure raises it."""
    worker = RemoteWorker(way(), blocking=True)
    x = obhut.send(torch.ones(3), worker)
    index = obhut.send(torch.tensor([99]), worker)
    with pytest.raises(RemoteIndexError) as caught:
        x.index_select(0, index)
    # The raise itself comes from this very line.
    assert any(entry.path.samefile(__file__) for entry in caught.traceback)
    assert x.sum().item() == 3.0


@pytest.mark.parametrize("size", [4, 300])
def test_blocking_loses_nothing_of_a_module(way, size):
    """Tensors that are sent together have left one by one, small ones and large."""
    worker = RemoteWorker(way(), blocking=True)
    torch.manual_seed(0)
    model, data = nn.Linear(size, size), torch.randn(2, size)
    here = model(data).detach()
    sent = obhut.send(model, worker)
    assert torch.equal(sent(obhut.send(data, worker)).get(), here)


def test_the_environment_makes_sessions_block(way, monkeypatch):
    """``OBHUT_BLOCKING`` decides where nothing else is said."""
    for value, blocks in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("OBHUT_BLOCKING", value)
        worker = RemoteWorker(way())
        x = obhut.send(torch.ones(3), worker)
        index = obhut.send(torch.tensor([99]), worker)
        if blocks:
            with pytest.raises(RemoteIndexError):
                x.index_select(0, index)
        else:
            x.index_select(0, index)


# --- futures ------------------------------------------------------------------------


def test_a_future_brings_a_value(bob):
    """``get(wait=False)`` returns at once; the value is of its moment, and stays."""
    x = obhut.send(torch.arange(3.0), bob)
    future = (x + 1).get(wait=False)
    x += 100
    assert future.result().tolist() == [1.0, 2.0, 3.0]
    assert future.done()
    assert future.result() is future.result()


def test_a_future_tells_of_failures_and_loses_nothing(bob):
    """A failure elsewhere comes first; asked again, the future has its value."""
    x = obhut.send(torch.ones(3), bob)
    failing(x)
    future = (x * 2).get(wait=False)
    with pytest.raises(RemoteIndexError):
        future.result()
    assert future.result().tolist() == [2.0, 2.0, 2.0]


def test_a_failed_future_tells_why(bob):
    """A value that could not be made raises from its future, each time."""
    x = obhut.send(torch.ones(3), bob)
    made = failing(x)
    future = made.get(wait=False)
    for _ in range(2):
        with pytest.raises(RemoteIndexError):
            future.result(timeout=5)


def test_many_futures_come_in_any_order(bob):
    """Futures can be asked in another order than they were made."""
    futures = [obhut.send(torch.tensor([k]), bob).get(wait=False) for k in range(200)]
    assert [f.result().item() for f in reversed(futures)] == list(range(199, -1, -1))


@pytest.fixture
def late(way):
    """A worker whose replies come from another thread."""
    transport = LateTransport(way())
    worker = RemoteWorker(transport)
    yield worker
    transport.gate.set()
    worker.close()


@pytest.mark.parametrize("eager", [False, True])
def test_replies_that_come_later(late, uncut, eager):
    """A training whose replies come from another thread ends with the same weights."""
    trace(late).eager = eager
    weights = train(late, 200)
    assert all(map(torch.equal, weights, uncut))
    late.wait()
    assert late.objects_count() <= 3


def test_a_future_waits_no_longer_than_it_is_told(late):
    """A value that does not come in time is a TimeoutError, and can still come."""
    x = obhut.send(torch.ones(2), late)
    late.wait()
    trace(late).gate.clear()
    future = (x + 1).get(wait=False)
    assert not future.done()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    trace(late).gate.set()
    assert future.result(timeout=30).tolist() == [2.0, 2.0]


def test_a_loop_does_not_wait_for_replies(late):
    """Requests go on while a reply is under way, and are answered in order."""
    x = obhut.send(torch.zeros(1), late)
    late.wait()
    trace(late).gate.clear()
    futures = []
    for _ in range(3 * REQUESTS_IN_BATCH):
        x += 1
        futures.append((x + 0).get(wait=False))
    assert not any(future.done() for future in futures)
    trace(late).gate.set()
    values = [future.result().item() for future in futures]
    assert values == list(range(1, 3 * REQUESTS_IN_BATCH + 1))


def test_a_loop_does_not_run_away(late, monkeypatch):
    """What waits is bounded: a loop that is far ahead waits for the worker."""
    monkeypatch.setattr("obhut.client.flights.REQUESTS_WAITING", 200)
    x = obhut.send(torch.zeros(1), late)
    for _ in range(1000):
        x += 1
    assert x.item() == 1000.0


@pytest.mark.parametrize("bound", ["BYTES_MADE", "BYTES_CARRIED"])
def test_a_loop_does_not_run_away_with_bytes(bob, monkeypatch, bound):
    """What waits is bounded in bytes that are made, and in bytes that are carried."""
    monkeypatch.setattr(f"obhut.client.flights.{bound}", 4_000)
    x = obhut.send(torch.zeros(100), bob)
    index = torch.arange(100)
    bob.wait()
    trace(bob).messages.clear()
    for _ in range(1000):
        y = x[index]
    assert y.sum().item() == 0.0
    batches = [m.requests for m in trace(bob).messages if isinstance(m, Batch)]
    # Ten results of 400 bytes, or five indices of 800, and frees.
    assert max(map(len, batches)) <= 24


def test_indices_do_not_outgrow_a_message(late):
    """As many indices as requests may wait do not make a header that is refused."""
    trace(late).eager = True
    x = obhut.send(torch.zeros(1_000), late)
    index = torch.arange(500)
    for _ in range(9_000):
        y = x[index]
    assert y.sum().item() == 0.0


def test_a_large_tensor_may_change_at_once(late):
    """A send does not return before the tensor's memory is the sender's again."""
    x = torch.zeros(1_000_000)
    for _ in range(3):
        sent = obhut.send(x, late)
        x += 1
        assert sent[0].item() == x[0].item() - 1


class RefusingTransport(LateTransport):
    """A late transport that lets no batch through while it refuses."""

    refuses = False

    def submit(self, message, frames=()):
        """Send a message, or refuse it."""
        if not (self.refuses and isinstance(message, Batch)):
            return super().submit(message, frames)
        parcel = Parcel(Refused("LimitError", "no room"), ())

        def carry():
            self.gate.wait()
            return parcel

        return Late(self._thread.submit(carry))


@pytest.fixture
def refusing(way):
    """A worker that can refuse batches as a whole, from another thread."""
    transport = RefusingTransport(way())
    transport.eager = True
    worker = RemoteWorker(transport)
    yield worker
    worker.close()


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_batch_that_is_refused_while_nobody_waits(refusing, times):
    """It is told at the next value, and the session goes on, however often."""
    x = obhut.send(torch.ones(2), refusing)
    refusing.wait()
    for _ in range(times):
        trace(refusing).refuses = True
        y = x + 1
        refusing.session.flush()
        trace(refusing)._thread.submit(int).result()  # it has told the session
        with pytest.raises(LimitError, match="no room"):
            y.sum().item()
        with pytest.raises(ObhutError):
            (x + 1).sum().item()
    trace(refusing).refuses = False
    for _ in range(3):
        assert (x + 1).sum().item() == 4.0


def test_what_waits_behind_a_refused_batch_is_done(refusing):
    """Only what was in it is refused, not what was asked for meanwhile."""
    x = obhut.send(torch.ones(2), refusing)
    refusing.wait()
    trace(refusing).refuses = True
    trace(refusing).gate.clear()
    lost = (x + 1).get(wait=False)
    trace(refusing).refuses = False
    kept = (x + 2).get(wait=False)
    trace(refusing).gate.set()
    with pytest.raises(LimitError):
        lost.result()
    assert kept.result().tolist() == [3.0, 3.0]


def test_a_session_whose_batches_are_refused_closes(refusing):
    """Closing waits for nothing that does not come."""
    x = obhut.send(torch.ones(2), refusing)
    refusing.wait()
    trace(refusing).refuses = True
    y = x + 1
    refusing.session.flush()
    refusing.close()
    with pytest.raises(WorkerClosedError):
        y.get()


# --- closing ------------------------------------------------------------------------


def test_a_closed_session_is_refused_by_name(way):
    """After ``close`` everything says that the worker is closed, and goes quietly."""
    worker = RemoteWorker(way())
    x = obhut.send(torch.ones(2), worker)
    worker.close()
    worker.close()
    with pytest.raises(WorkerClosedError, match="bob is closed"):
        x.get()
    with pytest.raises(WorkerClosedError, match="bob is closed"):
        x + 1
    with pytest.raises(WorkerClosedError, match="bob is closed"):
        obhut.send(torch.ones(1), worker)
    assert "closed" in repr(worker.session)
    del x
    gc.collect()


def test_a_session_that_was_never_used_closes_without_a_word(way):
    """Nothing is sent for a session in which nothing happened."""
    transport = TracingTransport(way())
    Session(transport).close()
    assert transport.messages == []


def test_closing_tells_the_worker(way):
    """The worker forgets what it held for the session."""
    core = Worker("bob")
    shell = LocalShell(core, network=LocalNetwork())
    worker = RemoteWorker(LocalTransport(shell))
    x = obhut.send(torch.ones(2), worker)
    worker.wait()
    worker.close()
    refused = LocalTransport(shell).submit(Batch(worker.session.name, 2, ())).result()
    assert isinstance(refused.message, Refused)
    del x


def test_a_session_that_expired_says_so(way):
    """A session that the worker gave up is closed here too."""
    now = [0.0]
    core = Worker("bob", session_seconds=10.0)
    shell = LocalShell(core, network=LocalNetwork(), clock=lambda: now[0])
    worker = RemoteWorker(LocalTransport(shell))
    x = obhut.send(torch.ones(2), worker)
    worker.wait()
    now[0] = 100.0
    with pytest.raises(WorkerClosedError):
        x.sum().item()
    assert worker.session.closed
    with pytest.raises(WorkerClosedError):
        x + 1


# --- places -------------------------------------------------------------------------


def test_a_tensor_of_another_session(bob, way):
    """Tensors of two sessions are not combined, not even at one worker."""
    shell = LocalShell(Worker("carol"), network=LocalNetwork())
    one, two = (RemoteWorker(LocalTransport(shell)) for _ in range(2))
    x, y = obhut.send(torch.ones(2), one), obhut.send(torch.ones(2), two)
    with pytest.raises(LocationError, match="carol and another carol"):
        x + y
    z = obhut.send(torch.ones(2), bob)
    with pytest.raises(LocationError, match="bob"):
        torch.cat([z, x])
    assert (x + 1).get().tolist() == [2.0, 2.0]
    assert (y + 1).get().tolist() == [2.0, 2.0]


# --- workers that break the protocol ------------------------------------------------


class Rogue:
    """A worker that answers a session's batches as a test tells it to."""

    def __init__(self, inner, answer):
        self.worker, self.address, self.eager = inner.worker, inner.address, False
        self.inner, self.answer, self.messages = inner, answer, 0
        self.shared = False

    def submit(self, message, frames=()):
        """Carry the first message, and answer the others."""
        self.messages += 1
        if self.messages >= 2 and isinstance(message, Batch):
            return Arrived(Parcel(*self.answer(message)))
        return self.inner.submit(message, frames)

    def close(self):
        """Give the way up."""
        self.inner.close()


def test_a_worker_that_answers_something_else(way):
    """A reply that is none is the worker's offence, named as such."""
    worker = RemoteWorker(Rogue(way(), lambda batch: (Done(), ())))
    with pytest.raises(RemoteProtocolError, match="something else"):
        worker.objects_count()


def test_a_worker_that_answers_another_batch(way):
    """A reply to another number is refused."""
    from obhut.protocol.messages import Results

    worker = RemoteWorker(Rogue(way(), lambda batch: (Results(99, ()), ())))
    with pytest.raises(RemoteProtocolError):
        worker.objects_count()


def test_a_worker_that_leaves_a_request_unanswered(way):
    """What was asked and is not answered is an error, never a hang."""
    from obhut.protocol.messages import Results

    worker = RemoteWorker(Rogue(way(), lambda batch: (Results(batch.number, ()), ())))
    with pytest.raises(ObhutError, match="unanswered"):
        worker.objects_count()


def test_a_worker_that_does_not_open(way):
    """A worker that answers the first words with nonsense is refused."""

    class Deaf(Rogue):
        def submit(self, message, frames=()):
            return Arrived(Parcel(Done()))

    worker = RemoteWorker(Deaf(way(), None))
    with pytest.raises(RemoteProtocolError, match="did not open"):
        worker.objects_count()


def test_a_worker_of_another_version(way):
    """A refusal to open is raised with the worker's words."""

    class Other(Rogue):
        def submit(self, message, frames=()):
            return Arrived(Parcel(Refused("RemoteProtocolError", "use version 7")))

    worker = RemoteWorker(Other(way(), None))
    with pytest.raises(RemoteProtocolError, match="bob refused: use version 7"):
        worker.objects_count()


# --- requests that can not be sent --------------------------------------------------


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda x: x.tag("\ud800"), CallError),
        (lambda x: x.tag("x" * 10_000), ObhutError),
        (lambda x: x.describe("x" * 70_000_000), ObhutError),
        (lambda x: x.expand(70_000, 3).unbind(), ObhutError),
    ],
    ids=["half a surrogate pair", "a long tag", "a huge text", "too many results"],
)
def test_a_request_that_can_not_be_sent_ends_nothing(bob, use, error):
    """It is refused by name, here or when a value is asked for, and work goes on."""
    x = obhut.send(torch.ones(3), bob)
    bob.wait()

    def use_and_wait():
        use(x)
        bob.wait()

    with pytest.raises(error):
        use_and_wait()
    after = obhut.send(torch.ones(3), bob)
    assert (after * 3).get().tolist() == [3.0, 3.0, 3.0]
    assert x.get().tolist() == [1.0, 1.0, 1.0]


# --- traces -------------------------------------------------------------------------


def linear_step(bob):
    """Train one linear step and return the trace without frees."""
    model = obhut.send(nn.Linear(2, 1), bob)
    data = obhut.send(torch.ones(4, 2), bob)
    target = obhut.send(torch.ones(4, 1), bob)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        prediction = model(data)
        loss = ((prediction - target) ** 2).sum()
        loss.backward()
        optimizer.step()

    for _ in range(2):
        step()
    bob.wait()
    trace(bob).messages.clear()
    step()
    bob.wait()
    return trace(bob)


def test_a_linear_step_is_few_requests(bob):
    """One step of stochastic gradient descent makes at most twelve requests."""
    requests = [r for r in linear_step(bob).requests if not isinstance(r, Free)]
    assert len(requests) <= 12


def test_a_linear_step_reads_like_its_code(bob):
    """The requests are the user's operators, in the user's order."""
    steps = linear_step(bob).render(frees=False)
    assert_expected_inline(
        steps,
        """\
%1.grad = None
%2.grad = None
%17 = aten.linear.default(%3, %1, %2)
%18 = aten.sub.Tensor(%17, %4)
%19 = aten.pow.Tensor_Scalar(%18, 2)
%20 = aten.sum.default(%19)
backward(%20)
%21 = %1.grad
%22 = %2.grad
aten.add_.Tensor(%1, %21, alpha=-0.1)  # no_grad
aten.add_.Tensor(%2, %22, alpha=-0.1)  # no_grad
""",
    )


def test_a_trace_shows_every_request():
    """Each kind of request has a line of its own."""
    network = LocalNetwork()
    way = TracingTransport(LocalTransport(LocalShell(Worker("bob"), network=network)))
    bob = RemoteWorker(way)
    alice = RemoteWorker(LocalTransport(LocalShell(Worker("alice"), network=network)))
    x = obhut.send(torch.ones(2, requires_grad=True), bob, tags=("x",), description="d")
    y = x.exp()
    y.retain_grad()
    z = (y * torch.tensor(2.0)).sum()
    z.backward(retain_graph=True)
    torch.autograd.grad(z, x)
    x.grad.sum().item()
    x.grad = None
    with torch.no_grad():
        w = x.data.add_(1.5).max(dim=0)
    w.values.requires_grad_()
    x.data = x.data
    x.nonzero()
    bob.search("x")
    x.tag("t")
    bob.objects_count()
    obhut.send(torch.ones(1), bob).move(alice).get()
    x.get()
    bob.clear_objects()
    bob.wait()
    rendered = trace(bob).render()
    for part in (
        "= put(float32[2], requires_grad) #x 'd'\n",
        "= aten.exp.default(%",
        "retain_grad(%",
        "backward(%",
        "retain_graph)\n",
        "float32:2.0)",
        "= grad([%",
        ".grad\n",
        ".grad = None\n",
        ".data\n",
        ".data = %",
        "aten.add_.Tensor(%",
        "# no_grad\n",
        "aten.max.dim(",
        ".requires_grad = True\n",
        "… = aten.nonzero.default(",
        " ?\n",
        "find(x)\n",
        "label %",
        " #t\n",
        "count()\n",
        "move %",
        " to alice as %",
        "fetch %",
        "clear()\n",
        "free %",
    ):
        assert part in rendered, (part, rendered)
    alice.close()


def test_requests_wait_until_a_value_is_asked_for(bob):
    """Sixty-three requests cause no message; asking sends them in one batch."""
    x = obhut.send(torch.zeros(1), bob)
    bob.wait()
    before = len(trace(bob).messages)
    for _ in range(REQUESTS_IN_BATCH - 2):
        x += 1
    assert len(trace(bob).messages) == before
    assert x.item() == REQUESTS_IN_BATCH - 2
    assert len(trace(bob).messages) == before + 1


# --- in the long run ----------------------------------------------------------------


STEPS = """
import gc, json, tracemalloc
import torch
from torch import nn
import obhut

torch.set_num_threads(1)
torch.manual_seed(0)
bob = obhut.VirtualWorker(id="bob")
model = obhut.send(nn.Linear(2, 1), bob)
x, y = obhut.send(torch.randn(4, 2), bob), obhut.send(torch.randn(4, 1), bob)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

def steps(count):
    for _ in range(count):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum()
        loss.backward()
        optimizer.step()
    bob.wait()
    del loss
    gc.collect()
    return bob.objects_count()

after_ten = steps(10)
tracemalloc.start()
steps(500)
before, objects = tracemalloc.get_traced_memory()[0], len(gc.get_objects())
after_all = steps(9_480)
grown = tracemalloc.get_traced_memory()[0] - before
print(json.dumps([after_ten, after_all, grown, len(gc.get_objects()) - objects]))
"""


@pytest.mark.slow
def test_ten_thousand_steps_hold_what_ten_did():
    """Neither worker nor client keeps anything of the steps that have passed.

    In a process of its own: threads that other tests have left allocate too.
    """
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, check=True
    )
    after_ten, after_all, grown, more = json.loads(done.stdout)
    assert after_all == after_ten
    assert grown < 100_000
    assert more < 200


class _Forgetful(list):
    """Remembers nothing."""

    def append(self, _):
        pass


def test_an_object_that_is_gone_is_not_found(bob):
    """What was fetched or cleared is told by its id and place."""
    x = obhut.send(torch.ones(1), bob)
    x.get()
    with pytest.raises(ObjectNotFoundError, match="is not at bob: its value was"):
        x + 1
    y = obhut.send(torch.ones(1), bob)
    bob.clear_objects()
    with pytest.raises(ObjectNotFoundError):
        y.get()
