"""``obhut worker`` and ``obhut aggregator``: serve until asked to stop."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import queue
import resource
import select
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from obhut.host.configuration import WorkerConfiguration
    from obhut.transports.serving import Served

from obhut.errors import ObhutError
from obhut.host import configuration as configurations
from obhut.host.explanation import explain
from obhut.host.waiting import Waiting

from . import logs
from .telling import told

_LOG = logging.getLogger("obhut.worker")

GRACE_SECONDS = 10.0
"""How long a worker finishes what it has accepted, when it is asked to stop."""

RELOAD = signal.SIGUSR1
"""Asks a worker to read configuration and data again, wherever it was started from."""

FILES = 65_536
"""Files that a worker may have open: connections, sessions and their shared memory."""

_PROCESS_FILE = "worker.pid"


def serve(
    config: Path,
    *,
    check: bool = False,
    stop: bool = False,
    reload: bool = False,
    begin_anew: str = "",
) -> None:
    """Serve as a configuration says, until SIGTERM or Ctrl-C.

    Args:
        config: the configuration's file.
        check: only say in plain sentences what it lets happen, and whether it would
            start.
        stop: stop the worker that serves this configuration.
        reload: let it read the configuration and the data again.
        begin_anew: why an aggregator begins another ledger; empty if it does not.

    Raises:
        typer.Exit: with 1 if it can not serve, and says why.
    """
    with told(config):
        configuration = configurations.load(config)
        if check:
            _check(configuration)
            return
        process_file = Path(configuration.folder) / _PROCESS_FILE
        if stop:
            _stop(process_file)
            return
        if reload:
            _ask(process_file, RELOAD)
            typer.echo(f"{configuration.id} reads again; its log says what came of it")
            return
        logs.begin()
        _take_files()
        # Loads gRPC, which the other ways do not need.
        from obhut.transports.grpc import allocator
        from obhut.transports.serving import Served

        allocator.keep()
        asked: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, RELOAD):
            signal.signal(number, lambda number, _: asked.put(number))
        held = _hold(process_file)
        served = Served(
            configuration, file=str(config.absolute()), begin_anew=begin_anew
        )
        attaching = Waiting(
            f"waiting for {configuration.attach} to let {configuration.id} attach"
        )
        try:
            first = threading.Lock()
            if configuration.attach is not None:
                attaching.start()

            def attached() -> None:
                attaching.end()
                if not served.address and first.acquire(blocking=False):
                    through = f"serves through {configuration.attach}"
                    typer.echo(f"{configuration.id} {through}, id {served.id}")

            served.start(attached)
            if served.address:
                typer.echo(
                    f"{configuration.id} serves at {served.address}, id {served.id}"
                )
            while _reloads(asked.get()):
                _reload(config, served)
            typer.echo(f"{configuration.id} stops")
        finally:
            attaching.end()
            served.close(GRACE_SECONDS)
            process_file.unlink(missing_ok=True)
            os.close(held)


def _reloads(number: int) -> bool:
    """Tell whether a signal asks to read again, or to stop."""
    # From a terminal the one that systemctl sends is the terminal's end.
    return number == RELOAD or (number == signal.SIGHUP and not sys.stdin.isatty())


def _reload(config: Path, served: Served) -> None:
    """Read configuration and data again; what can't be taken over changes nothing."""
    try:
        served.reload(configurations.load(config))
    except ObhutError as error:
        _LOG.error("%s was not reloaded: %s", config, error)
    except Exception:
        # Whatever it is, what is served goes on.
        _LOG.exception("%s was not reloaded", config)
    else:
        _LOG.info("%s was reloaded", config)


def _check(configuration: WorkerConfiguration) -> None:
    """Say what it lets happen and what its data are, as far as it would start.

    Raises:
        ObhutError: if it would not.
    """
    from obhut.transports.grpc import checking

    from .data import described

    typer.echo(explain(configuration, datetime.now(UTC).date()))
    for sentence in checking.check(
        configuration, lambda dataset: typer.echo(f"\n{described(dataset)}\n")
    ):
        typer.echo(sentence)


def _take_files() -> None:
    """Let this process have as many open files as are good for it.

    A shell allows 1024, which strangers reach who connect and say nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _hold(process_file: Path) -> int:
    """Write this process's id, and hold the file as long as it serves.

    Returns:
        the file's descriptor.

    Raises:
        typer.Exit: with 1 if another worker serves from that folder.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        held = os.open(process_file, flags, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(held, 0)
        os.write(held, f"{os.getpid()}\n".encode())
    except OSError as error:
        why: object = error
        if error.errno == errno.EAGAIN:
            why = (
                "another worker holds it; end that one with --stop, or give this one a "
                "folder and an identity of its own"
            )
        typer.echo(f"{process_file}: {why}", err=True)
        raise typer.Exit(1) from error
    return held


def _is_held(process_file: Path) -> bool:
    """Tell whether a worker serves and holds its file."""
    with process_file.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _ask(process_file: Path, number: int) -> None:
    """Send the worker a signal.

    Raises:
        typer.Exit: with 1 if none runs.
    """
    process = _process(process_file)
    signal.pidfd_send_signal(process, number)
    os.close(process)


def _process(process_file: Path) -> int:
    """Return a descriptor of the worker's process.

    Raises:
        typer.Exit: with 1 if none runs.
    """
    try:
        # The number may be another's by now, unless the worker still holds the file.
        number = int(process_file.read_text()) if _is_held(process_file) else 0
        return os.pidfd_open(number)
    except (OSError, ValueError) as error:
        typer.echo(f"no worker runs with {process_file}", err=True)
        raise typer.Exit(1) from error


def _stop(process_file: Path) -> None:
    """Ask the worker to stop and wait until it has.

    Raises:
        typer.Exit: with 1 if none runs, or it does not stop.
    """
    process = _process(process_file)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        # A process's descriptor can be read when the process has ended.
        with Waiting("waiting for the worker to finish what it has accepted"):
            ended, _, _ = select.select([process], [], [], GRACE_SECONDS + 10)
    finally:
        os.close(process)
    if not ended:
        typer.echo("the worker was asked to stop and is still running", err=True)
        raise typer.Exit(1)
