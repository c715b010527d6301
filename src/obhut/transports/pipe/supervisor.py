"""The parent's hold on one fork server, and on the children that came from it.

Rules:

- Who finds a child lost ends it: no process is left behind. The parent does that
  itself; the fork server says how it ended.
- A fork server that does not answer, because it was stopped for instance, is asked
  nothing more. Its children go on: it is ended after the last of them, since they die
  with it.
- One thread waits for all ends, and closes what is left of a child. Nothing polls.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from msgspec import structs

from obhut.errors import (
    InternalError,
    SandboxError,
    TransportError,
)

from .control import (
    Begin,
    End,
    Ended,
    Fork,
    Forked,
    FromServer,
    Ready,
    Settings,
    ToServer,
    Walled,
)
from .link import Link
from .parent import ENDED, Child, ending

_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ")
_VARIABLES = {
    "OPENBLAS_NUM_THREADS": "1",  # else it starts threads when it is loaded
    "THP_MEM_ALLOC_ENABLE": "1",  # torch: fill new tensors three times as fast
}
_START_SECONDS = 60.0
_REQUEST_SECONDS = 30.0
_END_SECONDS = 10.0
_LOOK_SECONDS = 1.0
"""Seconds without an answer, after which is looked whether it was stopped."""


class Supervisor:
    """Starts one fork server and its children, and clears up behind them.

    Duty: close it.

    Args:
        settings: what holds for each child.
        lost: called with each child that ended unasked.
        command: how the fork server is started; its socket's number is added.
    """

    def __init__(
        self, settings: Settings, command: Sequence[str], lost: Callable[[Child], None]
    ) -> None:
        self._settings = settings
        self._lost = lost
        self._lock = threading.Lock()
        self._walls: frozenset[str] | None = None
        self._broken = False
        self._silent = False
        self._handles: dict[int, int] = {}  # of children, by number of the process
        ours, theirs = socket.socketpair()
        self._link: Link[FromServer] = Link(ours, FromServer, takes_files=False)
        kept = {k: os.environ[k] for k in _KEPT_VARIABLES if k in os.environ}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 # no shell, our own words
                [*command, str(theirs.fileno())],
                env=kept | _VARIABLES | {"OMP_NUM_THREADS": str(settings.threads)},
                pass_fds=[
                    theirs.fileno(),
                    *(d.fd for d in settings.datasets if d.fd is not None),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # not for the terminal's Ctrl-C
            )
        self._children: dict[int, Child] = {}  # by the socket's number
        self._epoll = select.epoll()
        self._stop, self._stopped = socket.socketpair()
        self._epoll.register(self._stopped, select.EPOLLRDHUP)
        self._watcher = threading.Thread(
            target=self._watch, name="obhut-children", daemon=True
        )
        self._watcher.start()

    @property
    def ended(self) -> bool:
        """Whether it can start no more children."""
        return self._silent or self._broken or self._process.poll() is not None

    @property
    def holds(self) -> bool:
        """Whether children that came from it are there still."""
        return bool(self._children)

    def ready(self) -> frozenset[str]:
        """Wait until it can fork; return the walls, as ``Children.ready``."""
        with self._lock:
            if self._walls is None:
                said = self._request(Begin(self._settings), seconds=_START_SECONDS)
                if isinstance(said, Walled):
                    raise SandboxError(said.wall, said.why, said.advice)
                if not isinstance(said, Ready):
                    raise InternalError("the fork server answered something else")
                self._walls = frozenset(said.walls)
            return self._walls

    def start(
        self, session: str, memory: int | None, datasets: tuple[str, ...] | None = None
    ) -> Child:
        """Fork a child, and wait until it is behind its walls.

        Args:
            session: the session's name.
            memory: bytes that it may use.
            datasets: the names of the data sets that it may use; None for all.
        """
        self.ready()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                with self._lock:
                    said = self._request(Fork(memory, datasets), theirs.fileno())
                if isinstance(said, Walled):
                    raise TransportError(f"no process for a session: {said.why}")
                if not isinstance(said, Forked):
                    raise InternalError("the fork server answered something else")
                with contextlib.suppress(
                    ProcessLookupError
                ):  # it ended with its server
                    # Nobody has waited for it yet: the number is its own.
                    self._handles[said.pid] = os.pidfd_open(said.pid)
            except BaseException:
                ours.close()
                raise
        own = structs.replace(self._settings, memory=memory).with_only(datasets)
        child = Child(session, said.pid, ours, own, self.end)
        self._children[child.fileno()] = child
        self._epoll.register(child.fileno(), select.EPOLLRDHUP)
        child.ready()
        return child

    def end(self, pid: int) -> int | None:
        """End a child; return how it ended, None if that can't be learnt.

        Then it ended with its fork server, or that does not answer.
        """
        handle = self._handles.pop(pid, None)
        if handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        try:
            with self._lock:
                said = self._request(End(pid))
        except TransportError:
            return None
        return said.code if isinstance(said, Ended) else None

    def close(self) -> None:
        """End the children and the process."""
        for child in list(self._children.values()):
            child.close()
        # Not by closing alone: a fork of this process may hold the end as well.
        self._stop.shutdown(socket.SHUT_RDWR)
        self._stop.close()
        self._watcher.join()
        with self._lock:
            self._give_up()
        self._link.close()
        self._stopped.close()
        self._epoll.close()

    def _request(
        self,
        request: ToServer,
        fd: int | None = None,
        seconds: float = _REQUEST_SECONDS,
    ) -> FromServer:
        """Ask the process something. Duty: hold the lock."""
        if self._broken or self._silent:
            raise TransportError("the fork server ended, or does not answer")
        deadline = time.monotonic() + seconds
        try:
            self._link.send(request, fd=fd, deadline=deadline)
            while not self._link.waits(_LOOK_SECONDS):
                if time.monotonic() > deadline or self._is_stopped():
                    raise TimeoutError
            return self._link.receive(deadline).control
        except TimeoutError as error:
            self._silent = True
            raise TransportError("the fork server did not answer in time") from error
        except EOFError as error:
            code = self._give_up()
            raise TransportError(
                f"the fork server ended ({ending(code)}); what it wrote to the "
                "standard error says more"
            ) from error

    def _is_stopped(self) -> bool:
        look = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, look) is not None
        except ChildProcessError:  # it ended
            return False

    def _give_up(self) -> int:
        """End the process, and so its children."""
        self._broken = True
        if self._silent:
            self._process.kill()
        # It ends its children when it sees that its control is closed.
        with contextlib.suppress(OSError):
            self._link.sock.shutdown(socket.SHUT_RDWR)
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _watch(self) -> None:
        """Notice the children's ends, until the parent stops and all have ended."""
        stopping = False
        while not stopping or self._children:
            for fd, _ in self._epoll.poll():
                self._epoll.unregister(fd)
                if fd == self._stopped.fileno():
                    stopping = True
                    continue
                self._bury(self._children.pop(fd))

    def _bury(self, child: Child) -> None:
        """Take in that a child ended."""
        try:
            child.lose(ENDED)
            child.dispose()
            if self._silent and not self._children:
                self._process.kill()  # it was kept for them
            if child.walls and child.unasked:
                self._lost(child)
        except Exception:
            # Whatever it is, the other children must still be watched.
            logging.getLogger(__name__).exception("a lost session was not cleared")
