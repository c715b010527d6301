"""The walls around a child, put up by the child itself before it takes a message.

=============  =================================================================
wall           what it keeps in
=============  =================================================================
network        an own network namespace, empty, in an own user namespace
system calls   a table of what may be called (``seccomp``): no sockets, processes,
               programs, other processes' memory
files          reading Python's, torch's and obhut's files is all (``landlock``)
memory         ``RLIMIT_DATA`` and ``RLIMIT_AS``, where the settings have a limit
tasks          ``RLIMIT_NPROC``, counted in the own user namespace: a number of
               threads, and of processes where the table does not stand
=============  =================================================================

Rules:

- A wall that the kernel does not have is left out and not claimed: ``enter``
  returns those that stand.
- Without a namespace and without the table the network is open: then there is no
  child, unless the settings say ``sandbox = "none"``.
- These hold in any case: no open file but the pipe, no core dump, no new
  privileges, no capability, and death when the fork server dies.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import signal
import socket
import struct
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from obhut.errors import SandboxError

from . import landlock, seccomp
from .control import Settings
from .libc import call

NETWORK = "network"
SYSTEM_CALLS = "system calls"
FILES = "files"
MEMORY = "memory"
TASKS = "tasks"

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITIES_VERSION = 0x20080522

_OPEN_FILES = 32
_TASKS = 16  # and four for each thread: libraries have pools of their own
_COUNTED_SINCE = (5, 14)  # Linux, where a user namespace counts tasks of its own
_SLACK = 64 * 2**20
_THREAD_BYTES = 144 * 2**20  # a stack, and what malloc reserves for a thread


def isolate(sock: socket.socket) -> socket.socket:
    """Let go of all open files but one, and point the standard ones nowhere.

    Returns:
        the one, under another number.
    """
    null = os.open(os.devnull, os.O_RDWR)
    kept = os.dup(sock.detach())
    # Both may have any number below the one that they end up with.
    kept, null = _above(kept, 10), _above(null, 10)
    for standard in range(3):
        os.dup2(null, standard)
    os.dup2(kept, 3, inheritable=False)
    os.closerange(4, 2**31 - 1)
    return socket.socket(fileno=3)


def _above(fd: int, least: int) -> int:
    """Return a duplicate that has at least that number."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def enter(settings: Settings, parent: int) -> frozenset[str]:
    """Put up the walls around this process, for good.

    Duty: call it with one thread, after ``isolate``.

    Args:
        settings: what is asked for.
        parent: the process that this one must not outlive.

    Returns:
        the walls that stand.

    Raises:
        SandboxError: if the network stays open against the settings.
    """
    walls = set()
    walled = settings.sandbox == "auto"
    user = os.getuid()
    used = _used_memory()
    why = "this machine has no table of system calls"
    if walled:
        try:
            call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
            walls.add(NETWORK)
            if _limit_tasks(settings.threads) and user:
                walls.add(TASKS)  # the kernel's own root knows no such limit
        except OSError as error:
            why = str(error)
    _harden(parent)
    if walled and landlock.version():
        landlock.restrict(_READABLE)
        walls.add(FILES)
    if settings.memory is not None:
        _limit_memory(settings.memory, settings.threads, used)
        walls.add(MEMORY)
    if walled and seccomp.available():
        try:
            seccomp.install()
            walls.add(SYSTEM_CALLS)
        except OSError as error:
            why = f"{why}; {error}"
    if walled and not walls & {NETWORK, SYSTEM_CALLS}:
        raise SandboxError(
            "wall to the network",
            why,
            'allow user namespaces or seccomp, or write sandbox = "none" if nobody '
            "who opens sessions can do harm there",
        )
    return frozenset(walls)


def _harden(parent: int) -> None:
    """Do what is possible everywhere."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("capset", struct.pack("=Ii", _CAPABILITIES_VERSION, 0), bytes(24))
    # Core dumps that go to a program know no limit.
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Last: losing privileges takes it back.
    call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _limit_tasks(threads: int) -> bool:
    """Limit the tasks of this process's user namespace; tell whether it holds.

    Duty: call it inside a user namespace of its own. Elsewhere the kernel counts
    all that the user runs, other children and the worker too.
    """
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is None or (int(release[1]), int(release[2])) < _COUNTED_SINCE:
        return False
    most = _TASKS + 4 * threads
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    return True


def _limit_memory(limit: int, threads: int, used: tuple[int, int]) -> None:
    """Limit what is added to the memory in use.

    The second limit is wider: it counts what is shared with the parent, where tensors
    live and requests and answers come and go, and addresses that are only reserved.
    """
    data, addresses = used
    data += limit + _SLACK
    addresses += 6 * limit + _SLACK + threads * _THREAD_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (data, data))
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))


def _used_memory() -> tuple[int, int]:
    """Return the bytes of data and of all addresses of this process."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"VmData", "VmSize"}:
            found[name] = int(value.split()[0]) * 1024
    return found["VmData"], found["VmSize"]


def _readable() -> Iterator[Path]:
    """Yield what a child may read: code, and where random numbers come from."""
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        yield Path(sysconfig.get_path(name))
    yield Path(__file__).parents[2]  # obhut
    for package in (torch, msgspec):
        for folder in package.__path__:
            yield Path(folder)
    base = Path(sysconfig.get_config_var("installed_base") or "/usr")
    yield base / "lib"
    for place in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"):
        yield Path(place)
    for file in ("/etc/ld.so.cache", "/dev/null", "/dev/urandom"):
        yield Path(file)


_READABLE = tuple(_readable())
"""Found once, by the fork server: it takes longer than all walls together."""
