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
- However this process ends, the folder goes: a shell waits for that, and no more.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from obhut.errors import CallError, TransportError

_LONGEST_FOLDER = 40
"""Bytes of a folder's path: a socket's may have 107, and Ray adds up to 66."""

_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns of its own default
    "RAY_DEDUP_LOGS": "0",
}
"""Of the processes that are started."""

_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

_SETTINGS = {
    "enable_metrics_collection": False,
    "preload_python_modules": ["obhut.transports.ray.actor"],
}
"""A local Ray measures nothing, and its processes load torch while it starts."""

_REMOVE = (
    'read -r line; for try in 1 2 3 4 5 6 7 8 9; do rm -rf -- "$1" 2>/dev/null; '
    '[ -e "$1" ] || exit 0; sleep 0.3; done'
)
"""What the shell does when this process is gone: Ray's own may write for a moment."""


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
        folder: its files; None if it was joined.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.holds = 0
        self.folder: Path | None = None
        self.process = os.getpid()
        self.level = logging.getLogger("ray").level
        self.terminated: Any = None  # Any: whatever handles a signal
        self.watcher: subprocess.Popen[bytes] | None = None


_lock = threading.RLock()
_running: list[_Started] = []  # one at most


def _start(cpus: int, gpus: int | None, address: str | None) -> _Started:
    """Start a local Ray, or join a cluster."""
    if address is not None and "://" in address:
        raise CallError(
            f"expected the address of a cluster's node, as 10.0.0.7:6379, got {address}"
        )
    started = _Started(address)
    with contextlib.suppress(ValueError):
        started.terminated = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {  # Any: Ray's own
        "address": address or "local",
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
    }
    if address is None:
        started.folder = _folder()
        started.watcher = subprocess.Popen(  # noqa: S603 # a text of ours
            ["/bin/sh", "-c", _REMOVE, "sh", str(started.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for others
        )
        options |= {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "_temp_dir": str(started.folder),
            "_system_config": _SETTINGS,
        }
    _running.append(started)
    try:
        with _quietly(private=address is None):
            ray.init(**options)
    except BaseException as error:
        _end(started)
        if isinstance(error, Exception):
            where = f"at {address}" if address else "on this machine"
            raise TransportError(
                f"no Ray {where}: {type(error).__name__}: {error}"
            ) from error
        raise
    return started


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def _folder() -> Path:
    """Make a folder that only this user can look into, of a short path."""
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) > _LONGEST_FOLDER - len("/obhut-12345678"):
        place = "/tmp"  # noqa: S108 # the folder in it is private, and made anew
    return Path(tempfile.mkdtemp(prefix="obhut-", dir=place))


@contextlib.contextmanager
def _quietly(*, private: bool) -> Iterator[None]:
    """Let Ray start with variables of its own, and say nothing."""
    before = dict(os.environ)
    os.environ.update(_VARIABLES)
    if private and not any(name in before for name in _AUTHENTICATION):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _end(started: _Started) -> None:
    """End what was started, and put back what was changed."""
    if started in _running:
        _running.remove(started)
    if started.process != os.getpid():
        return  # a fork of the process that has it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()
    finally:
        logging.getLogger("ray").setLevel(started.level)
        if started.terminated is not None:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, started.terminated)
        if started.folder is not None and started.watcher is not None:
            _kill(str(started.folder), spare=started.watcher.pid)
            shutil.rmtree(started.folder, ignore_errors=True)
            if started.watcher.stdin is not None:
                started.watcher.stdin.close()
            started.watcher.wait()


def _kill(folder: str, spare: int) -> None:
    """Kill what has the folder in its command: Ray's, if its start was broken off."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        with contextlib.suppress(OSError):
            if pid != spare and folder.encode() in path.read_bytes():
                os.kill(pid, signal.SIGKILL)


@atexit.register
def _end_all() -> None:
    """End what nobody has closed."""
    with _lock:
        while _running:
            _end(_running[0])
