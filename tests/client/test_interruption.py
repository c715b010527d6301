"""Ctrl-C cancels what was asked: here, at the worker, and in what names stand for."""

from __future__ import annotations

import copy
import gc
import inspect
import linecache
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import obhut
from obhut.client import session as session_module
from obhut.client.cancelling import interruptible
from obhut.client.workers import RemoteWorker
from obhut.errors import CancelledError, ObjectNotFoundError
from obhut.protocol.messages import Count
from obhut.testing.faults import InterruptingTransport, LateTransport
from obhut.transports.local import LocalNetwork, LocalShell, LocalTransport
from obhut.worker.core import Worker

FOLDER = str(Path(session_module.__file__).parent)


@pytest.fixture
def way():
    """A new way to a new worker."""
    return LocalTransport(LocalShell(Worker("bob"), network=LocalNetwork()))


@pytest.fixture
def late(way):
    """A worker whose answers come when its transport's gate is open."""
    transport = LateTransport(way)
    worker = RemoteWorker(transport)
    yield worker
    transport.gate.set()
    worker.close()


def gate(worker):
    """Return the gate of a late worker."""
    return worker.session._transport.gate


def press(worker):
    """Cancel as Ctrl-C does, and return what its exception says of it."""
    stop = KeyboardInterrupt()
    session_module.interrupted(stop)
    return "\n".join(note for note in getattr(stop, "__notes__", ()))


class Training:
    """A model that is trained at a worker, and can be told apart from one here."""

    def __init__(self, worker, momentum=0.0):
        torch.manual_seed(0)
        self.here = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.data, self.target = torch.randn(32, 4), torch.randn(32, 1)
        self.model = obhut.send(copy.deepcopy(self.here), worker)
        self.x, self.y = obhut.send(self.data, worker), obhut.send(self.target, worker)
        self.momentum = momentum
        self.optimizer = self.optimizer_of(self.model)

    def optimizer_of(self, model):
        """Return a new optimizer."""
        return torch.optim.SGD(model.parameters(), lr=0.05, momentum=self.momentum)

    def steps(self, count):
        """Train there, and ask for the loss in the end."""
        for _ in range(count):
            self.optimizer.zero_grad()
            loss = ((self.model(self.x) - self.y) ** 2).mean()
            loss.backward()
            self.optimizer.step()
        return loss.item()

    def weights(self):
        """Return the weights that are there now."""
        return [p.detach().clone().get() for p in self.model.parameters()]

    def begin_again(self):
        """Bring the weights here, that training here goes on from the same."""
        with torch.no_grad():
            for own, there in zip(self.here.parameters(), self.weights(), strict=True):
                own.copy_(there)
        self.optimizer = self.optimizer_of(self.model)

    def check(self, count=3):
        """Train on, there and here, and compare to the bit."""
        self.begin_again()
        loss = self.steps(count)
        optimizer = self.optimizer_of(self.here)
        for _ in range(count):
            optimizer.zero_grad()
            local = ((self.here(self.data) - self.target) ** 2).mean()
            local.backward()
            optimizer.step()
        assert loss == local.item()
        assert all(map(torch.equal, self.weights(), self.here.parameters()))


# --- what is dropped and what stays -------------------------------------------------


def test_what_was_not_sent_is_dropped(late):
    """Its results are names of nothing, and say so; what was there before is there."""
    x = obhut.send(torch.ones(3), late)
    late.wait()
    gate(late).clear()
    under_way = x + 1
    late.session.flush()
    y = x * 2
    x += 5
    said = press(late)
    gate(late).set()
    assert "bob: 2 requests were cancelled, from " in said
    assert "test_interruption.py" in said
    assert x.tolist() == [1.0, 1.0, 1.0]
    assert under_way.tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(CancelledError, match="Ctrl-C came before") as raised:
        y.get()
    assert raised.value.worker == "bob"


def test_whoever_waits_for_it_is_told(late):
    """A future of what was cancelled raises, and a move leaves its tensor here."""
    x = obhut.send(torch.ones(3), late)
    late.wait()
    gate(late).clear()
    _ = x + 1
    late.session.flush()
    coming = (x * 2).get(wait=False)
    press(late)
    gate(late).set()
    with pytest.raises(CancelledError):
        coming.result()
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_names_that_died_are_freed(late):
    """Ctrl-C keeps nothing at the worker that no name refers to."""
    x = obhut.send(torch.ones(3), late)
    old = [x + i for i in range(10)]
    late.wait()
    gate(late).clear()
    new = [x * i for i in range(10)]
    late.session.flush()
    later = [one + 1 for one in new]
    del old
    gc.collect()
    press(late)
    gate(late).set()
    assert late.objects_count() == 11
    del new, later
    gc.collect()
    assert late.objects_count() == 1


