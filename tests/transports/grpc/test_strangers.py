"""Who is not meant to be served gets nothing, and the log says who it was.

What is proved elsewhere, by the test that proves it:

- an unknown certificate: ``test_served.test_a_stranger_is_refused_in_the_handshake``,
  ``test_credentials.test_an_unknown_certificate_is_refused``; no certificate, no TLS,
  old TLS, a ticket: the tests beside it;
- an impostor with the right name:
  ``test_credentials.test_an_impostor_with_all_of_alices_words_is_refused`` (clients),
  ``test_credentials.test_an_impostor_at_the_address_is_refused`` (servers),
  ``test_credentials.test_bobs_key_can_not_sign_an_alice``, and
  ``client.test_network.test_another_worker_at_the_address_is_not_believed``;
- an expired invitation: ``test_invites.test_an_expired_invitation_is_refused``;
- a replayed invitation: ``test_invites.test_an_invitation_holds_once``,
  ``test_invites.test_of_two_guests_with_one_invitation_one_is_pinned``;
- another client's session:
  ``test_served.test_anothers_session_is_like_one_that_never_was``;
- deliveries by who may not, or under ids that wait for somebody else:
  ``test_served.test_who_is_not_named_delivers_nothing``,
  ``test_served.test_what_nobody_expects_is_not_taken``;
- a removed peer:
  ``test_served.test_a_peer_who_is_removed_is_refused_at_the_next_message``;
- frames beyond a session's memory:
  ``test_served.test_a_parcel_beyond_the_limit_is_refused``; hostile prefixes, one by
  one: ``test_wire.test_a_hostile_prefix_is_refused_at_once``;
- connections that say nothing:
  ``test_faults.test_who_does_not_answer_is_noticed``; whatever else they may say:
  ``test_fuzz``.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import msgspec
import pytest
import torch
from tests.identity.forgery import forge

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import InviteError, TransportError
from obhut.identity.identity import Identity
from obhut.identity.joining import Listener, accept
from obhut.identity.peers import PeerBook
from obhut.protocol import codec, limits
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    AnyRequest,
    Batch,
    Close,
    Count,
    Expect,
    Fetch,
    Open,
    Refused,
)
from obhut.testing.transports import Client
from obhut.transports.grpc import wire
from obhut.transports.grpc.client import CANCEL, CHANNEL_OPTIONS, EXCHANGE, WATCH
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.server import DESCRIBE, HEALTH

from .conftest import World

SECRET = 7.625
"""The value that nobody but its client may see; its bytes are searched for."""

PREFIX = struct.Struct("<IIQ")


@pytest.fixture
def private(world: World) -> Iterator[RemoteWorker]:
    """A session at bob that holds a secret, and must go on undisturbed."""
    worker = RemoteWorker(world.transport("you", "bob"))
    x = obhut.send(torch.full((100,), SECRET), worker, tags=("#secret",))
    worker.wait()
    yield worker
    assert x.sum().item() == 100 * SECRET
    worker.close()


@contextlib.contextmanager
def channel(
    world: World, identity: Identity, address: str = ""
) -> Iterator[grpc.Channel]:
    """A channel to bob that shows an identity."""
    credentials, options = channel_credentials(identity, world.peers("me").find("bob"))
    with grpc.secure_channel(
        address or world.address("bob"), credentials, (*CHANNEL_OPTIONS, *options)
    ) as opened:
        yield opened


def answers(opened: grpc.Channel, *chunks: bytes) -> tuple[bytes, str]:
    """Return all that a stream answers to some chunks, and how it ended."""
    got = b""
    try:
        for reply in opened.stream_stream(EXCHANGE)(iter(chunks), timeout=20):
            got += reply
    except grpc.RpcError as error:
        return got, error.code().name
    return got, "OK"


def parcel(header: bytes, *frames: bytes) -> bytes:
    """Return a parcel whose header may be anything."""
    return b"".join(wire.cut(header, frames))


def deep(depth: int) -> bytes:
    """Return a batch with lists in lists among an operator's arguments."""
    batch = msgspec.msgpack.decode(codec.encode(Batch("s", 1, (Count(),))))
    where = batch.index("s") + 2
    batch[where] = [["run", "aten.add.Tensor", "HERE", {}, 1, 1, False]]
    return msgspec.msgpack.encode(batch).replace(
        msgspec.msgpack.encode("HERE"), b"\x91" * depth + b"\x90"
    )


