from collections.abc import Callable

import pytest
import torch

import obhut
from obhut.client.registry import WORKERS
from obhut.compat.hook import TorchHook
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import ObjectNotFoundError


def test_a_worker_can_be_made_without_a_hook() -> None:
    """VirtualWorker(hook, id=), (id=), ("bob") and () all make one."""
    assert obhut.VirtualWorker(None, id="bob").id == "bob"
    assert obhut.VirtualWorker(id="bob").id == "bob"
    assert obhut.VirtualWorker("bob").id == "bob"
    assert obhut.VirtualWorker().id != obhut.VirtualWorker().id


def test_objects_count_follows_what_is_sent_and_dropped(bob: VirtualWorker) -> None:
    """Sending adds one, a result adds one, and dropped pointers count no more."""
    assert bob.objects_count() == 0
    x = torch.ones(2).send(bob)
    y = x + x
    assert bob.objects_count() == 2
    del x
    assert bob.objects_count() == 1
    y.get()
    assert bob.objects_count() == 0


def test_clear_objects_forgets_everything(bob: VirtualWorker) -> None:
    """After clear_objects() nothing is there, tagged or not."""
    plain = torch.ones(2).send(bob)
    torch.ones(2).tag("#x").send(bob)
    assert bob.clear_objects() is bob
    assert bob.objects_count() == 0
    assert bob.search("#x") == []
    with pytest.raises(ObjectNotFoundError, match="bob"):
        plain.get()


def test_search_gives_pointers_to_what_has_all_tags(bob: VirtualWorker) -> None:
    """Tags can be given one by one or as a list."""
    data = torch.arange(3.0).tag("#boston", "#data").describe("rooms").send(bob)
    torch.arange(2.0).tag("#boston", "#target").send(bob)
    assert len(bob.search("#boston")) == 2
    assert bob.search("#nothing") == []
    for found in (
        bob.search("#boston", "#data"),
        bob.search(["#boston", "#data"]),
        bob.search(("#data",)),
    ):
        (pointer,) = found
        assert pointer.location is bob
        assert pointer.description == "rooms"
        assert torch.equal((pointer * 2).get(), (data * 2).get())


def test_a_tagged_object_outlives_its_pointers(bob: VirtualWorker) -> None:
    """What is tagged can be found when nobody holds a pointer to it."""
    torch.ones(2).tag("#x").send(bob)
    bob.search("#x")
    assert len(bob.search("#x")) == 1


def test_tags_move_along(bob: VirtualWorker, alice: VirtualWorker) -> None:
    """What is moved is found where it is now, and nowhere else."""
    torch.ones(2).tag("#x").describe("ones").send(bob).move(alice)
    assert bob.search("#x") == []
    (found,) = alice.search("#x")
    assert found.description == "ones"


def test_data_can_be_there_from_the_start() -> None:
    """VirtualWorker(data=[...]) holds it, and search finds what has tags."""
    x = torch.arange(3).requires_grad_(False)
    x.tags = ("#x",)
    carol = obhut.VirtualWorker(id="carol", data=[x, torch.ones(1)])
    assert carol.objects_count() == 2
    (found,) = carol.search("#x")
    assert torch.equal(found.get(), torch.arange(3))


def test_workers_can_be_made_known(
    bob: VirtualWorker, make_worker: Callable[[str], VirtualWorker]
) -> None:
    """add_worker and add_workers, which old programs call, lose nobody."""
    first = make_worker("carol")
    WORKERS.remove(first)
    second = make_worker("carol")
    dave = make_worker("dave")
    assert WORKERS.find("carol") is second
    assert bob.add_worker(first) is bob
    assert WORKERS.find("carol") is first
    assert bob.add_workers([second, dave]) is bob
    assert WORKERS.find("carol") is second
    assert WORKERS.find("dave") is dave


def test_a_pointer_knows_its_object(bob: VirtualWorker) -> None:
    """`location`, `id_at_location` and `owner` say where what is."""
    x = torch.ones(2).send(bob)
    y = torch.ones(2).send(bob)
    assert x.location is y.location is bob
    assert x.id_at_location != y.id_at_location
    assert x.owner is obhut.local_worker
    assert "bob" in repr(x)


def test_a_worker_made_again_is_the_same_one(hook: TorchHook) -> None:
    """A cell that runs twice warns; what was sent before goes with what comes after."""
    bob = obhut.VirtualWorker(hook, id="bob", data=[torch.ones(1)])
    x = torch.ones(2).send(bob)
    with pytest.warns(UserWarning, match="'bob' already: this is the same") as caught:
        again = obhut.VirtualWorker(hook, id="bob", data=[torch.ones(1)])
    assert caught[0].filename == __file__
    assert again is bob
    assert again.objects_count() == 2
    assert (x + torch.ones(2).send(again)).get().tolist() == [2.0, 2.0]
    with pytest.warns(UserWarning, match="already"):
        assert VirtualWorker(hook, "bob") is bob


def test_a_worker_with_another_policy_is_another_one(hook: TorchHook) -> None:
    """It takes the place of the first, with a warning; the same policy does not."""
    policy = obhut.Quorum(aggregators=["agg"], contributors=["a", "b", "c"])
    open_one = obhut.VirtualWorker(hook, id="a")
    with pytest.warns(UserWarning, match="another policy"):
        guarded = obhut.VirtualWorker(hook, id="a", policy=policy)
    assert guarded is not open_one
    assert WORKERS.find("a") is guarded
    same = obhut.Quorum(aggregators=["agg"], contributors=["a", "b", "c"])
    with pytest.warns(UserWarning, match="the same one"):
        assert obhut.VirtualWorker(hook, id="a", policy=same) is guarded


