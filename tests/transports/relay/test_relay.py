"""The relay: who may attach, who may connect, and what ends a connection.

No network: what a side sends is a queue, and a call is ended by a function.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from obhut.errors import (
    AccessDeniedError,
    LimitError,
    RemoteProtocolError,
    TransportError,
)
from obhut.transports.relay import messages as relay_messages
from obhut.transports.relay import relay as relays
from obhut.transports.relay.messages import Attached, Called, Carried
from obhut.transports.relay.relay import CONNECTIONS, CONNECTIONS_EACH, Relay

SECONDS = 15.0


class Side:
    """What one side of a connection sends, and whether its call was ended."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.ended = threading.Event()
        for chunk in chunks:
            self._chunks.put(chunk)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self._chunks.get(timeout=SECONDS)
        if chunk is None:
            raise StopIteration
        return chunk

    def send(self, chunk: bytes) -> None:
        """Send one piece."""
        self._chunks.put(chunk)

    def end(self) -> None:
        """End the call."""
        self.ended.set()
        self._chunks.put(None)


class RelayStage:
    """A relay for people who are their own ids, and what it wrote into its log."""

    def __init__(self) -> None:
        self.known = {"bob", "alice", "me", "you", "mallory"}
        self.log: list[str] = []
        self.relay = Relay(
            lambda id: id in self.known,
            lambda id: id,
            may_attach=lambda id: id in ("bob", "alice"),
            may_connect=lambda id: id in ("me", "you", "alice"),
            log=self.log.append,
        )

    def attach(self, worker: str) -> AttachedWorker:
        """Attach a worker, and take its first notice."""
        return AttachedWorker(self.relay.attach(worker))


class AttachedWorker:
    """A worker that is attached."""

    def __init__(self, carried: Carried) -> None:
        self.carried = carried
        self.notices = map(relay_messages.decode, carried)
        self.first = next(self.notices)

    def called(self) -> str:
        """Return the number of the next connection."""
        notice = next(self.notices)
        assert isinstance(notice, Called)
        return notice.number


@pytest.fixture
def stage() -> RelayStage:
    """A relay."""
    return RelayStage()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads, as a server has them."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Joined:
    """A connection of ``sender`` to bob."""

    def __init__(
        self,
        stage: RelayStage,
        seat: AttachedWorker,
        pool: ThreadPoolExecutor,
        sender: str = "me",
    ) -> None:
        self.near, self.far = Side(), Side()
        self.back = stage.relay.connect(sender, "bob", self.near, self.near.end)
        self.from_far = iter(self.back)
        self.far.send(b"first")
        first = pool.submit(next, self.from_far)
        self.number = seat.called()
        self.there = stage.relay.accept("bob", self.number, self.far, self.far.end)
        self.from_near = iter(self.there)
        assert first.result(SECONDS) == b"first"


# --- who may what -----------------------------------------------------------------