def test_what_a_program_believes_of_its_names_holds(late):
    """Flags, gradients that were let go of and tags are as the program left them."""
    x = obhut.send(torch.ones(3), late).requires_grad_()
    z = obhut.send(torch.ones(3), late)
    (x * 3).sum().backward()
    late.wait()
    gate(late).clear()
    _ = z + 1
    late.session.flush()
    x.grad = None
    z.requires_grad_()
    z.tag("#kept")
    (x * 5).sum().backward()
    press(late)
    gate(late).set()
    assert x.grad is None
    (x * 2 + z * 4).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]
    assert z.grad.tolist() == [4.0, 4.0, 4.0]
    assert [found.tolist() for found in late.search("#kept")] == [[1.0, 1.0, 1.0]]


def test_a_gradient_that_was_not_computed_is_none(late):
    """Where a backward pass was cancelled the worker is asked what there is."""
    x = obhut.send(torch.ones(3), late).requires_grad_()
    late.wait()
    gate(late).clear()
    _ = x.detach() + 1
    late.session.flush()
    (x * 5).sum().backward()
    read = x.grad
    press(late)
    gate(late).set()
    assert x.grad is None
    with pytest.raises(CancelledError):
        read.get()


def test_a_name_whose_looks_are_doubtful_is_not_used(late):
    """A tensor that was to be reshaped in place raises instead of being another's."""
    x = obhut.send(torch.ones(2, 3), late)
    late.wait()
    gate(late).clear()
    _ = x + 1
    late.session.flush()
    x.t_()
    press(late)
    gate(late).set()
    with pytest.raises(ObjectNotFoundError, match="Ctrl-C"):
        x + 1
    assert (obhut.send(torch.ones(1), late) + 1).item() == 2.0


def test_what_failed_before_is_told_with_it(late):
    """A failure that nobody has seen is a note, and does not come up later."""
    x = obhut.send(torch.ones(3), late)
    _ = x[torch.tensor([7])]
    late.session.ask_later(Count()).wait()
    gate(late).clear()
    _ = x + 1
    late.session.flush()
    said = press(late)
    gate(late).set()
    assert "index" in said
    assert (x + 1).tolist() == [2.0, 2.0, 2.0]


def test_all_workers_are_cancelled(way, late):
    """Who waits for one worker is not behind another one's queue afterwards."""
    other = RemoteWorker(LateTransport(way))
    x, z = obhut.send(torch.ones(3), late), obhut.send(torch.ones(3), other)
    late.wait(), other.wait()
    gate(late).clear(), gate(other).clear()
    names = []
    for tensor, worker in ((x, late), (z, other)):
        names.append(tensor + 1)
        worker.session.flush()
        names.append(tensor * 2)
    press(late)
    gate(late).set(), gate(other).set()
    for name in (names[1], names[3]):
        with pytest.raises(CancelledError):
            name.get()
    other.close()


def test_nothing_to_cancel(late):
    """Ctrl-C where nothing is asked for changes nothing and says nothing."""
    x = obhut.send(torch.ones(3), late)
    late.wait()
    assert press(late) == ""
    assert x.tolist() == [1.0, 1.0, 1.0]


# --- anywhere -----------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_goes_on_from_where_it_was_cut(way, when, momentum):
    """After Ctrl-C at any exchange the weights are those after some whole request."""
    numbers = range(4, 400, 7)
    training = Training(
        RemoteWorker(InterruptingTransport(way, **{when: numbers})), momentum
    )
    cuts = 0
    for _ in range(60):
        try:
            training.steps(2)
            training.check()
        except KeyboardInterrupt:
            cuts += 1
            training.optimizer = training.optimizer_of(training.model)
    assert cuts > 5


class CtrlC:
    """Raises KeyboardInterrupt at the n-th line of the client's code that runs."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.before = sys.gettrace()

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def trace(self, frame, event, _):
        """Count a line, and interrupt at the last.

        Not where PyTorch's modes change hands, at a ``with`` or in the generator behind
        it: Python looks for Ctrl-C there only within calls.
        """
        code = frame.f_code
        if not code.co_filename.startswith(FOLDER):
            return None
        if code.co_flags & inspect.CO_GENERATOR:
            return None
        source = linecache.getline(code.co_filename, frame.f_lineno).lstrip()
        if event == "line" and not source.startswith("with "):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


@pytest.mark.parametrize("start", range(8))
def test_wherever_ctrl_c_comes_the_worker_is_usable(way, start):
    """After an interruption at any line of the client's code training is right."""
    training = Training(RemoteWorker(way))
    training.check()
    at, ended = start + 1, False
    while not ended:
        try:
            with CtrlC(at):
                training.steps(1)
            ended = True
        except KeyboardInterrupt:
            pass
        training.check(1)
        at += 13
    assert at > 100


def test_modes_are_as_before():
    """Also where it comes within ``torch.no_grad``'s lines, which put nothing back."""

    @interruptible
    def cut(mode):
        torch._C._set_grad_enabled(mode)
        torch._C.DisableTorchFunction().__enter__()
        raise KeyboardInterrupt

    for before in (True, False):
        with torch.set_grad_enabled(before):
            with pytest.raises(KeyboardInterrupt):
                cut(not before)
            assert torch.is_grad_enabled() is before
            assert torch._C._is_torch_function_enabled()
