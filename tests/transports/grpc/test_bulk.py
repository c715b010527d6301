"""Large tensors over gRPC: what is sent, fetched and cut off in the middle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch

import obhut
from obhut.client.network import Network
from obhut.errors import LimitError
from obhut.protocol import codec
from obhut.protocol.messages import Batch, Deliver, Put, Refused, TensorData
from obhut.testing.transports import Client
from obhut.transports.grpc import client as clients
from obhut.transports.grpc import wire
from obhut.transports.grpc.arriving import Arriving
from obhut.transports.grpc.client import CHANNEL_OPTIONS, EXCHANGE
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.streams import State

from .conftest import Connect, World, until

NUMBERS = 3_000_000


@pytest.fixture
def me(enter: Connect) -> Network:
    """My network: bob, and the worker that he delivers to."""
    return enter("me", "bob", "secure_worker")


def shared_bytes() -> int:
    """Return the bytes of all shared memory that this process, as a parent, has."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        try:
            if "memfd:obhut" in os.readlink(file):
                found += os.stat(file).st_blocks * 512
        except FileNotFoundError:
            continue  # the listing's own
    return found


def test_what_is_fetched_is_its_own(me: Network) -> None:
    """Each fetch brings memory that can be written to, and that nobody else has."""
    x = obhut.send(torch.arange(float(NUMBERS)), me["bob"])
    first, second = x.clone().get(), x.clone().get()
    first.zero_()
    assert second.equal(torch.arange(float(NUMBERS)))
    assert first.untyped_storage().nbytes() == first.nbytes
    assert x.get().equal(second)
    second.resize_(NUMBERS + 1)