@pytest.mark.parametrize(
    ("chunk", "status"),
    [
        pytest.param(parcel(deep(10)), "OK", id="deep"),
        pytest.param(parcel(deep(1_000)), "OK", id="deeper"),
        pytest.param(parcel(deep(1_000_000)), "OK", id="deepest"),
        pytest.param(parcel(b"\x91" * 100_000), "OK", id="nothing but depth"),
        pytest.param(
            PREFIX.pack(limits.HEADER_BYTES + 1, 0, 0), "INVALID_ARGUMENT", id="header"
        ),
        pytest.param(
            PREFIX.pack(10, wire.FRAMES_AT_MOST + 1, 0), "INVALID_ARGUMENT", id="frames"
        ),
        pytest.param(
            PREFIX.pack(0, 1, wire.FRAME_BYTES_AT_MOST + 1),
            "INVALID_ARGUMENT",
            id="bytes",
        ),
        pytest.param(bytes(wire.MESSAGE_BYTES + 1), "RESOURCE_EXHAUSTED", id="chunk"),
    ],
)
def test_what_is_too_deep_or_too_large_is_refused(
    world: World,
    private: RemoteWorker,
    caplog: pytest.LogCaptureFixture,
    chunk: bytes,
    status: str,
) -> None:
    """By a refusal or the stream's end, with whom it was from in the log."""
    caplog.set_level(logging.INFO)
    with channel(world, world.identities["me"]) as opened:
        said, ended = answers(opened, chunk)
        assert ended == status
        if status == "OK":
            complete = wire.Assembler(0).feed(said)
            assert complete is not None
            reply = codec.decode(*complete)
            assert isinstance(reply, Refused)
            assert reply.kind == "RemoteProtocolError"
        assert struct.pack("<f", SECRET) not in said
        # gRPC itself throws away what is larger than any chunk, unseen by us.
        assert status == "RESOURCE_EXHAUSTED" or " me: " in caplog.text
        assert str(SECRET) not in caplog.text
        assert opened.unary_unary(HEALTH)(b"", timeout=10) == b"\x08\x01"


def test_no_message_can_say_whom_it_is_from() -> None:
    """There is no field for it: ``Expect`` names whom it waits for, and no other."""
    naming = set()
    for union in (AnyMessage, AnyRequest):
        for kind in typing.get_args(union):
            for field in msgspec.structs.fields(kind):
                if field.name in ("sender", "principal", "owner", "source", "who"):
                    naming.add((kind, field.name))
    assert naming == {(Expect, "sender")}


def test_a_session_named_like_somebody_gives_nothing_of_theirs(
    world: World, private: RemoteWorker
) -> None:
    """Names of people, ids and other sessions as one's own are names like any."""
    for name in ("you", world.id("you"), world.id("bob"), "bob", "secure_worker"):
        client = Client(world.transport("me", "bob"), name)
        try:
            client.open()
            (count,) = client.ask(Count())
            assert getattr(count, "count", None) == 0
            (found,) = client.ask(Fetch(1))
            assert "ObjectNotFoundError" in repr(found)
            client.tell(Close(name))
        finally:
            client.transport.close()


def test_strangers_of_all_kinds_get_no_byte(
    world: World, private: RemoteWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither streams, nor what the worker is, nor whether it is there.

    A new key, one with a pinned client's words, one that a pinned client signed, and
    the worker's own certificate with another key.
    """
    caplog.set_level(logging.INFO)
    you, bob = world.identities["you"], world.identities["bob"]
    strangers = [
        Identity.create(),
        forge(copied=you),
        forge(issuer=you),
        Identity(bob.id, bob.certificate, Identity.create().key),
    ]
    hello = codec.encode(Open("x", PROTOCOL_VERSION, str(torch.__version__)))
    for stranger in strangers:
        with channel(world, stranger) as opened:
            assert answers(opened, parcel(hello)) == (b"", "UNAVAILABLE")
            for method in (CANCEL, WATCH, DESCRIBE, HEALTH, "/obhut.Worker/Other"):
                with pytest.raises(grpc.RpcError) as caught:
                    opened.unary_unary(method)(b"", timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "opened" not in caplog.text


def test_a_replayed_or_late_invitation_gives_no_way_in(
    world: World, private: RemoteWorker
) -> None:
    """The guest is served from then on; who comes after with the same text is not."""
    bob, peers = world.identities["bob"], world.peers("bob")
    guest, replayer, late = (Identity.create() for _ in range(3))
    books = [PeerBook(world.root / f"guest-{k}") for k in range(2)]
    try:
        with (
            Listener(bob, peers, "guest", listen="127.0.0.1:0") as listener,
            ThreadPoolExecutor(1) as threads,
        ):
            waiting = threads.submit(listener.wait)
            accept(listener.invitation, guest, books[0], "bob")
            assert waiting.result(20).id == guest.id
            with pytest.raises(TransportError):
                accept(listener.invitation, replayer, books[1], "bob")
        with (
            Listener(
                bob, peers, "late", listen="127.0.0.1:0", seconds=0.05
            ) as listener,
        ):
            with pytest.raises(InviteError):
                listener.wait()
            with pytest.raises(TransportError):
                accept(listener.invitation, late, books[1], "bob")
        with channel(world, guest) as opened:
            assert opened.unary_unary(HEALTH)(b"", timeout=10) == b"\x08\x01"
            # Known, and still not among those who may open sessions.
            hello = codec.encode(Open("x", PROTOCOL_VERSION, str(torch.__version__)))
            assert answers(opened, parcel(hello)) == (b"", "PERMISSION_DENIED")
        for stranger in (replayer, late):
            with channel(world, stranger) as opened:
                assert answers(opened, parcel(hello)) == (b"", "UNAVAILABLE")
        assert not list(books[1])
    finally:
        peers.remove("guest")
