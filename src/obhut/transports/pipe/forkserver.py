"""The process that children are forked from: ``python -m …forkserver FD``.

Rules:

- It is started with an empty environment, holds no secret but the worker's data,
  runs nothing for a client and has one thread: what a child inherits is PyTorch,
  loaded and warm.
- A child has of the worker's data what its session's owner may use: it lets go of the
  rest first of all.
- It never hears a child: the pipe is the parent's. It ends a child and says how it
  ended, when the parent asks.
- When the parent is gone, so are the children and it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import structs

from obhut.errors import InternalError, SandboxError
from obhut.worker.warming import warm_up

from . import child, sandbox
from .control import (
    Begin,
    Down,
    End,
    Ended,
    Fork,
    Forked,
    FromServer,
    Ready,
    Settings,
    ToServer,
    Up,
    Walled,
)
from .link import Link

Run = Callable[[Link[Down], Settings], None]
"""What a child does behind its walls."""


def serve(control: socket.socket, run: Run) -> None:
    """Fork children for the parent, until it is gone.

    Args:
        control: whose other end is the parent's.
        run: what a child does.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    warm_up()
    settings = Settings("")
    behind = run
    mapped: child.Datasets = {}
    children: set[int] = set()
    link: Link[ToServer] = Link(control, ToServer, takes_files=True)
    gc.collect()
    gc.freeze()
    try:
        while True:
            request, _, fd = link.receive()
            match request:
                case Begin():
                    settings = request.settings
                    if settings.datasets:
                        mapped = child.map_datasets(settings)
                        behind = partial(child.main, datasets=mapped)
                    answer: FromServer = _rehearse(settings)
                case Fork():
                    try:
                        if fd is None:
                            raise OSError("no end of a pipe came along")
                        own = structs.replace(settings, memory=request.memory)
                        own = own.with_only(request.datasets)
                        pid = _fork(partial(_child, fd, own, behind, mapped))
                    except OSError as error:
                        # The others go on; whoever asked can try again.
                        answer = Walled("processes", str(error), "try again later")
                    else:
                        children.add(pid)
                        answer = Forked(pid)
                case End():
                    # One that is not there any more was ended before.
                    code = _end(request.pid) if request.pid in children else None
                    children.discard(request.pid)
                    answer = Ended(code)
            if fd is not None:
                os.close(fd)
            link.send(answer)
    except EOFError:
        return
    finally:
        for pid in children:
            _end(pid)


def _fork(body: Callable[[], None]) -> int:
    """Run ``body`` in a process of its own and return the process's id."""
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise InternalError("the fork server has more than one thread")
    server = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    # Nothing of the server's may run in a child, however it ends.
    code = 1
    with contextlib.suppress(BaseException):
        if os.getppid() == server:
            body()
            code = 0
    os._exit(code)


def _child(fd: int, settings: Settings, run: Run, mapped: child.Datasets) -> None:
    """Put up the walls, tell the parent which ones stand, serve it."""
    server = os.getppid()
    # Before files are closed, for a mapping has one, and before memory is limited.
    child.unmap_others(mapped, settings)
    link: Link[Down] = Link(
        sandbox.isolate(socket.socket(fileno=fd)), Down, takes_files=True
    )
    try:
        walls = sandbox.enter(settings, server)
    except SandboxError as error:
        link.send(Walled(error.wall, error.why, error.advice))
        return
    except OSError as error:
        link.send(Walled("walls", str(error), "see what the host allows"))
        return
    link.send(Ready(tuple(sorted(walls))))
    run(link, settings)


def _rehearse(settings: Settings) -> Ready | Walled:
    """Start a child that does nothing, to learn which walls can be had."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = _fork(partial(_child, theirs.fileno(), settings, lambda *_: None, {}))
        theirs.close()
        link: Link[Up] = Link(ours, Up, takes_files=False)
        try:
            said = link.receive().control
        except EOFError:
            said = None
        code = _end(pid)
    if isinstance(said, Ready | Walled):
        return said
    return Walled("walls", f"a child ended with {code}", "please report it")


def _end(pid: int) -> int:
    """End a child; return its exit code, or the negative number of its signal.

    One that ended before keeps its own.
    """
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _control:
        serve(_control, child.main)
