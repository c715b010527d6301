"""Workers in processes of their own, from a client's point of view."""

from __future__ import annotations

import copy
import logging
import os
import re
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import grpc
import pytest
import torch
from torch import nn

import obhut
from obhut.client.network import Network
from obhut.client.remote_tensor import RemoteTensor
from obhut.client.workers import RemoteWorker
from obhut.compat.hook import TorchHook
from obhut.errors import (
    AccessDeniedError,
    CallError,
    LimitError,
    MemoryLimitError,
    SessionLostError,
)
from obhut.identity.identity import Identity
from obhut.identity.peers import Peer
from obhut.protocol import codec
from obhut.protocol.messages import (
    Batch,
    Close,
    Count,
    Deliver,
    Expect,
    Fetch,
    Move,
    Open,
    Put,
    Refused,
    TensorData,
)
from obhut.testing.cables import Cable
from obhut.testing.traces import TracingTransport
from obhut.testing.transports import Client
from obhut.transports import serving
from obhut.transports.grpc.client import CHANNEL_OPTIONS, EXCHANGE
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.node import Node
from obhut.transports.grpc.server import HEALTH, Server
from obhut.transports.grpc.wire import Assembler
from obhut.worker.tensors import to_frame

from .conftest import ROWS, Connect, World

SEED = Path(__file__).parents[2] / "compat" / "seed_program.py"


@pytest.fixture
def me(enter: Connect) -> Network:
    """One client at bob and at the aggregator."""
    return enter("me", "bob", "secure_worker")


@pytest.fixture
def client(world: World) -> Iterator[Callable[[str, str, str], Client]]:
    """Somebody who speaks messages to a worker, in a session of that name."""
    made: list[Client] = []

    def make(who: str, to: str, session: str, address: str = "") -> Client:
        one = Client(world.transport(who, to, address), session)
        made.append(one)
        return one

    yield make
    for one in made:
        one.transport.close()


def child_of(world: World, worker: str, session: str) -> int:
    """Return the number of the process that holds a session."""
    sessions = world.served[worker].node._sessions
    pid = sessions[session].child.pid  # type: ignore[attr-defined]
    assert isinstance(pid, int)
    return pid


def ended(process: int) -> None:
    """Wait until a process has ended, as ``pidfd_open`` named it."""
    poll = select.poll()
    poll.register(process)
    assert poll.poll(15_000)
    os.close(process)


# --- what it is for ---------------------------------------------------------------