def test_bytes_go_both_ways_as_they_are(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """What either side sends comes out at the other, piece by piece."""
    seat = stage.attach("bob")
    assert seat.first == Attached("bob")
    joined = Joined(stage, seat, pool)
    for piece in (b"\0\xff", b"", bytes(100_000)):
        joined.near.send(piece)
        assert next(joined.from_near) == piece
        joined.far.send(piece)
        assert next(joined.from_far) == piece


def test_who_is_not_named_does_not_attach(stage: RelayStage) -> None:
    """A peer who may connect is not thereby one who may attach; and the log says so."""
    for stranger in ("me", "mallory", "nobody"):
        with pytest.raises(AccessDeniedError):
            stage.relay.attach(stranger)
    assert stage.relay.attached("me") == ()
    assert [line.split()[0] for line in stage.log] == ["me", "mallory", "nobody"]


def test_who_has_nothing_to_do_here_reaches_nobody(stage: RelayStage) -> None:
    """A peer who may not connect is refused before the worker hears of it."""
    seat = stage.attach("bob")
    with pytest.raises(AccessDeniedError):
        stage.relay.connect("mallory", "bob", Side(), lambda: None)
    assert stage.relay.attached("mallory") == ()
    seat.carried.cancel()
    assert list_of(seat) == []  # it was called for nothing


def list_of(seat: AttachedWorker) -> list[relay_messages.Notice]:
    """Return the notices that are left, after it has left."""
    found: list[relay_messages.Notice] = []
    with pytest.raises(TransportError):
        found.extend(seat.notices)
    return found


def test_attached_workers_are_told_to_who_may_connect(stage: RelayStage) -> None:
    """Nobody is told of themselves, and of nobody who is no longer a peer."""
    stage.attach("bob")
    stage.attach("alice")
    assert set(stage.relay.attached("me")) == {"bob", "alice"}
    assert stage.relay.attached("alice") == ("bob",)
    stage.known.remove("bob")
    assert stage.relay.attached("me") == ("alice",)


def test_anothers_number_is_worth_nothing(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """Alice, also attached, can not accept what bob was called for, nor can me."""
    seat = stage.attach("bob")
    stage.attach("alice")
    near, far, thief = Side(), Side(b"from bob"), Side(b"from alice")
    out = iter(stage.relay.connect("me", "bob", near, near.end))
    first = pool.submit(next, out)
    number = seat.called()
    texts = set()
    for who, told in (("alice", number), ("me", number), ("bob", "0" * 32)):
        with pytest.raises(AccessDeniedError) as caught:
            stage.relay.accept(who, told, thief, thief.end)
        texts.add(str(caught.value))
    assert len(texts) == 1  # whether there is such a number is not told
    assert not thief.ended.is_set()
    stage.relay.accept("bob", number, far, far.end)
    assert first.result(SECONDS) == b"from bob"


def test_a_number_holds_once(stage: RelayStage, pool: ThreadPoolExecutor) -> None:
    """The second who accepts, even bob, is refused and changes nothing."""
    joined = Joined(stage, stage.attach("bob"), pool)
    again = Side(b"again")
    with pytest.raises(AccessDeniedError):
        stage.relay.accept("bob", joined.number, again, again.end)
    joined.far.send(b"second")
    assert next(joined.from_far) == b"second"


def test_a_number_does_not_outlive_its_connection(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """What is over can't be accepted, though the worker was called for it."""
    seat = stage.attach("bob")
    near, far = Side(), Side()
    out = stage.relay.connect("me", "bob", near, near.end)
    first = pool.submit(next, iter(out))
    number = seat.called()
    out.cancel()
    with pytest.raises(TransportError):
        first.result(SECONDS)
    with pytest.raises(AccessDeniedError):
        stage.relay.accept("bob", number, far, far.end)


# --- what ends --------------------------------------------------------------------


def test_when_one_side_ends_so_does_the_other(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """Whichever it is, both calls are ended, and the number of places is as before."""
    seat = stage.attach("bob")
    for k in range(2):
        joined = Joined(stage, seat, pool)
        (joined.back, joined.there)[k].cancel()
        assert joined.near.ended.is_set()
        assert joined.far.ended.is_set()
    assert not stage.relay._links


def test_who_takes_no_bytes_holds_the_other_up(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """The relay takes a piece when the one before was taken, and keeps none."""
    joined = Joined(stage, stage.attach("bob"), pool)
    for k in range(1000):
        joined.near.send(bytes([k % 256]))
    assert next(joined.from_near) == b"\0"
    assert joined.near._chunks.qsize() == 999


def test_a_worker_that_goes_takes_its_connections_along(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """They end for the other side, and who connects then hears that it is not there."""
    seat = stage.attach("bob")
    joined = Joined(stage, seat, pool)
    seat.carried.cancel()
    assert joined.near.ended.is_set()
    with pytest.raises(TransportError, match="not attached"):
        next(iter(stage.relay.connect("me", "bob", Side(), lambda: None)))
    assert stage.log == ["bob is attached", "bob is no longer attached: it went"]


def test_the_last_who_attaches_counts(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """A call that is dead unnoticed does not keep bob out; alice's stays."""
    alice = stage.attach("alice")
    first = stage.attach("bob")
    joined = Joined(stage, first, pool)
    second = stage.attach("bob")
    assert joined.near.ended.is_set()
    with pytest.raises(TransportError, match="took its place"):
        next(first.notices)
    first.carried.cancel()  # late: it must not end the second
    Joined(stage, second, pool)
    alice.carried.cancel()
    assert list_of(alice) == []


def test_a_peer_who_is_removed_is_cut_off(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """At the next piece, whichever end it was; and when somebody looks."""
    seat = stage.attach("bob")
    for gone in ("me", "bob"):
        joined = Joined(stage, seat, pool)
        stage.known.remove(gone)
        joined.near.send(b"more")
        assert list(joined.from_near) == []
        joined.there.cancel()
        stage.known.add(gone)
    joined = Joined(stage, seat, pool)
    stage.known.remove("me")
    stage.relay.expire()
    assert joined.far.ended.is_set()
    stage.known.remove("bob")
    stage.relay.expire()
    with pytest.raises(TransportError, match="no longer a peer"):
        next(seat.notices)


def test_what_is_still_for_too_long_ends(
    stage: RelayStage, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that nothing comes through gives its place back."""
    joined = Joined(stage, stage.attach("bob"), pool)
    stage.relay.expire()
    assert not joined.near.ended.is_set()
    monkeypatch.setattr(relays, "IDLE_SECONDS", -1.0)
    stage.relay.expire()
    assert joined.near.ended.is_set()
    assert joined.far.ended.is_set()


def test_a_worker_that_does_not_accept_is_not_waited_for(
    stage: RelayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time for it the connection fails; a late number is worth nothing."""
    monkeypatch.setattr(relays, "ACCEPT_SECONDS", 0.01)
    seat = stage.attach("bob")
    out = stage.relay.connect("me", "bob", Side(), lambda: None)
    with pytest.raises(TransportError, match="does not answer"):
        next(iter(out))
    out.cancel()
    far = Side()
    with pytest.raises(AccessDeniedError):
        stage.relay.accept("bob", seat.called(), far, far.end)


def test_a_relay_that_closes_lets_all_go(
    stage: RelayStage, pool: ThreadPoolExecutor
) -> None:
    """Workers and connections end, and nobody comes in any more."""
    seat = stage.attach("bob")
    joined = Joined(stage, seat, pool)
    stage.relay.close()
    assert joined.near.ended.is_set()
    assert joined.far.ended.is_set()
    with pytest.raises(TransportError, match="stops"):
        next(seat.notices)
    with pytest.raises(TransportError, match="stops"):
        stage.relay.attach("bob")
    with pytest.raises(TransportError):
        next(iter(stage.relay.connect("me", "bob", Side(), lambda: None)))


# --- how many ---------------------------------------------------------------------


def test_one_principal_does_not_take_all_places(stage: RelayStage) -> None:
    """After so many it is refused, also if none was accepted; another is not."""
    stage.attach("bob")
    outs = [
        stage.relay.connect("me", "bob", Side(), lambda: None)
        for _ in range(CONNECTIONS_EACH)
    ]
    with pytest.raises(LimitError):
        stage.relay.connect("me", "bob", Side(), lambda: None)
    stage.relay.connect("you", "bob", Side(), lambda: None)
    outs[0].cancel()
    stage.relay.connect("me", "bob", Side(), lambda: None)


def test_places_are_numbered(stage: RelayStage) -> None:
    """However many principals there are, the relay's own threads do not run out."""
    relay = Relay(
        lambda id: True, lambda id: id,
        may_attach=lambda id: True, may_connect=lambda id: True,
    )  # fmt: skip
    for k in range(CONNECTIONS):
        relay.connect(f"client {k}", "bob", Side(), lambda: None)
    with pytest.raises(LimitError):
        relay.connect("one more", "bob", Side(), lambda: None)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"{}", b"[1]", b'{"type":"Other"}', b"\xff"]
)
def test_what_is_not_a_notice_breaks_the_protocol(text: bytes) -> None:
    """A relay that says something else is dropped, by name."""
    with pytest.raises(RemoteProtocolError):
        relay_messages.decode(text)
