"""Which proxy of the environment leads to an address, if any does.

Rules:

- The variables are those that gRPC reads, in its order; what is decided here is told to
  gRPC, so that it goes the same way as who looks for the reason of a failure.
- An address of this machine is never reached through a proxy.
- A proxy's user and password are in no text.

Source: grpc/doc/environment_variables.md, ``http_proxy`` and ``no_proxy``.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Each names a proxy; the first that is set counts."""

EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
"""Each lists hosts that are reached directly; the first that is set counts."""

_PORT = 80


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that connects to others' ports, by HTTP's CONNECT.

    Attributes:
        variable: what names it in the environment.
        url: it, with user and password.
    """

    variable: str
    url: SplitResult

    @property
    def address(self) -> tuple[str, int]:
        """Its host and port."""
        return self.url.hostname or "", self.url.port or _PORT

    def __str__(self) -> str:
        host, port = self.address
        return f"the proxy {host}:{port} (from {self.variable})"


def proxy_to(host: str) -> Proxy | None:
    """Return the proxy through which a host is reached; None if it is directly."""
    variable = next((one for one in VARIABLES if os.environ.get(one)), None)
    if variable is None or _is_here(host) or _is_excepted(host):
        return None
    text = os.environ[variable]
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        usable = url.scheme == "http" and url.hostname and url.port != 0
    except ValueError:  # its port is none
        return None
    return Proxy(variable, url) if usable else None


def options(target: str) -> tuple[tuple[str, str | int], ...]:
    """Return the options by which a channel to ``host:port`` takes that way."""
    proxy = proxy_to(target.rpartition(":")[0].strip("[]"))
    if proxy is None:
        return (("grpc.enable_http_proxy", 0),)
    user, at, _ = proxy.url.netloc.rpartition("@")
    host, port = proxy.address
    spelt = f"[{host}]" if ":" in host else host
    return (("grpc.http_proxy", f"http://{user}{at}{spelt}:{port}"),)


def through(target: str) -> str:
    """Return what is to be said of the way to ``host:port`` when it failed."""
    proxy = proxy_to(target.rpartition(":")[0].strip("[]"))
    if proxy is None:
        return ""
    return f", through {proxy}; {advice(target)}"


def advice(target: str) -> str:
    """Return how ``host:port`` is reached without a proxy."""
    host = target.rpartition(":")[0].strip("[]")
    return f"to go there directly, set no_proxy={host}"


def _is_here(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    found = _number(host)
    return found is not None and found.is_loopback


def _is_excepted(host: str) -> bool:
    variable = next((one for one in EXCEPTIONS if os.environ.get(one)), None)
    entries = os.environ[variable].split(",") if variable is not None else []
    return any(_covers(entry.strip(), host) for entry in entries if entry.strip())


def _covers(entry: str, host: str) -> bool:
    """Tell whether an entry of the exceptions stands for a host."""
    if entry == "*":
        return True
    number = _number(host)
    if number is not None:
        try:
            return number in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return False
    return host.lower().endswith(entry.lower().removeprefix("*"))


def _number(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
