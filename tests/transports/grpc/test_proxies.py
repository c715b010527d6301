"""Which proxy of the environment leads to an address."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import torch

import obhut
from obhut.client.network import connect
from obhut.transports.grpc import proxies

from .conftest import World


class Gateway:
    """A proxy that connects everybody to one place, whatever they ask for.

    Attributes:
        asked: what it was asked for, in order.
    """

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = host, int(port)
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += near.recv(1)
            self.asked.append(head.decode())
            far = socket.create_connection(self._to)
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for source, sink in ((near, far), (far, near)):
                threading.Thread(
                    target=self._pump, args=(source, sink), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        source.close()


@pytest.fixture
def gateway(world: World) -> Iterator[Gateway]:
    """A proxy that leads to bob."""
    gateway = Gateway(world.address("bob"))
    yield gateway
    gateway.close()


def test_a_worker_is_reached_through_a_proxy(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What passes bytes on takes no part in the TLS; name and password are sent."""
    monkeypatch.setenv("https_proxy", f"http://user:pass@{gateway.address}")
    with connect("bob.example:7000", folder=world.root / "me") as net:
        assert obhut.send(torch.ones(2), net["bob"]).sum().item() == 2.0
    assert len(gateway.asked) >= 3  # who is there, what there is, and the session
    token = base64.b64encode(b"user:pass").decode()
    for head in gateway.asked:
        assert head.startswith("CONNECT bob.example:7000 HTTP/1.")
        assert f"Basic {token}" in head


def test_this_machine_is_never_reached_through_one(
    world: World, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy elsewhere would mean its own machine by ``localhost``."""
    monkeypatch.setenv("https_proxy", f"http://{gateway.address}")
    port = world.address("bob").rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        with connect(f"{host}:{port}", folder=world.root / "me") as net:
            assert obhut.send(torch.ones(1), net["bob"]).item() == 1.0
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("environment", "host", "expected"),
    [
        ({}, "bob.example", None),
        ({"https_proxy": "http://p:1"}, "bob.example", ("https_proxy", "p", 1)),
        ({"https_proxy": "p:1"}, "bob.example", ("https_proxy", "p", 1)),
        ({"https_proxy": "http://p"}, "10.0.0.1", ("https_proxy", "p", 80)),
        ({"http_proxy": "http://[::1]:1"}, "10.0.0.1", ("http_proxy", "::1", 1)),
        (
            {"grpc_proxy": "http://g:1", "https_proxy": "http://p:1"},
            "bob.example",
            ("grpc_proxy", "g", 1),
        ),
        ({"HTTPS_PROXY": "http://p:1"}, "bob.example", None),
        ({"https_proxy": "socks5://p:1"}, "bob.example", None),
        ({"https_proxy": "http://p:x"}, "bob.example", None),
        ({"https_proxy": "http://p:1"}, "127.9.9.9", None),
        ({"https_proxy": "http://p:1"}, "::1", None),
        ({"https_proxy": "http://p:1"}, "db.localhost", None),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, "bob.example", None),
        (
            {"https_proxy": "http://p:1", "no_proxy": "a.b, .EXAMPLE"},
            "bob.example",
            None,
        ),
        ({"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "10.1.2.3", None),
        ({"https_proxy": "http://p:1", "no_proxy": "10.1.2.3"}, "10.1.2.3", None),
        (
            {"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,"},
            "11.1.2.3",
            ("https_proxy", "p", 1),
        ),
        (
            {
                "https_proxy": "http://p:1",
                "no_proxy": "x",
                "no_grpc_proxy": "bob.example",
            },
            "bob.example",
            None,
        ),
    ],
)
def test_the_variables_are_those_of_grpc(
    environment: dict[str, str],
    host: str,
    expected: tuple[str, str, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first that is set names the proxy; exceptions are suffixes or networks."""
    for name in (*proxies.VARIABLES, *proxies.EXCEPTIONS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = proxies.proxy_to(host)
    assert (found and (found.variable, *found.address)) == expected
