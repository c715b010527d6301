"""Calls whose message never comes: they hold no place of anybody else's."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
import torch

import obhut
from obhut.transports.grpc.client import CANCEL, CHANNEL_OPTIONS, EXCHANGE, WATCH
from obhut.transports.grpc.credentials import channel_credentials
from obhut.transports.grpc.server import DESCRIBE, HEALTH
from obhut.transports.grpc.streams import EACH, STALLED_SECONDS, Stream
from obhut.transports.relay.messages import ACCEPT, ATTACH, CONNECT

from .conftest import Connect, World

MANY = 300


class Silent:
    """Calls of one peer who never sends their message.

    Args:
        world: who there is.
        who: whose calls.
        others_are_served: raises if they are not.
    """

    def __init__(
        self, world: World, who: str, others_are_served: Callable[[], None]
    ) -> None:
        self.who = who
        self.others_are_served = others_are_served
        peer = world.peers(who).find("bob")
        credentials, options = channel_credentials(world.identities[who], peer)
        self.channel = grpc.secure_channel(
            world.address("bob"), credentials, (*CHANNEL_OPTIONS, *options)
        )
        self._over = threading.Event()

    def call(self, method: str) -> grpc.Call:
        """Begin a call."""
        # A call that is not over is its own answer, which the stubs do not know.
        begun: grpc.Call = self.channel.stream_stream(method)(self._nothing())
        return begun

    def ended(self, method: str) -> set[grpc.StatusCode]:
        """Begin many calls, see that others are served, and tell how these end."""
        calls = [self.call(method) for _ in range(MANY)]
        self.others_are_served()
        return {_end(call) for call in calls}

    def close(self) -> None:
        """End all calls."""
        self._over.set()
        self.channel.close()

    def _nothing(self) -> Iterator[bytes]:
        self._over.wait(60)
        yield from ()


def _end(call: grpc.Call) -> grpc.StatusCode:
    """Take all that a call says, and return how it ended."""
    with contextlib.suppress(grpc.RpcError):
        collections.deque(call, 0)
    code: grpc.StatusCode = call.code()
    return code


@pytest.fixture
def silent(
    world: World, enter: Connect, request: pytest.FixtureRequest
) -> Iterator[Silent]:
    """Calls of somebody who says nothing."""

    def others_are_served() -> None:
        other = Silent(world, "you", lambda: None)
        for method in (HEALTH, DESCRIBE):
            assert other.channel.unary_unary(method)(b"", timeout=5)
        other.close()
        assert obhut.send(torch.ones(3), enter("you")["bob"]).sum().item() == 3.0

    silent = Silent(world, request.param, others_are_served)
    yield silent
    silent.close()


@pytest.mark.parametrize("silent", ["mallory", "me"], indirect=True)
@pytest.mark.parametrize(
    "method", [HEALTH, DESCRIBE, CANCEL, WATCH, ATTACH, CONNECT, ACCEPT]
)
def test_a_message_that_never_comes_holds_no_place(silent: Silent, method: str) -> None:
    """Neither of a peer who is named nowhere nor of a client, whatever they call."""
    expected = {grpc.StatusCode.PERMISSION_DENIED}
    served = [HEALTH, DESCRIBE]
    if silent.who == "me":
        served += [CANCEL, WATCH]
    if method in served:
        expected = {grpc.StatusCode.OK}
    elif (method, silent.who) == (CONNECT, "me"):  # it may, and nobody is attached
        expected = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert silent.ended(method) <= expected


@pytest.mark.parametrize("silent", ["mallory"], indirect=True)
def test_who_has_nothing_here_opens_no_stream(silent: Silent) -> None:
    """They are refused before a message is waited for."""
    assert silent.ended(EXCHANGE) == {grpc.StatusCode.PERMISSION_DENIED}


@pytest.mark.parametrize("silent", ["me"], indirect=True)
def test_a_client_has_its_own_places_and_no_others(
    world: World, silent: Silent
) -> None:
    """Streams on which nothing was ever said are counted, and ended in time."""
    calls = [silent.call(EXCHANGE) for _ in range(MANY)]
    silent.others_are_served()
    server = world.served["bob"].server
    while len(mine := _streams(world, "me")) < EACH:
        pass
    assert len(mine) == EACH
    for stream in mine:
        stream.since -= STALLED_SECONDS + 1
    server.expire()
    assert {_end(call) for call in calls} == {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
    }


def _streams(world: World, who: str) -> list[Stream]:
    """Return somebody's streams that bob serves."""
    streams = world.served["bob"].server._streams._streams
    return [one for one in streams if one.principal == world.id(who)]


@pytest.mark.parametrize("silent", ["mallory"], indirect=True)
def test_an_answer_before_its_message_arrives(silent: Silent) -> None:
    """Who sends one message, as others do, gets the answer each time."""
    ask = silent.channel.unary_unary(HEALTH)
    for _ in range(500):
        assert ask(b"", timeout=10) == b"\x08\x01"


@pytest.mark.parametrize("silent", ["mallory"], indirect=True)
def test_who_was_removed_is_not_told_that_the_worker_is_well(
    world: World, silent: Silent
) -> None:
    """On a connection that was made before, too."""
    ask = silent.channel.unary_unary(HEALTH)
    assert ask(b"", timeout=10)
    peers = world.peers("bob")
    peers.remove("mallory")
    try:
        with pytest.raises(grpc.RpcError) as caught:
            ask(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        peers.add("mallory", world.identities["mallory"].certificate)
