"""What a session holds: names, failures, labels, and bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from obhut.errors import MemoryLimitError, ObjectNotFoundError, RemoteProtocolError
from obhut.protocol.messages import Failed
from obhut.worker.objects import PoisonedError
from obhut.worker.store import Store

FAILURE = Failed(0, 1, 0, "RemoteExecutionError", "aten.x", "no")


def test_an_id_names_a_tensor_or_a_failure_or_nothing():
    """Asking tells the three apart."""
    store = Store("bob", None)
    tensor = store[1] = torch.ones(1)
    store.poison((1, 2), FAILURE)
    assert store[1] is tensor
    with pytest.raises(PoisonedError) as poisoned:
        store[2]
    assert poisoned.value.failure is FAILURE
    with pytest.raises(ObjectNotFoundError, match="object 3 is not at bob"):
        store[3]


def test_each_object_is_named_once():
    """By its first id, with its tags; another name and a failure are no object."""
    store = Store("bob", None)
    store[3] = store[5] = torch.ones(1)
    store[4] = torch.ones(1)
    store.label(4, ("#x",), "ones")
    store.poison((6,), FAILURE)
    assert list(store.named()) == [(3, ()), (4, ("#x",))]


def test_a_parameter_is_a_tensor_too():
    """A sub-class that an operator returned is found like any other."""
    store = Store("bob", None)
    store[1] = torch.nn.Parameter(torch.ones(1))
    assert isinstance(store[1], torch.nn.Parameter)


def test_without_a_limit_nothing_is_refused():
    """An unlimited store reserves anything."""
    store = Store("bob", None)
    assert not store.limited
    store.reserve(2**80, "x")
    store[1] = torch.ones(1)
    store.recount(1)


def test_recounting_what_is_not_counted():
    """An id that names a failure has nothing to count."""
    store = Store("bob", 100)
    store.poison((1,), FAILURE)
    with pytest.raises(PoisonedError):
        store.recount(1)
    store.free((1,), tagged=False)


def test_a_delivery_checks_before_it_commits():
    """Too large a delivery leaves everything expected, and nothing held."""
    store = Store("bob", 10)
    store.expect((1, 2), "alice")
    big = [torch.ones(2), torch.ones(2)]
    with pytest.raises(MemoryLimitError):
        store.deliver((1, 2), "alice", big)
    assert len(store) == 0
    store.deliver((1, 2), "alice", [torch.ones(1), torch.ones(1)])
    with pytest.raises(RemoteProtocolError):
        store.check_expected((1,), "alice")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: "
                "can't allocate memory: you tried to allocate 4096 bytes. Error code 12"
            ),
            4096,
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 0),
        (MemoryError(), 0),
    ],
)
def test_an_allocator_that_fails_is_told_like_a_limit(error, asked):
    """Whoever ran out of memory, the error has figures and says what to do."""
    told = Store("bob", 8192).ran_out(error, "backward")
    assert isinstance(told, MemoryLimitError)
    assert (told.asked, told.limit, told.op) == (asked, 8192, "backward")
    assert "use smaller batches" in str(told)


def test_other_errors_are_told_as_they_are():
    """An error that is no allocator's stays what it is."""
    for error in (RuntimeError("shapes do not fit"), IndexError("out of memory")):
        assert Store("bob", None).ran_out(error, "backward") is error


class CountingStore(RuleBasedStateMachine):
    """Whatever happens, the bytes counted are those of the storages held."""

    LIMIT = 4_000

    def __init__(self):
        super().__init__()
        self.store = Store("bob", self.LIMIT)
        self.held: dict[int, torch.Tensor] = {}
        self.free_id = 1

    def name(self, tensor):
        """Hold a tensor under a new id, if there is room."""
        id, self.free_id = self.free_id, self.free_id + 1
        try:
            self.store[id] = tensor
        except MemoryLimitError:
            return
        self.held[id] = tensor

    @rule(size=st.integers(0, 500))
    def make(self, size):
        """Hold a new storage."""
        self.name(torch.zeros(size))

    @rule(pick=st.integers(0, 50), how=st.sampled_from(["alias", "view", "slice"]))
    def share(self, pick, how):
        """Name a storage once more."""
        if self.held:
            tensor = list(self.held.values())[pick % len(self.held)]
            match how:
                case "alias":
                    self.name(tensor)
                case "view":
                    self.name(tensor.detach())
                case _:
                    self.name(tensor[: len(tensor) // 2])

    @rule(pick=st.integers(0, 50))
    def let_go(self, pick):
        """Free one id."""
        if self.held:
            id = list(self.held)[pick % len(self.held)]
            del self.held[id]
            self.store.free((id,), tagged=False)

    @rule(pick=st.integers(0, 50), size=st.integers(0, 500))
    def resize(self, pick, size):
        """Let a storage grow, which others may share."""
        if self.held:
            id = list(self.held)[pick % len(self.held)]
            tensor = self.held[id]
            grown = size * 4 - tensor.untyped_storage().nbytes()
            if sum(self.sizes().values()) + max(grown, 0) <= self.LIMIT:
                tensor.resize_(size)
                self.store.recount(id)

    @rule()
    def clear(self):
        """Forget all."""
        self.store.clear()
        self.held.clear()

    def sizes(self):
        """Return the bytes of each storage that is held."""
        storages = [tensor.untyped_storage() for tensor in self.held.values()]
        return {storage._cdata: storage.nbytes() for storage in storages}

    @invariant()
    def exact(self):
        """The room that is left is the limit without what is held, to the byte."""
        room = self.LIMIT - sum(self.sizes().values())
        self.store.reserve(room, "x")
        with pytest.raises(MemoryLimitError) as caught:
            self.store.reserve(room + 1, "x")
        assert caught.value.held == self.LIMIT - room
        assert len(self.store) == len(self.held)


CountingStore.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None
)
TestCounting = CountingStore.TestCase
