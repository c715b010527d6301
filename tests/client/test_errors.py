"""Bad input: each a named error, nothing lost, and the worker goes on."""

from __future__ import annotations

import pytest
import torch

import obhut
from obhut import errors
from obhut.client.call_site import CallSite
from obhut.client.failures import to_error, to_exception, to_refusal
from obhut.protocol.messages import Failed, Refused


class Own(torch.Tensor):
    """A sub-class that obhut does not know."""


@pytest.fixture
def limited():
    """A virtual worker that may hold a gigabyte."""
    worker = obhut.VirtualWorker(id="small", memory_limit=2**30)
    yield worker
    worker.close()


@pytest.fixture(autouse=True)
def _alive(bob):
    """After each test the worker that was misused computes as before."""
    x = obhut.send(torch.ones(2), bob)
    yield
    if not bob.session.closed:
        assert (x + 1).get().tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "thing",
    [
        None,
        1,
        "text",
        [1.0],
        object(),
        torch.zeros(3).to_sparse(),
        torch.zeros(3).as_subclass(Own),
        torch.zeros(3, device="meta"),
        torch.empty(3, dtype=torch.uint4),
    ],
    ids=[
        "None",
        "int",
        "str",
        "list",
        "object",
        "sparse",
        "sub-class",
        "meta",
        "uint4",
    ],
)
def test_what_can_not_be_sent(bob, thing):
    """It is refused by name, with what can be sent instead."""
    with pytest.raises(errors.NotSendableError, match="can not be sent; ") as caught:
        obhut.send(thing, bob)
    assert caught.value.kind
    assert caught.value.advice


def test_a_tensor_that_is_sent_already(bob, alice):
    """Sending a remote tensor says where it is and how to move it."""
    x = obhut.send(torch.ones(1), bob)
    with pytest.raises(errors.NotSendableError, match=r"at bob.*x\.move"):
        obhut.send(x, alice)
    assert x.get().item() == 1.0


@pytest.mark.parametrize(
    "use", [obhut.send, lambda x, to: obhut.send(x, "bob").move(to)]
)
def test_an_unknown_worker(bob, use):
    """An id that nobody has is told with those that are known."""
    with pytest.raises(errors.WorkerNotFoundError) as caught:
        use(torch.ones(1), "nobody")
    assert caught.value.id == "nobody"
    assert "bob" in caught.value.known


def test_a_closed_worker(bob, alice):
    """Whatever is asked of a closed worker says that it is closed."""
    x = obhut.send(torch.ones(1), alice)
    alice.close()
    for use in (
        x.get,
        x.sum,
        lambda: x.add_(1),
        alice.objects_count,
        alice.clear_objects,
        lambda: alice.search("x"),
        lambda: obhut.send(torch.ones(1), alice),
    ):
        with pytest.raises(errors.WorkerClosedError, match="alice is closed"):
            use()


def test_tensors_at_different_places(bob, alice):
    """The error says what is where, and nothing was sent."""
    x, y = obhut.send(torch.ones(2), bob), obhut.send(torch.ones(2), alice)
    with pytest.raises(errors.LocationError) as caught:
        x + y
    assert caught.value.places == ("bob", "alice")
    with pytest.raises(errors.LocationError, match="this process"):
        x + torch.ones(2)
    assert (bob.objects_count(), alice.objects_count()) == (2, 1)


def test_a_result_of_ten_gigabytes(limited):
    """It is refused under a limit of one, and all that was there still is."""
    x = obhut.send(torch.ones(1), limited)
    bad = x.expand(2_500_000_000) + 1
    with pytest.raises(errors.MemoryLimitError) as caught:
        bad.sum().item()
    assert caught.value.asked == 10_000_000_000
    assert caught.value.limit == 2**30
    assert caught.value.op == "aten.add.Tensor"
    assert __file__ in caught.value.site
    assert (x + 1).item() == 2.0
    with limited:
        zeros = torch.zeros(2_500_000_000)
    with pytest.raises(errors.MemoryLimitError):
        zeros.sum().item()
    assert x.get().item() == 1.0


