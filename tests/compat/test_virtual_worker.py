from collections.abc import Callable

import pytest
import torch

import obhut
from obhut.client.registry import WORKERS
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
