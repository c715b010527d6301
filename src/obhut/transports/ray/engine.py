"""A hold on a running Ray: it is started, or joined, and what was started is ended.

::

    engine = Engine(cpus=2)            # or Engine(address="10.0.0.7:6379")
    ...                                # actors, objects
    engine.close()                     # the last one ends what was started

Rules:

- A Ray that this process has already is used as it is, and left running.
- A local one belongs to this process: no dashboard, no telemetry, a token that nobody
  else has, its files in a private folder that goes with it.
- Nothing is printed, and no variable of the environment stays changed.
- However this process ends, what was started ends, and the folder goes.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import _raylet
from ray._private import worker

from obhut.errors import CallError, TransportError

from .remains import Remains

_LONGEST_FOLDER = 38
"""Bytes of a folder's path: a socket's may have 107, Ray adds up to 66, and 2 are the
folder's in it."""

_SECONDS = 10.0
"""The longest that a cluster may take to take a connection."""

INLINE = 1 << 20
"""Bytes of what travels with a call or its answer, and not by the object store."""

_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MALLOC_ARENA_MAX": "1",  # see ``allocator.keep``: one thread of an actor computes
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns of its own default
}
"""Of the processes that are started."""

_CONFIGURATION = {
    "enable_metrics_collection": False,
    "max_direct_call_object_size": INLINE,
}
"""Of a Ray that is started: sums of small models come with an answer."""

_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class Engine:
    """A hold on a running Ray.

    Args:
        cpus: how many actors may run at once, if one is started.
        gpus: how many devices it has for them; None for all that there are.
        address: of a cluster to join; None for the one that runs in this process, or
            else a new one on this machine.

    Raises:
        CallError: if the address is no cluster's, or another Ray runs already.
        TransportError: if it does not start, or the cluster is not reached.
    """

    def __init__(
        self, *, cpus: int, gpus: int | None = None, address: str | None = None
    ) -> None:
        self._started: _Started | None = None
        with _lock:
            if _running and ray.is_initialized():
                if address not in (None, _running[0].address):
                    raise CallError(
                        f"expected no address, or {_running[0].address or 'none'}, got "
                        f"{address}: close the simulation that runs elsewhere first"
                    )
                self._started = _running[0]
            elif not ray.is_initialized():
                self._started = _start(cpus, gpus, address)
            if self._started is not None:
                self._started.holds += 1

    @property
    def is_own(self) -> bool:
        """Whether it was started here, on this machine, and nobody else has it."""
        return self._started is not None and self._started.address is None

    def close(self) -> None:
        """Give it up; the last one that does ends what was started."""
        with _lock:
            started, self._started = self._started, None
            if started is not None:
                started.holds -= 1
                if not started.holds:
                    _end(started)


class _Started:
    """What was started, and how it was before.

    Attributes:
        address: of the cluster that was joined; None for a local Ray.
        holds: how many engines hold it.
        remains: its files, and what becomes of them; None if it was joined.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.holds = 0
        self.remains: Remains | None = None
        self.process = os.getpid()
        self.level = logging.getLogger("ray").level
        self.terminated: Any = None  # Any: whatever handles a signal


_lock = threading.RLock()
_running: list[_Started] = []  # one at most


def _start(cpus: int, gpus: int | None, address: str | None) -> _Started:
    """Start a local Ray, or join a cluster."""
    if address not in (None, "auto"):
        _check_answers(address)
    started = _Started(address)
    with contextlib.suppress(ValueError):
        started.terminated = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {  # Any: Ray's own
        "address": address or "local",
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
    }
    if address is None:
        started.remains = Remains(_folder())
        options |= {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "_temp_dir": str(_open_to_all(started.remains.folder)),
            "_system_config": _CONFIGURATION,
        }
    _running.append(started)
    try:
        with _quietly(private=address is None):
            ray.init(**options)
        _print_errors(False)
    except BaseException as error:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # processes that are still there
            traceback.clear_frames(error.__traceback__)
            _end(started, broken=True)
        if isinstance(error, Exception):
            where = f"at {address}" if address else "on this machine"
            raise TransportError(
                f"no Ray {where}: {type(error).__name__}: {error}"
            ) from error
        raise
    return started


def _check_answers(address: str) -> None:
    """Check that somebody is there: Ray tries for minutes, and prints it.

    Raises:
        CallError: if it is no address.
        TransportError: if nobody answers.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise CallError(
            f"expected the address of a cluster's node, as 10.0.0.7:6379, got {address}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise TransportError(f"no Ray at {address}: {error}") from error


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def _folder() -> Path:
    """Make a folder that only this user can look into, of a short path."""
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) > _LONGEST_FOLDER - len("/obhut-12345678"):
        place = "/tmp"  # noqa: S108 # the folder in it is private, and made anew
    return Path(tempfile.mkdtemp(prefix="obhut-", dir=place))


def _open_to_all(private: Path) -> Path:
    """Return where Ray may have its folder, which it lets everybody into."""
    return private / "r"


@contextlib.contextmanager
def _quietly(*, private: bool) -> Iterator[None]:
    """Let Ray start with variables of its own, and say nothing."""
    before = dict(os.environ)
    os.environ.update(_VARIABLES)
    if private and not any(name in before for name in _AUTHENTICATION):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _forget_token()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _print_errors(wanted: bool) -> None:
    """Let Ray print what goes wrong in its processes, or not: it is raised anyway.

    No setting of Ray's does it.
    """
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = wanted


def _forget_token() -> None:
    """Let Ray look for its token anew: it keeps the one that it has found."""
    loader = getattr(_raylet, "AuthenticationTokenLoader", None)
    if loader is not None:
        loader.instance().reset_cache()


def _end(started: _Started, *, broken: bool = False) -> None:
    """End what was started, and put back what was changed.

    Args:
        started: what was started.
        broken: whether the start was broken off, so that Ray does not know of all.
    """
    if started in _running:
        _running.remove(started)
    if started.process != os.getpid():
        return  # a fork of the process that has it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()
    finally:
        _print_errors(True)
        logging.getLogger("ray").setLevel(started.level)
        if started.terminated is not None:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, started.terminated)
        if started.remains is not None:
            _forget_token()
            started.remains.remove(kill=broken)


@atexit.register
def _end_all() -> None:
    """End what nobody has closed."""
    with _lock:
        while _running:
            _end(_running[0])
