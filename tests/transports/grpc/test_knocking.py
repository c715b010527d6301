"""Who is at an address, and what is said when nobody is to be had there."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obhut.errors import AccessDeniedError, CallError, TransportError
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.knocking import knock

from .conftest import World

Listen = Callable[[bytes], str]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Start something that answers whoever connects, once, and hangs up."""
    with contextlib.ExitStack() as stack:

        def start(answer: bytes) -> str:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

            threading.Thread(target=serve, daemon=True).start()
            return f"127.0.0.1:{listener.getsockname()[1]}"

        yield start


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ask(world: World, address: str, seconds: float = 10.0) -> str:
    """Return what ``me`` is told about an address."""
    peers = world.peers("me")
    with pytest.raises((CallError, TransportError, AccessDeniedError)) as raised:
        knock(address, world.identities["me"], peers, seconds)
    return f"{type(raised.value).__name__}: {raised.value}"


def test_who_is_there_follows_from_the_key(world: World) -> None:
    """Each address tells its own worker, under the name that it has here."""
    for name in ("bob", "alice"):
        address, peers = world.address(name), world.peers("me")
        assert knock(address, world.identities["me"], peers, 10.0) == peers.find(name)


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("", "add the worker's port"),
        ("bob.example", "add the worker's port"),
        ("127.0.0.1", "add the worker's port"),
        ("bob.example:", "add the worker's port"),
        ("bob.example:https", "add the worker's port"),
        ("bob.example:70000", "such as bob.example:7000"),
        ("bob example:7000", "such as bob.example:7000"),
        ("127.0.0.1:0", "port 0"),
        ("::1", "brackets"),
        ("::1:7000", "brackets"),
        ("https://bob.example:7000", "write 'bob.example:7000' alone"),
        ("https://10.0.0.1:7000/", "write '10.0.0.1:7000' alone"),
        ("dns:///bob.example:7000", "alone"),
        ("bob.example:7000/d", "write 'bob.example:7000' alone"),
    ],
)
def test_another_form_is_told_with_what_to_write(
    world: World, address: str, advice: str
) -> None:
    """What is no ``host:port`` is never tried."""
    told = ask(world, address)
    assert told.startswith(
        f"CallError: expected an address as host:port, got {address!r}"
    )
    assert advice in told


def test_an_unknown_host_is_told(world: World) -> None:
    """A name that nobody knows; RFC 6761 keeps ``.invalid`` free."""
    told = ask(world, "no-such-host.invalid:7000")
    assert "no host is known as 'no-such-host.invalid'" in told


def test_a_port_at_which_nobody_listens_is_told(world: World) -> None:
    """At once: the machine itself says so."""
    told = ask(world, f"127.0.0.1:{free_port()}")
    assert told.startswith("TransportError: nobody listens at 127.0.0.1:")


def test_who_says_nothing_is_told(world: World) -> None:
    """A stopped worker's machine accepts connections in its place."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = ask(world, f"127.0.0.1:{silent.getsockname()[1]}", 0.2)
    assert "accepts connections and says nothing" in told


def test_another_kind_of_server_is_told(world: World, listen: Listen) -> None:
    """A web server, or any other that speaks no TLS."""
    told = ask(world, listen(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert "no worker of obhut" in told


def test_who_is_not_pinned_here_is_told_by_id(world: World, tmp_path: Path) -> None:
    """With whom it could be, so that a mistaken folder shows."""
    peers = PeerBook(tmp_path / "peers")
    for known in ("nobody", "alice"):
        with pytest.raises(TransportError, match="did both sides join") as raised:
            knock(world.address("bob"), world.identities["me"], peers, 10.0)
        text = str(raised.value)
        assert f"has the id {world.id('bob')}, which is not pinned" in text
        assert f"{tmp_path}, where there is {known};" in text
        peers.add("alice", world.identities["alice"].certificate)


def test_who_does_not_know_us_is_told(world: World) -> None:
    """Never pinned there, or removed: who knocks has the id to be asked about."""
    stranger = Identity.create()
    with pytest.raises(AccessDeniedError, match="does not know you") as raised:
        knock(world.address("bob"), stranger, world.peers("me"), 10.0)
    assert stranger.id in str(raised.value)


@pytest.mark.parametrize("variable", ["https_proxy", "http_proxy", "grpc_proxy"])
def test_a_proxy_that_is_not_there_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """With its variable, and what lets an address be reached directly; no password."""
    port = free_port()
    monkeypatch.setenv(variable, f"http://user:hunter2@127.0.0.1:{port}")
    told = ask(world, "bob.example:7000")
    assert f"nobody listens at the proxy 127.0.0.1:{port} (from {variable})" in told
    assert "no_proxy=bob.example" in told
    assert "hunter2" not in told


def test_a_proxy_that_refuses_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, listen: Listen
) -> None:
    """With its own words, as far as they are printable."""
    proxy = listen(b"HTTP/1.1 403 Forbidden \x1b[31m\r\n\r\n")
    monkeypatch.setenv("https_proxy", f"http://{proxy}")
    told = ask(world, "bob.example:7000")
    assert f"the proxy {proxy} (from https_proxy) says HTTP/1.1 403 Forbidden" in told
    assert "\x1b" not in told
