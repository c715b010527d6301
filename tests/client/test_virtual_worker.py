"""How a virtual worker is made, and the data sets that it has."""

import inspect
from collections.abc import Iterator

import pytest
import torch

import obhut
from obhut.client.network import ServedWorker
from obhut.client.registry import WORKERS
from obhut.compat import virtual_worker as seeds
from obhut.errors import CallError, DatasetError, NotSendableError

POLICY = obhut.Quorum(
    aggregators=["agg"], contributors=["bob", "alice", "carol"], minimum_rows=3
)
X, Y = torch.arange(8.0).reshape(4, 2), torch.arange(4.0)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Close the workers that a test made."""
    before = dict(WORKERS.all())
    yield
    for place in WORKERS.all().values():
        if place not in before.values():
            place.close()


def test_the_front_door_shows_no_hook() -> None:
    """The signature has a name, policy= and datasets=, and nothing of the seed's."""
    shown = inspect.signature(obhut.VirtualWorker).parameters
    assert next(iter(shown)) == "id"
    assert {"policy", "datasets"} < set(shown)
    assert not {"hook", "self", "args", "kwargs"} & set(shown)
    assert "hook" in inspect.signature(seeds.VirtualWorker).parameters


def test_the_door_lets_in_both_ways() -> None:
    """A name makes a native worker; a hook before it, or by name, the seed's."""
    with obhut.TorchHook(torch) as hook:
        native = obhut.VirtualWorker("bob")
        assert type(native) is obhut.VirtualWorker
        for old in (
            obhut.VirtualWorker(hook, id="alice"),
            obhut.VirtualWorker(hook, "carol"),
            obhut.VirtualWorker(hook=hook, id="dave", is_client_worker=False),
        ):
            assert type(old) is seeds.VirtualWorker
            assert isinstance(old, obhut.VirtualWorker)
            assert old.hook is hook
        hook.local_worker.close()


def test_no_hook_and_no_name_will_do() -> None:
    """VirtualWorker(None, id=), (hook=None, id=) and () are native ones."""
    assert obhut.VirtualWorker(None, id="bob").id == "bob"
    assert obhut.VirtualWorker(hook=None, id="bob").id == "bob"
    assert obhut.VirtualWorker().id != obhut.VirtualWorker().id


def test_what_is_no_name_and_no_hook_is_refused() -> None:
    """A number in place of the name is an error that shows how to write it."""
    with pytest.raises(CallError, match=r'got a int: VirtualWorker\("bob"\)'):
        obhut.VirtualWorker(3)


def test_a_virtual_worker_has_data_sets_as_a_served_one() -> None:
    """They are shown, loaded by part, and errors say what there is."""
    bob = obhut.VirtualWorker(
        "bob", datasets={"patients": {"features": X, "target": Y}}
    )
    described = bob.datasets["patients"]
    assert (described.rows, described.parts) == (4, ("features", "target"))
    assert torch.equal(bob["patients"].get(), X)
    assert torch.equal(bob["patients", "target"].get(), Y)
    assert torch.equal(bob.load("patients").get(), X)
    assert [x.shape for x in bob.search()] == [X.shape, Y.shape]
    assert bob.search("#patients") == []
    with pytest.raises(CallError, match="no data set 'doctors'; it has: patients"):
        bob["doctors"]
    with pytest.raises(CallError, match="no part 'x'; it has: features, target"):
        bob["patients", "x"]
    for name in ("datasets", "__getitem__", "load", "search"):
        assert getattr(ServedWorker, name) is getattr(obhut.VirtualWorker, name)


def test_parts_may_have_any_name() -> None:
    """`{"x": …, "y": …}` is found by these names, and by no other."""
    bob = obhut.VirtualWorker("bob", datasets={"patients": {"x": X, "y": Y}})
    assert torch.equal(bob["patients", "x"].get(), X)
    with pytest.raises(CallError, match="no part 'features'; it has: x, y"):
        bob["patients"]


def test_data_sets_are_copies() -> None:
    """What the program writes is not written at the worker, nor the other way."""
    mine = X.clone()
    bob = obhut.VirtualWorker("bob", datasets={"patients": {"x": mine}})
    written = bob["patients", "x"]
    written += 1
    bob.wait()
    assert torch.equal(mine, X)
    mine.zero_()
    assert torch.equal(bob["patients", "x"].get(), X + 1)


def test_a_policy_keeps_data_sets_in() -> None:
    """Loaded behind a guard, rows are there to compute with and do not leave."""
    bob = obhut.VirtualWorker("bob", policy=POLICY, datasets={"p": {"features": X}})
    assert bob["p"].sum(dim=0).shape == (2,)
    with pytest.raises(obhut.ObhutError, match="place"):
        bob["p"].get()


def test_data_that_a_served_worker_would_refuse_is_refused() -> None:
    """Unequal rows, too few for the policy, an aggregator's, and what is no tensor."""
    cases = [
        ({"features": X, "target": Y[:3]}, None, "bob", "4 rows of features and 3 of"),
        (
            {"x": X[:2]},
            POLICY,
            "bob",
            "has 2 rows, and minimum_rows of the policy is 3",
        ),
        ({"x": X}, POLICY, "agg", "an aggregator, which has no data of its own"),
    ]
    before = WORKERS.all()
    for parts, policy, name, words in cases:
        with pytest.raises(DatasetError, match=f"data set 'p'.*{words}"):
            obhut.VirtualWorker(name, policy=policy, datasets={"p": parts})
    assert WORKERS.all() == before
    with pytest.raises(NotSendableError, match="list"):
        obhut.VirtualWorker("bob", datasets={"p": {"x": [1, 2]}})


def test_data_can_be_there_from_the_start() -> None:
    """data= is held without a name, found by its tags, and a copy."""
    x = torch.ones(2)
    x.tags = ("#x",)
    bob = obhut.VirtualWorker("bob", data=[x, torch.zeros(1)])
    assert bob.objects_count() == 2
    (found,) = bob.search(["#x"])
    x.zero_()
    assert found.get().tolist() == [1.0, 1.0]


def test_a_data_set_by_name_is_features_and_target():
    """Both are of the same rows, and train as rows that were sent do."""
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    worker = obhut.VirtualWorker("w", datasets={"d": {"features": x, "target": y}})
    data = worker.dataset("d")
    assert len(data) == 6
    assert torch.equal(data.features.get(), x)
    assert torch.equal(data.targets.get(), y)
    with pytest.raises(CallError, match="no data set 'e'"):
        worker.dataset("e")
    without = obhut.VirtualWorker("w", datasets={"d": {"features": x}})
    with pytest.raises(CallError, match="no part 'target'"):
        without.dataset("d")
