"""Workers at real places, found by their addresses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.transports.grpc.conftest import World

import obhut
from obhut.client.network import Network
from obhut.errors import (
    CallError,
    IdentityError,
    RemoteIndexError,
    RemoteProtocolError,
    TransportError,
    WorkerClosedError,
    WorkerNotFoundError,
)
from obhut.identity.folders import VARIABLE, default_folder
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.serving import Served

NAMES = ("me", "bob", "alice")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """People who know each other."""
    world = World(tmp_path_factory.mktemp("network"), NAMES)
    (world.root / "bob" / "data.csv").write_text("a,y\n1,0\n2,1\n")
    yield world
    world.close()


@pytest.fixture(scope="module")
def folders(world: World) -> Path:
    """Return a folder with one for each of them."""
    return world.root


@pytest.fixture(scope="module")
def bob(world: World) -> Served:
    """A worker that serves, with data whose description needs care in HTML."""
    return world.serve(
        "bob",
        more='[[dataset]]\nname = "d"\npath = "data.csv"\nfeatures = ["a"]\n'
        'target = "y"\ntags = ["#d"]\ndescription = "<b>5 & 6</b>"\n'
        "public = { names = true, types = true }\n",
    )


@pytest.fixture
def net(folders: Path, bob: Served) -> Iterator[Network]:
    """What a client is connected to."""
    with obhut.connect(bob.address, folder=folders / "me") as net:
        yield net


def test_workers_are_found_by_name(net: Network, bob: Served) -> None:
    """A network is a mapping from names to workers."""
    assert net.workers == list(net) == ["bob"]
    assert len(net) == 1
    assert net["bob"].id == "bob"
    assert net["bob"].target == bob.address
    assert "bob" in repr(net)


def test_an_unknown_name_is_said_with_the_known(net: Network) -> None:
    """A typo shows what there is."""
    with pytest.raises(WorkerNotFoundError, match="bob"):
        net["bop"]
    assert "bop" not in net
    assert net.get("bop") is None


def test_who_is_pinned_and_not_there_is_told_apart(net: Network) -> None:
    """Alice is known here and at none of the addresses; that is no typo."""
    with pytest.raises(WorkerNotFoundError, match="alice is pinned here, but is at"):
        net["alice"]
    assert net.get("alice") is None


def test_a_worker_is_a_place_for_tensors(net: Network) -> None:
    """The name and the worker both say where; ``with`` creates there."""
    x = obhut.send(torch.ones(2), "bob")
    with net["bob"]:
        y = torch.full((2,), 2.0)
    assert (x + y).tolist() == [3.0, 3.0]


def test_a_worker_prints_what_it_is(net: Network, bob: Served) -> None:
    """In a console and in a notebook: who, where, which data; text stays text."""
    worker = net["bob"]
    assert repr(worker) == f"<ServedWorker bob at {bob.address}, d>"
    html = worker._repr_html_()
    assert bob.address in html
    assert "&lt;b&gt;5 &amp; 6&lt;/b&gt;" in html
    worker.close()
    assert "closed" in repr(worker)


def test_data_is_found_by_name_and_tag(net: Network) -> None:
    """Features without a part, a part by its name, all parts by a tag."""
    bob = net["bob"]
    assert bob["d"].tolist() == [[1.0], [2.0]]
    assert bob["d", "target"].tolist() == [0.0, 1.0]
    sent = obhut.send(torch.ones(1), bob, tags=("#d",))
    assert sorted(len(one.shape) for one in bob.search("#d")) == [1, 1, 2]
    del sent
    with pytest.raises(CallError):
        bob["e"]


def test_leaving_closes_the_sessions(folders: Path, bob: Served) -> None:
    """After ``with`` the worker holds nothing, and using it is an error."""
    before = bob.node.busy()
    with obhut.connect(bob.address, folder=folders / "me") as net:
        x = obhut.send(torch.ones(1), net["bob"])
        assert x.item() == 1.0
        assert bob.node.busy() == before + 1
    assert bob.node.busy() == before
    with pytest.raises(WorkerClosedError):
        x.item()


def test_a_failure_shows_at_its_line_where_asked(folders: Path, bob: Served) -> None:
    """``blocking`` is handed on to the sessions."""
    with obhut.connect(bob.address, folder=folders / "me", blocking=True) as net:
        x = obhut.send(torch.ones(2), net["bob"])
        with pytest.raises(RemoteIndexError):
            x.index_select(0, obhut.send(torch.tensor([7]), net["bob"]))


def test_the_same_worker_twice_is_an_error(folders: Path, bob: Served) -> None:
    """Two workers of one name can not be told apart."""
    with pytest.raises(CallError, match="bob"):
        obhut.connect(bob.address, bob.address, folder=folders / "me")


def test_no_address_is_an_error(folders: Path) -> None:
    """There is nothing to connect to."""
    with pytest.raises(CallError, match="host:port"):
        obhut.connect(folder=folders / "me")


def test_nothing_is_asked_at_an_address_of_another_form(folders: Path) -> None:
    """What is wrong with it is said at once."""
    with pytest.raises(CallError, match="host:port"):
        obhut.connect("https://bob.example", folder=folders / "me")


def test_without_an_identity_it_says_what_to_do(tmp_path: Path, bob: Served) -> None:
    """Who has not run ``obhut init`` is told to."""
    with pytest.raises(IdentityError, match="obhut init"):
        obhut.connect(bob.address, folder=tmp_path)


def test_who_has_pinned_nobody_reaches_nobody(tmp_path: Path, bob: Served) -> None:
    """An identity alone is not enough: both sides must have joined."""
    Identity.create().save(tmp_path / "lonely")
    with pytest.raises(TransportError, match="join"):
        obhut.connect(bob.address, folder=tmp_path / "lonely")


def test_another_worker_at_the_address_is_not_believed(
    folders: Path, bob: Served, tmp_path: Path
) -> None:
    """Who has pinned somebody else asks nothing of whoever is there."""
    Identity.create().save(tmp_path / "me")
    other = Identity.load(folders / "alice").certificate
    PeerBook(tmp_path / "me" / "peers").add("alice", other)
    with pytest.raises(TransportError, match="did both sides join"):
        obhut.connect(bob.address, folder=tmp_path / "me")


def test_the_folder_is_named_by_the_environment(
    folders: Path, bob: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``OBHUT_FOLDER`` says where identity and peers are; else a folder at home."""
    monkeypatch.setenv(VARIABLE, str(folders / "me"))
    with obhut.connect(bob.address) as net:
        assert net.workers == ["bob"]
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("HOME", str(folders))
    assert default_folder() == folders / ".config" / "obhut"


def test_a_pinned_peer_can_not_be_another(
    folders: Path, bob: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who answers at bob's address with alice's id is not taken for alice."""
    alice = Identity.load(folders / "alice").id
    monkeypatch.setattr(bob, "id", alice)
    with pytest.raises(RemoteProtocolError, match="somebody else"):
        obhut.connect(bob.address, folder=folders / "me")