def test_the_seeds_program_gives_its_figures(
    world: World,
    enter: Connect,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Only the lines that say where the workers are change; the losses do not."""
    program = SEED.read_text().replace("import syft as", "import obhut as")
    outputs: list[str] = []
    for net in (None, enter("me", "bob", "alice", "secure_worker")):
        text = program
        if net is not None:
            text = re.sub(r'sy\.VirtualWorker\(hook, id=("\w+")\)', r"net[\1]", text)
            assert "VirtualWorker" not in text
        # The text of a file of this repository.
        exec(compile(text, "seed", "exec"), {"net": net, "__name__": "__main__"})
        assert TorchHook.active is not None
        TorchHook.active.unhook()
        outputs.append(capsys.readouterr().out)
    virtual, served = outputs
    assert "Bob:tensor(0.3798) Alice:tensor(3.9786)" in served
    assert served == virtual


def test_training_there_is_training_here(world: World) -> None:
    """Losses and weights are those of the same training in this process, to the bit."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 30), torch.randn(64)
    model = nn.Sequential(nn.Linear(30, 16), nn.Tanh(), nn.Linear(16, 1))
    local = copy.deepcopy(model)
    expected = train(x, y, local, lambda: None)
    bob = RemoteWorker(world.transport("me", "bob"))
    try:
        obhut.send(model, bob)
        losses = train(obhut.send(x, bob), obhut.send(y, bob), model, lambda: None)
        obhut.get(model)
    finally:
        bob.close()
    assert losses == expected
    assert all(map(torch.equal, model.parameters(), local.parameters()))


def test_move_goes_directly(world: World, enter: Connect) -> None:
    """Bob delivers to the aggregator; the client asks neither for the value."""
    enter("me", "bob")  # closes nothing of what follows
    traced = {
        name: TracingTransport(world.transport("me", name))
        for name in ("bob", "secure_worker")
    }
    bob, there = (RemoteWorker(one) for one in traced.values())
    try:
        model = nn.Linear(20, 10)
        weight = model.weight.detach().clone()
        obhut.send(model, bob)
        obhut.move(model, there)
        bob.wait()
        total = model.weight.sum()
        requests = traced["bob"].requests
        assert [type(one) for one in requests if isinstance(one, Move)] == [Move]
        assert not any(isinstance(one, Fetch) for one in requests)
        assert not any(
            isinstance(o, Put | Fetch) for o in traced["secure_worker"].requests
        )
        assert total.item() == weight.sum().item()
        assert torch.equal(obhut.get(model).weight, weight)
        assert bob.objects_count() == 0
    finally:
        bob.close()
        there.close()


def test_a_worker_delivers_to_itself(enter: Connect) -> None:
    """Between two sessions of one client at one worker, values move too."""
    one, two = enter("me", "bob")["bob"], enter("me", "bob")["bob"]
    x = obhut.send(torch.arange(5.0), one)
    moved = obhut.move(x, two)
    assert moved.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert one.objects_count() == 0


def test_a_large_model_moves(me: Network) -> None:
    """Megabytes go from worker to worker as they are."""
    tensor = torch.randn(3_000_000)
    moved = obhut.move(obhut.send(tensor, me["bob"]), me["secure_worker"])
    assert torch.equal(moved.get(), tensor)


# --- data -------------------------------------------------------------------------


def test_data_sets_are_described_and_used(enter: Connect) -> None:
    """Names, tags, columns and rounded rows are told; parts are remote tensors."""
    bob = enter("me", "bob")["bob"]
    (described,) = bob.datasets.values()
    assert described.name == "d"
    assert described.tags == ("#d",)
    assert described.columns == {"features": ("a", "b"), "target": ("y",)}
    assert described.rounded
    x, y = bob["d"], bob["d", "target"]
    assert isinstance(x, RemoteTensor)
    assert (tuple(x.shape), tuple(y.shape)) == ((ROWS, 2), (ROWS,))
    assert x[:3].tolist() == [[0.0, 0.0], [1.0, 0.5], [2.0, 1.0]]
    assert y.sum().item() == ROWS // 2
    assert {tuple(one.shape) for one in bob.search("#d")} == {(ROWS, 2), (ROWS,)}
    assert bob.search("#other") == []


def test_data_that_is_not_there_is_said(enter: Connect) -> None:
    """A name that no data set or part has is an error that lists what there is."""
    bob = enter("me", "bob")["bob"]
    with pytest.raises(CallError, match="bob has no data set 'e'; it has: d"):
        bob["e"]
    with pytest.raises(CallError, match="no part 'labels'; it has: features, target"):
        bob["d", "labels"]


def test_sessions_draw_numbers_of_their_own(enter: Connect) -> None:
    """Two sessions of one worker have not the same random numbers before them."""
    draws = []
    for _ in range(2):
        bob = enter("me")["bob"]
        with bob:
            draws.append(torch.rand(8).get())
    assert not torch.equal(*draws)


def test_writes_into_data_stay_in_the_session(enter: Connect) -> None:
    """What one session does to a data set no other sees, now or later."""
    for who in ("me", "you", "me"):
        bob = enter(who, "bob")["bob"]
        x = bob["d"]
        assert x.sum().item() == sum(range(ROWS)) * 1.5
        x.zero_()
        assert x.sum().item() == 0


def test_who_may_open_no_session_is_told_of_no_data(enter: Connect) -> None:
    """A peer who is known but not named gets the worker's name, and no more."""
    net = enter("mallory", "bob")
    assert dict(net["bob"].datasets) == {}


# --- who may do what --------------------------------------------------------------


def test_two_clients_are_apart(enter: Connect) -> None:
    """The same names and tags in two sessions are different objects."""
    mine, yours = enter("me", "bob")["bob"], enter("you", "bob")["bob"]
    x = obhut.send(torch.tensor([1.0]), mine, tags=("#x",))
    y = obhut.send(torch.tensor([2.0]), yours, tags=("#x",))
    assert isinstance(x, RemoteTensor)
    assert isinstance(y, RemoteTensor)
    (found,), (other,) = mine.search("#x"), yours.search("#x")
    assert (found.item(), other.item()) == (1.0, 2.0)
    yours.session.close()
    assert x.item() == 1.0


def test_anothers_session_is_like_one_that_never_was(
    enter: Connect, client: Callable[..., Client]
) -> None:
    """Who names another client's session hears the same as for any name."""
    bob = enter("me", "bob")["bob"]
    x = obhut.send(torch.tensor([1.0]), bob)
    bob.wait()
    thief = client("you", "bob", bob.session.name)
    messages: list[Callable[[str], Batch | Close]] = [
        lambda name: Batch(name, 2, (Count(),)),
        Close,
    ]
    for make in messages:
        theirs, none = (thief.tell(make(name)) for name in (bob.session.name, "0" * 32))
        assert isinstance(theirs, Refused)
        assert theirs == none
    assert isinstance(thief.open(), Refused)
    assert x.item() == 1.0


def test_a_stranger_is_refused_in_the_handshake(
    world: World, client: Callable[..., Client], tmp_path: Path
) -> None:
    """A certificate that is not pinned gets no stream, whatever it asks."""
    stranger = Identity.create()
    bob = world.identities["bob"]
    credentials, options = channel_credentials(
        stranger, Peer("bob", bob.id, bob.certificate)
    )
    address = world.address("bob")
    with grpc.secure_channel(address, credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(HEALTH)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_who_is_not_named_opens_no_session(
    enter: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A peer who is not in ``access.sessions`` hears which line is missing.

    The owner's log names them as the owner does.
    """
    bob = enter("mallory", "bob")["bob"]
    with (
        pytest.raises(AccessDeniedError, match='add "mallory" to sessions under'),
        caplog.at_level("INFO", "obhut.worker"),
    ):
        obhut.send(torch.ones(1), bob).get()
    assert 'to let mallory in, add "mallory" to sessions under [access]' in caplog.text


def test_who_is_not_named_delivers_nothing(
    enter: Connect, client: Callable[..., Client]
) -> None:
    """A peer who is not in ``access.deliver`` is refused, expected or not."""
    bob = enter("me", "bob")["bob"]
    obhut.send(torch.ones(1), bob)
    bob.wait()
    deliver = Deliver(bob.session.name, (5,), (TensorData("float32", (1,), 0),))
    reply = client("me", "bob", "").tell(deliver, (bytes(4),))
    assert isinstance(reply, Refused)
    assert reply.kind == "AccessDeniedError"
    with pytest.raises(AccessDeniedError):  # who may do nothing gets no stream
        client("mallory", "bob", "").tell(deliver, (bytes(4),))


def test_what_nobody_expects_is_not_taken(
    world: World, me: Network, client: Callable[..., Client]
) -> None:
    """Who may deliver can do so only under the ids that wait for them."""
    there = me["secure_worker"]
    obhut.send(torch.ones(1), there)
    there.wait()
    name = there.session.name
    first = there.session.new_ids(2)
    there.session.post(Expect((first,), world.id("bob")))
    there.wait()
    values = (to_frame(torch.tensor([7.0])),)
    data = (TensorData("float32", (1,), 0),)
    for who, id in (("alice", first), ("bob", first + 1), ("bob", 1)):
        reply = client(who, "secure_worker", "").tell(
            Deliver(name, (id,), data), values
        )
        assert isinstance(reply, Refused), (who, id)
    bob = client("bob", "secure_worker", "")
    assert not isinstance(bob.tell(Deliver(name, (first,), data), values), Refused)


def test_a_peer_who_is_removed_is_refused_at_the_next_message(
    world: World, enter: Connect
) -> None:
    """An open connection does not outlive its peer's pin."""
    bob = enter("you", "bob")["bob"]
    x = obhut.send(torch.ones(1), bob)
    assert x.item() == 1.0
    world.peers("bob").remove("you")
    try:
        for _ in range(2):
            with pytest.raises(AccessDeniedError):
                x.item()
    finally:
        world.peers("bob").add("you", world.identities["you"].certificate)


# --- what breaks ------------------------------------------------------------------


def test_a_child_that_is_killed_costs_its_session_only(
    world: World, enter: Connect
) -> None:
    """Its client hears so; the other goes on; a new session works."""
    mine, yours = enter("me", "bob")["bob"], enter("you", "bob")["bob"]
    x, y = obhut.send(torch.ones(1), mine), obhut.send(torch.ones(1), yours)
    assert (x.item(), y.item()) == (1.0, 1.0)
    os.kill(child_of(world, "bob", mine.session.name), signal.SIGKILL)
    with pytest.raises(SessionLostError, match="bob") as caught:
        x.item()
    assert "SIGKILL" in str(caught.value)
    assert (y + 1).item() == 2.0
    again = enter("me", "bob")["bob"]
    assert obhut.send(torch.ones(1), again).item() == 1.0


def train(
    x: torch.Tensor, y: torch.Tensor, model: nn.Module, each: Callable[[], None]
) -> list[float]:
    """Train for 60 steps; return the losses that were asked for."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = ((model(x).squeeze(1) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        if step % 3 == 0:
            losses.append(loss.item())
        each()
    return losses


def test_cuts_change_nothing(world: World, cabled: Callable[[str], Cable]) -> None:
    """Sixty cuts in one training: weights are those of the uncut run, bit for bit."""
    cable = cabled(world.address("bob"))
    results = []
    for address, each in (("", lambda: None), (cable.address, cable.cut_next)):
        bob = RemoteWorker(world.transport("me", "bob", address))
        torch.manual_seed(0)
        x, y = torch.randn(64, 10), torch.randn(64)
        model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1))
        x, y = obhut.send(x, bob), obhut.send(y, bob)
        obhut.send(model, bob)
        losses = train(x, y, model, each)
        state = [p.get().detach() for p in model.parameters()]
        results.append((losses, state))
        bob.close()
    (uncut, expected), (losses, state) = results
    assert cable.cut_by_hand == 60
    assert losses == uncut
    assert all(map(torch.equal, state, expected))


def test_a_cut_while_a_worker_delivers_delivers_once(
    world: World, cabled: Callable[[str], Cable], client: Callable[..., Client]
) -> None:
    """A delivery that was sent again is answered as the first would have been."""
    there = client("me", "secure_worker", "twice")
    there.open()
    there.ask(Expect((5,), world.id("bob")))
    cable = cabled(world.address("secure_worker"))
    bob = client("bob", "secure_worker", "", cable.address)
    deliver = Deliver("twice", (5,), (TensorData("float32", (1,), 0),))
    frames = (to_frame(torch.tensor([7.0])),)
    first = bob.tell(deliver, frames)
    assert not isinstance(first, Refused)
    assert bob.tell(deliver, frames) == first
    assert there.value(5).item() == 7.0
    there.tell(Close("twice"))


def test_cuts_between_workers_lose_nothing(world: World, enter: Connect) -> None:
    """Each of ten deliveries is cut; each arrives once, and is gone here."""
    net = enter("me", "alice", "secure_worker")
    cable = world.between
    assert cable is not None
    moved = []
    for k in range(10):
        x = obhut.send(torch.full((300_000,), float(k)), net["alice"])
        moved.append(obhut.move(x, net["secure_worker"]))
        cable.cut_next()
    for k, there in enumerate(moved):
        assert torch.equal(there.get(), torch.full((300_000,), float(k)))
    assert net["alice"].objects_count() == 0
    assert cable.cut_by_hand >= 10


def test_garbage_is_refused_and_the_worker_lives(world: World, enter: Connect) -> None:
    """Two hundred streams of bytes that mean nothing; nobody else notices."""
    bob = enter("you", "bob")["bob"]
    x = obhut.send(torch.ones(1), bob)
    random = Random(0)
    peer = world.peers("me").find("bob")
    credentials, options = channel_credentials(world.identities["me"], peer)
    refused = 0
    codes = set()
    with grpc.secure_channel(
        world.address("bob"), credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:
        method = channel.stream_stream(EXCHANGE)
        for k in range(200):
            noise = random.randbytes(random.randrange(1, 400))
            if k % 2:  # a parcel whose header is noise
                noise = len(noise).to_bytes(4, "little") + bytes(12) + noise
            try:
                for reply in method(iter((noise,)), timeout=15):
                    assembled = Assembler(0).feed(reply)
                    assert assembled is not None
                    assert isinstance(codec.decode(*assembled), Refused)
                    refused += 1
            except grpc.RpcError as error:
                codes.add(error.code())
    # What is shorter than a prefix waits for the rest, which does not come.
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}
    assert refused >= 100
    assert (x + 1).item() == 2.0


def test_an_unknown_method_is_refused(world: World) -> None:
    """There is nothing else to call."""
    peer = world.peers("me").find("bob")
    credentials, options = channel_credentials(world.identities["me"], peer)
    with grpc.secure_channel(world.address("bob"), credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/obhut.Worker/Other")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_health_check_answers(world: World) -> None:
    """A load balancer that is pinned hears that the worker serves."""
    peer = world.peers("me").find("bob")
    credentials, options = channel_credentials(world.identities["me"], peer)
    with grpc.secure_channel(world.address("bob"), credentials, options) as channel:
        assert channel.unary_unary(HEALTH)(b"", timeout=10) == b"\x08\x01"


# --- limits -----------------------------------------------------------------------


def test_the_memory_of_a_session_is_limited(enter: Connect) -> None:
    """What is asked beyond it is refused with figures, and the session goes on."""
    bob = enter("me", "bob")["bob"]
    x = obhut.send(torch.ones(1_000), bob)
    with pytest.raises(MemoryLimitError) as caught:
        x.repeat(1_000_000).sum().item()
    assert caught.value.worker == "bob"
    assert x.sum().item() == 1_000


def test_memory_that_ends_inside_backward_says_what_to_do(enter: Connect) -> None:
    """A backward pass beyond the limit is told as one, and the session goes on."""
    bob = enter("me", "bob")["bob"]
    with bob:
        x = torch.zeros(30 << 20, requires_grad=True)
    (x[0] + x[1] + x[2]).backward()  # each index has a gradient as large as x
    with pytest.raises(MemoryLimitError, match=r"backward needs .* smaller batches"):
        bob.wait()
    assert x.detach()[0].item() == 0


def test_a_loop_that_never_waits_keeps_to_the_limit(enter: Connect) -> None:
    """It holds what a loop holds that waits, however far it is ahead."""
    bob = enter("me", "bob")["bob"]
    x = obhut.send(torch.ones(8 << 20), bob)
    for _ in range(100):
        y = x * 2
    assert y[0].item() == 2


def test_a_parcel_beyond_the_limit_is_refused(enter: Connect) -> None:
    """A tensor larger than a session may hold is refused, and the session goes on."""
    bob = enter("me", "bob")["bob"]
    x = obhut.send(torch.ones(1), bob)
    with pytest.raises(LimitError):
        obhut.send(torch.zeros(2**26 + 1, dtype=torch.int32), bob).sum().item()
    assert x.item() == 1.0


def test_a_refused_session_leaves_nothing_behind(
    world: World, client: Callable[..., Client]
) -> None:
    """A client of another version gets no session, and no process waits for it."""
    node = world.served["bob"].node
    before = node.busy()
    reply = client("me", "bob", "old").tell(Open("old", 999, "0.0"))
    assert isinstance(reply, Refused)
    assert node.busy() == before


def test_close_ends_the_child(world: World, enter: Connect) -> None:
    """A session that was closed leaves no process behind."""
    bob = enter("me", "bob")["bob"]
    obhut.send(torch.ones(1), bob).get()
    name = bob.session.name
    process = os.pidfd_open(child_of(world, "bob", name))
    bob.close()
    ended(process)
    assert name not in world.served["bob"].node._sessions


# --- a worker that goes -----------------------------------------------------------


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[World]:
    """A world of one worker, which a test may stop and start."""
    world = World(tmp_path, ("bob", "me", "you"))
    yield world
    world.close()


def test_a_worker_that_starts_again_has_no_sessions(mortal: World) -> None:
    """Who was connected hears that the session is lost, and a new one works."""
    address = mortal.serve("bob").address
    net = obhut.connect(address, folder=mortal.root / "me")
    x = obhut.send(torch.ones(1), net["bob"])
    assert x.item() == 1.0
    mortal.served["bob"].close(grace=0)
    mortal.serve("bob", listen=address)
    with pytest.raises(SessionLostError, match="bob"):
        x.item()
    with obhut.connect(address, folder=mortal.root / "me") as again:
        assert obhut.send(torch.ones(1), again["bob"]).item() == 1.0
    net.close()


def test_a_session_that_nobody_is_connected_to_expires(mortal: World) -> None:
    """After its time its process ends, and its client hears so, and what to do."""
    served = mortal.serve("bob", limits="session_seconds = 1")
    with (
        Cable(served.address) as cable,
        obhut.connect(cable.address, folder=mortal.root / "me") as net,
    ):
        x = obhut.send(torch.ones(1), net["bob"])
        assert x.item() == 1.0
        process = os.pidfd_open(child_of(mortal, "bob", net["bob"].session.name))
        cable.swallow()
        cable.cut()
        ended(process)  # the worker looks every few seconds
        cable.pass_on()
        why = r"expired.*session_seconds.*reconnect"
        with pytest.raises(SessionLostError, match=why):
            x.item()
        assert repr(net) == "<Network of bob (lost: net.reconnect())>"


def test_reconnecting_keeps_what_other_workers_have(tmp_path: Path) -> None:
    """One worker starts again; the session with the other goes on."""
    world = World(tmp_path, ("bob", "alice", "me"))
    addresses = [world.serve(name).address for name in ("bob", "alice")]
    with obhut.connect(*addresses, folder=world.root / "me") as net:
        x, y = (obhut.send(torch.ones(2), net[name]) for name in ("bob", "alice"))
        assert (x.sum() + 0).item() == (y.sum() + 0).item() == 2.0
        world.served["bob"].close(grace=0)
        world.serve("bob", listen=addresses[0])
        with pytest.raises(SessionLostError, match="bob"):
            x.sum().item()
        lost, kept = net["bob"], net["alice"]
        assert net.reconnect() is net
        assert net["alice"] is kept
        assert net["bob"] is not lost
        assert y.sum().item() == 2.0
        assert obhut.send(torch.ones(3), "bob").sum().item() == 3.0
        assert repr(net) == "<Network of bob, alice>"
    world.close()


def test_reconnecting_finds_out_who_else_lost_a_session(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One error for all workers, whose sessions ended at the same time."""
    world = World(tmp_path, ("bob", "alice", "me"))
    served = [world.serve(name) for name in ("bob", "alice")]
    addresses = [one.address for one in served]
    with obhut.connect(*addresses, folder=world.root / "me") as net:
        x = [obhut.send(torch.ones(3), worker) for worker in net.values()]
        assert [one.sum().item() for one in x] == [3.0, 3.0]
        for one in served:
            one.node.close()
        with pytest.raises(SessionLostError, match="bob"):
            x[0].sum().item()
        with caplog.at_level(logging.WARNING, "obhut.client"):
            net.reconnect()
        said = [r.getMessage() for r in caplog.records if r.name == "obhut.client"]
        assert [line[:36] for line in said] == ["what was at alice is gone, too: it i"]
        for worker in net.values():
            assert obhut.send(torch.ones(2), worker).sum().item() == 2.0
    world.close()


def test_looking_at_what_stands_still_goes_on_whatever_fails(
    mortal: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One look that fails costs neither the other looks nor the next time."""
    monkeypatch.setattr(serving, "EXPIRY_SECONDS", 0.01)
    looks = threading.Semaphore(0)
    fails = threading.Semaphore(0)

    def fail() -> None:
        fails.release()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Node, "expire", lambda self: fail())
    monkeypatch.setattr(Server, "expire", lambda self: looks.release())
    mortal.serve("bob")
    for _ in range(3):
        assert fails.acquire(timeout=15)
        assert looks.acquire(timeout=15)
    assert "Too many open files" in caplog.text


def test_sessions_of_one_client_are_counted(mortal: World) -> None:
    """One too many is refused; another client still gets theirs."""
    served = mortal.serve("bob", limits="sessions = 2")
    nets = [obhut.connect(served.address, folder=mortal.root / "me") for _ in range(3)]
    one, two, three = (net["bob"] for net in nets)
    x, y = obhut.send(torch.ones(1), one), obhut.send(torch.ones(1), two)
    assert (x.item(), y.item()) == (1.0, 1.0)
    with pytest.raises(LimitError):
        obhut.send(torch.ones(1), three).item()
    nets[0].close()
    assert obhut.send(torch.ones(1), three).item() == 1.0
    for net in nets:
        net.close()


def test_a_line_of_the_log_is_one_line_of_its_kind(caplog):
    """Words of a peer begin no line; each place that writes is told from the others."""
    caplog.set_level(logging.INFO, logger="obhut.worker")
    serving._log("a\n2026-01-01 INFO all is well")
    serving._log("b")
    first, second = caplog.records
    assert first.getMessage() == r"a\n2026-01-01 INFO all is well"
    assert first.pathname == second.pathname == __file__
    assert first.lineno != second.lineno