def test_a_closed_worker_or_an_old_hooks_is_made_anew(hook: TorchHook) -> None:
    """Nothing is left of either, so that nothing is warned of."""
    first = obhut.VirtualWorker(hook, id="bob")
    first.close()
    second = obhut.VirtualWorker(hook, id="bob")
    assert second is not first
    hook.unhook()
    third = obhut.VirtualWorker(obhut.TorchHook(torch), id="bob")
    assert third is not second
    assert third.objects_count() == 0


def test_what_a_worker_holds_can_be_seen(bob: VirtualWorker) -> None:
    """`_objects` and `_tensors` have by id what the pointer prints, for each object."""
    assert bob._objects == {}
    x = torch.ones(2, 3).tag("#x").send(bob)
    y = torch.ones(2, requires_grad=True).send(bob)
    z = y * 2
    for seen in (bob._objects, bob._tensors, bob._objects):
        assert len(seen) == bob.objects_count() == bob.tensors_count() == 3
        assert seen == {one.id_at_location: repr(one) for one in (x, y, z)}
    store = bob.object_store
    assert store._objects == store._tensors == bob._objects
    assert len(store) == 3
    assert "tags=#x" in bob.list_objects()
    assert bob.list_tensors() == bob.list_objects()
    del z
    assert list(bob._objects) == [x.id_at_location, y.id_at_location]
    assert bob.clear_objects(return_self=False) is None
    assert len(bob._objects) == 0
    torch.ones(2).tag("#x").send(bob)
    store.clear_objects()
    assert len(store) == 0


def test_what_is_seen_can_not_be_changed(bob: VirtualWorker) -> None:
    """The mapping is read-only and holds no tensor."""
    torch.ones(2).tag("#x").send(bob)
    with pytest.raises(TypeError):
        bob._objects[1] = "x"
    with pytest.raises(AttributeError):
        bob._objects = {}
    assert all(type(text) is str for text in bob._objects.values())


def test_each_object_is_seen_once(bob: VirtualWorker) -> None:
    """Another name, as a search gives it, is no other object."""
    x = torch.ones(2).tag("#x").send(bob)
    found = bob.search("#x")
    assert len(found) == 1
    assert list(bob._objects) == [x.id_at_location]
    assert bob.objects_count() == 1


def test_what_failed_is_no_object(bob: VirtualWorker) -> None:
    """Results that were never made are not listed; the failure is still told."""
    x = torch.arange(3).send(bob)
    lost = x[torch.tensor([7]).send(bob)]
    with pytest.raises(IndexError):
        bob._objects  # noqa: B018
    assert list(bob._objects) == [x.id_at_location]
    with pytest.raises(IndexError):
        lost.get()


def test_what_an_aggregator_holds_can_be_seen(hook: TorchHook) -> None:
    """Behind a policy too: looks and no values."""
    policy = obhut.Quorum(aggregators=["agg"], contributors=["a", "b", "c"])
    agg = obhut.VirtualWorker(hook, id="agg", policy=policy)
    owner = obhut.VirtualWorker(hook, id="a", policy=policy)
    x = torch.ones(2).send(owner).move(agg)
    assert agg._objects == {x.id_at_location: repr(x)}
    assert owner._objects == {}


def test_workers_find_each_other(
    hook: TorchHook, bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """get_worker, request_search and find_or_request do what old programs want."""
    torch.ones(2).tag("#x", "#y").send(bob)
    me = hook.local_worker
    for query in ("#x", ["#x", "#y"], ("#y",)):
        (found,) = me.request_search(query, location=bob)
        assert found.location is bob
    assert me.request_search(["#x"], alice) == []
    assert len(me.find_or_request("#x", location=bob)) == 1
    assert bob.get_worker("alice") is bob.get_worker(alice) is alice
    assert bob.get_worker("nobody") == "nobody"
    for unknown in ("nobody", 1):
        with pytest.raises(obhut.exceptions.WorkerNotFoundException):
            bob.get_worker(unknown, fail_hard=True)
    assert {"bob", "alice", "me"} <= set(bob._known_workers)
    bob.remove_worker_from_local_worker_registry()
    hook.local_worker.remove_worker_from_registry("alice")
    assert not {"bob", "alice"} & set(bob._known_workers)
    with pytest.raises(obhut.exceptions.WorkerNotFoundException):
        hook.local_worker.remove_worker_from_registry("alice")
    bob.close()
    alice.close()


def test_a_tensor_can_be_registered(hook: TorchHook, bob: VirtualWorker) -> None:
    """At a worker it is held as a copy; what is here needs no registration."""
    bob.register_obj(torch.ones(2).tag("#x"))
    hook.local_worker.register_obj(torch.ones(2))
    assert len(bob.search("#x")) == bob.objects_count() == 1
    assert hook.local_worker.objects_count() == 0


def test_old_options_of_workers_are_taken(hook: TorchHook) -> None:
    """All that 0.2 had, and no other; what can be read of them is what was given."""
    carol = obhut.VirtualWorker(
        hook,
        id=3,
        data=None,
        is_client_worker=True,
        log_msgs=True,
        verbose=True,
        auto_add=False,
        message_pending_time=0.5,
        known_workers={},
    )
    assert carol.id == "3"
    assert carol.is_client_worker
    assert carol.log_msgs
    assert carol.verbose
    with carol.registration_enabled() as same:
        assert same is carol
        assert not carol.is_client_worker
    assert carol.is_client_worker
    assert hook.local_worker.is_client_worker
    with pytest.raises(TypeError, match="no_such_option"):
        obhut.VirtualWorker(hook, id="dave", no_such_option=1)