def test_models_parameters_come_apart(me: Network) -> None:
    """One of them can go, or change, without the others."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 400), torch.nn.Linear(400, 500))
    copies = [p.detach().clone() for p in model.parameters()]
    back = obhut.get(obhut.send(model, me["bob"]))
    storages = {p.untyped_storage().data_ptr() for p in back.parameters()}
    assert len(storages) == 4
    for mine, theirs in zip(back.parameters(), copies, strict=True):
        assert torch.equal(mine, theirs)
    with torch.no_grad():
        back[0].weight.zero_()
    assert torch.equal(back[1].weight, copies[2])


def test_a_tensor_may_change_as_soon_as_it_was_sent(me: Network) -> None:
    """What arrives is what was sent, also while much is still under way."""
    tensors = [torch.full((NUMBERS,), float(k)) for k in range(6)]
    sent = []
    for tensor in tensors:
        sent.append(obhut.send(tensor, me["bob"]))
        tensor.fill_(-1.0)
    for k, one in enumerate(sent):
        assert one.eq(k).all().get()


def test_what_was_sent_lives_apart_at_the_worker(me: Network) -> None:
    """The same tensor sent twice is two; changes of one do not show in the other."""
    tensor = torch.ones(NUMBERS)
    first, second = obhut.send(tensor, me["bob"]), obhut.send(tensor, me["bob"])
    first.mul_(3)
    view = first[5:10]
    assert second.sum().get().item() == NUMBERS
    del first
    third = obhut.send(torch.zeros(NUMBERS), me["bob"])
    assert view.get().equal(torch.full((5,), 3.0)), "its memory was used again"
    assert not third.any().get()


def test_a_delivery_is_as_it_was(me: Network) -> None:
    """What a worker delivers from its memory comes bit for bit."""
    torch.manual_seed(1)
    tensors = [torch.randn(NUMBERS), torch.randn(5), torch.randn(NUMBERS // 2)]
    moved = [obhut.send(t, me["bob"]).move(me["secure_worker"]) for t in tensors]
    for one, tensor in zip(moved, tensors, strict=True):
        assert one.get().equal(tensor)


def chunks(session: str, *, sent: int, announced: int) -> Iterator[bytes]:
    """Yield a batch of one tensor, as far as so many bytes of it."""
    put = Put(9, TensorData("uint8", (announced,), 0))
    header = codec.encode(Batch(session, 2, (put,)))
    for left, chunk in zip(
        range(sent, 0, -wire.CHUNK_BYTES),
        wire.cut(header, [bytes(announced)]),
        strict=False,
    ):
        yield chunk[: max(left, 0)]


def test_a_stream_that_is_cut_in_a_frame_gives_its_memory_back(
    world: World, me: Network
) -> None:
    """Memory is taken as bytes come, not as announced, and goes with the stream."""
    client = Client(world.transport("me", "bob"), "cut")
    client.open()
    client.hold(1, torch.ones(3))
    credentials, options = channel_credentials(
        world.identities["me"], world.peers("me").find("bob")
    )
    before = shared_bytes()
    sent, announced = 20 << 20, 60 << 20
    held = threading.Event()
    with grpc.secure_channel(
        world.address("bob"), credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:

        def some() -> Iterator[bytes]:
            yield from chunks("cut", sent=sent, announced=announced)
            held.wait(30)

        call = channel.stream_stream(EXCHANGE)(some())
        until(lambda: shared_bytes() - before >= sent - wire.CHUNK_BYTES)
        assert shared_bytes() - before <= sent + (1 << 20)
        call.cancel()
        held.set()
    # What a session had may be kept for its next message, but for that one only.
    assert client.value(1).equal(torch.ones(3))
    client.hold(2, torch.ones(10 << 20))
    assert client.value(2).sum() == 10 << 20
    client.transport.close()


def test_what_came_from_one_who_is_removed_gives_its_memory_back(
    world: World, me: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removed when the last byte is there, before it is handed on."""
    client = Client(world.transport("me", "bob"), "removed")
    client.open()
    bob = world.served["bob"]
    drops: list[Arriving] = []
    real, find = Arriving.drop, bob.server._caller
    size = 8 << 20

    def drop(self: Arriving) -> None:
        drops.append(self)
        real(self)

    def caller(context: grpc.ServicerContext) -> Callable[[], str]:
        who = find(context)

        def still() -> str:
            streams = bob.server._streams._streams
            if any(s.state is State.COMPUTING and s.held > size for s in streams):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "removed meanwhile")
            return who()

        return still

    monkeypatch.setattr(Arriving, "drop", drop)
    monkeypatch.setattr(bob.server, "_caller", caller)
    before = shared_bytes()
    credentials, options = channel_credentials(
        world.identities["me"], world.peers("me").find("bob")
    )
    with grpc.secure_channel(
        world.address("bob"), credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:
        call = channel.stream_stream(EXCHANGE)(
            chunks("removed", sent=2 * size, announced=size)
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    monkeypatch.setattr(bob.server, "_caller", find)
    until(lambda: bool(drops))
    # It is the session's still, and used for its next message.
    assert shared_bytes() - before <= size + (1 << 20)
    client.hold(1, torch.ones(size // 4))
    assert client.value(1).sum() == size // 4
    assert shared_bytes() - before <= 3 * size
    client.transport.close()


def test_less_than_was_announced_is_no_message(world: World, me: Network) -> None:
    """Who ends the stream too early has said nothing; the session goes on."""
    client = Client(world.transport("me", "bob"), "less")
    client.open()
    credentials, options = channel_credentials(
        world.identities["me"], world.peers("me").find("bob")
    )
    with grpc.secure_channel(
        world.address("bob"), credentials, (*CHANNEL_OPTIONS, *options)
    ) as channel:
        method = channel.stream_stream(EXCHANGE)
        some = chunks("less", sent=3 << 20, announced=8 << 20)
        assert list(method(some, timeout=30)) == []
    client.hold(1, torch.ones(3))
    assert client.value(1).equal(torch.ones(3))
    client.transport.close()


def test_who_may_not_deliver_takes_no_memory(world: World, me: Network) -> None:
    """Megabytes for a session of somebody else are thrown away as they come."""
    transport = world.transport("you", "bob")
    before = shared_bytes()
    message = Deliver("nobody's", (1,), (TensorData("uint8", (8 << 20,), 0),))
    reply = transport.submit(message, [bytes(8 << 20)]).result(30).message
    assert isinstance(reply, Refused)
    assert reply.kind == "AccessDeniedError"
    assert shared_bytes() == before
    transport.close()


def test_no_memory_for_a_copy_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent then; the next message, which needs no copy, goes its way."""

    def none(size: int) -> memoryview:
        raise MemoryError

    transport = world.transport("me", "bob")
    client = Client(transport, "no-memory")
    client.open()
    monkeypatch.setattr(clients.wire, "fresh", none)
    put = Put(1, TensorData("uint8", (8 << 20,), 0))
    with pytest.raises(LimitError, match="no memory"):
        transport.submit(Batch("no-memory", 1, (put,)), [bytearray(8 << 20)])
    transport.submit(Batch("no-memory", 1, (put,)), [b"1" * (8 << 20)]).result(10)
    monkeypatch.undo()
    client.number += 1
    assert client.value(1).eq(ord("1")).all()
    transport.close()