def test_a_huge_view_is_not_fetched(limited):
    """Fetching what only looks large is refused before it becomes large."""
    x = obhut.send(torch.ones(1), limited)
    with pytest.raises(errors.MemoryLimitError):
        x.expand(2_500_000_000).get()
    assert x.get().item() == 1.0


def test_a_tensor_beyond_the_limit_is_not_held(limited):
    """What is sent is held to the limit too."""
    x = obhut.send(torch.zeros(1), limited)
    y = obhut.send(torch.zeros(2**28 + 1, dtype=torch.int32), limited)
    with pytest.raises(errors.MemoryLimitError):
        y.sum().item()
    assert x.get().item() == 0.0


def test_an_operator_that_is_not_admitted(bob):
    """The error has the operator's name and the reason."""
    x = obhut.send(torch.ones(2, 2), bob)
    with pytest.raises(errors.ObhutError) as caught:
        torch.ops.aten.record_stream.default(x, None)
    assert "record_stream" in str(caught.value)


def test_a_shape_that_does_not_fit_is_found_at_once(bob):
    """The error is PyTorch's own, at the line itself; nothing is sent."""
    x = obhut.send(torch.ones(2), bob)
    with pytest.raises(RuntimeError, match=r"size|broadcast"):
        x + obhut.send(torch.ones(3), bob)
    with pytest.raises(RuntimeError, match="invalid for input"):
        x.view(5)


# --- what a worker answers, as exceptions ---------------------------------------------

SITE = CallSite("train.py", 7)


def failed(kind, text="no", facts=()):
    """Return a worker's answer of a failure."""
    return Failed(3, 2, 3, kind, "aten.x.y", text, facts)


@pytest.mark.parametrize(
    "kind",
    [
        name
        for name in errors.__all__
        if name.startswith("Remote") and name != "RemoteProtocolError"
    ],
)
def test_an_operators_error_keeps_its_class(kind):
    """Each kind of execution error becomes its own class, with its facts."""
    error = to_exception(failed(kind), "bob", SITE)
    assert type(error) is getattr(errors, kind)
    assert (error.op, error.worker, error.text) == ("aten.x.y", "bob", "no")
    assert error.site == "train.py:7"


@pytest.mark.parametrize(
    "kind", [name for name in errors.__all__ if name != "ObhutError"]
)
def test_every_kind_that_a_worker_may_answer_is_an_error_of_ours(kind):
    """No kind raises anything but an ObhutError, with the worker's words in it."""
    for error in (
        to_exception(failed(kind, "the words"), "bob", SITE),
        to_exception(failed(kind, "the words", (1, 2, 3)), "bob", None),
        to_error(kind, "the words"),
    ):
        assert isinstance(error, errors.ObhutError)
        assert "the words" in str(error) or isinstance(
            error, errors.MemoryLimitError | errors.WorkerClosedError
        )
        if not isinstance(error, errors.RemoteProtocolError):
            assert isinstance(error, getattr(errors, kind).__mro__[1])


@pytest.mark.parametrize("kind", ["KeyError", "SystemExit", "", "os.system", "x" * 999])
def test_an_unknown_kind_is_the_workers_offence(kind):
    """By table only: no text of a worker names a class here."""
    for error in (
        to_exception(failed(kind), "bob", None),
        to_refusal(Refused(kind, "no"), "bob"),
    ):
        assert type(error) is errors.RemoteProtocolError
        assert len(str(error)) < 200


def test_facts_that_are_missing_break_nothing():
    """An answer without the facts that its kind has is still an error of ours."""
    for kind in ("MemoryLimitError", "ObjectNotFoundError", "OpNotAdmittedError"):
        for facts in ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)):
            error = to_exception(failed(kind, "no", facts), "bob", SITE)
            assert isinstance(error, errors.ObhutError)


def test_a_refusal_by_a_closed_worker():
    """A worker that refuses since it is closed is a closed worker."""
    error = to_refusal(Refused("WorkerClosedError", "whatever"), "bob")
    assert isinstance(error, errors.WorkerClosedError)
    assert error.worker == "bob"
