"""The walls around an owner's loader, put up by its own process.

=============  =================================================================
wall           what it keeps in
=============  =================================================================
network        an own network namespace, empty, and no sockets (``seccomp``),
               unless the declaration opens the network
processes      an own process namespace: what it starts ends with it
system calls   a table of what may not be called: other processes' memory, signals
               to them, the system's own settings (``seccomp``)
files          reading all but the worker's secrets; writing into one folder that is
               removed afterwards is all (``landlock``)
=============  =================================================================

Rules:

- It is the owner's own code, run as the owner: the walls are for the libraries that it
  loads, for files that were made to harm, and for mistakes.
- A wall that the kernel does not have is left out and not claimed.
- Without a namespace and without the table the network is open: then nothing is run,
  unless the network was opened, or the settings say ``sandbox = "none"``.
- These hold in any case: no core dump, no new privileges, no capability, death when
  the worker dies.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import struct
from collections.abc import Iterable
from pathlib import Path

from obhut.errors import SandboxError

from . import landlock, seccomp
from .libc import call

NETWORK = "network"
PROCESSES = "processes"
SYSTEM_CALLS = "system calls"
FILES = "files"

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CLONE_NEWPID = 0x20000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PR_SET_CHILD_SUBREAPER = 36
_CAPABILITIES_VERSION = 0x20080522


def separate(network: bool) -> tuple[frozenset[str], str]:
    """Give the processes that this one starts namespaces of their own.

    Duty: call it with one thread.

    Args:
        network: whether it is left open.

    Returns:
        the walls that stand from the next process on, and why others do not.
    """
    walls, why = set(), ""
    user, group = os.getuid(), os.getgid()
    try:
        call("unshare", _CLONE_NEWUSER | (0 if network else _CLONE_NEWNET))
        _be(user, group)
        if not network:
            walls.add(NETWORK)
        call("unshare", _CLONE_NEWPID)
        walls.add(PROCESSES)
    except OSError as error:
        why = str(error)
    return frozenset(walls), why


def _be(user: int, group: int) -> None:
    """Stay who this is, in the user namespace too."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)


class _StopError(Exception):
    """The worker wants no more of it."""


def lead() -> None:
    """End in order with the worker, and when it says so.

    Duty: call it before anything is started, then ``wait``.
    """
    signal.signal(signal.SIGTERM, _stop)
    call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _stop(number: int, frame: object) -> None:
    raise _StopError


def follow() -> None:
    """Die with the process that started this one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def wait(pid: int) -> int:
    """Wait until a process ends, or the worker says so; then end all that is left.

    Returns:
        the exit code.

        Of one that a signal ended, it is 128 and the signal, as in a shell.
    """
    code = -signal.SIGTERM
    with contextlib.suppress(_StopError):
        ended = 0
        while ended != pid:
            ended, status = os.waitpid(-1, 0)
        code = os.waitstatus_to_exitcode(status)
    # The first of a namespace takes all others along, and could not name them here.
    while os.getpid() != 1:
        for child in Path("/proc/thread-self/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return code if code >= 0 else 128 - code


def enter(
    network: bool,
    secrets: Iterable[Path],
    scratch: Path,
    walls: frozenset[str],
    why: str,
) -> frozenset[str]:
    """Put up the other walls around this process, for good.

    Duty: call it with one thread.

    Args:
        network: whether it is left open.
        secrets: what may not be read.
        scratch: where may be written.
        walls: those that stand, of ``separate``.
        why: as it says.

    Returns:
        all walls that stand.

    Raises:
        SandboxError: if the network stays open unasked.
    """
    harden()
    found = {*walls}
    if landlock.version():
        landlock.restrict(
            landlock.all_but(secrets),
            [scratch, Path(os.devnull)],
            listed=[Path("/")],
            run=True,
            network=network,
        )
        found.add(FILES)
    if seccomp.available():
        calls = {*seccomp.REFUSED}
        if network:
            calls -= seccomp.NETWORK_CALLS
        if PROCESSES in walls:  # where it finds no others, it may end its own
            calls -= seccomp.SIGNAL_CALLS
        try:
            seccomp.install(seccomp.refusal(platform.machine(), sorted(calls)))
            found.add(SYSTEM_CALLS)
        except OSError as error:
            why = f"{why}; {error}"
    if not network and not found & {NETWORK, SYSTEM_CALLS}:
        raise SandboxError(
            "wall to the network",
            why or "this machine has no table of system calls",
            "allow user namespaces or seccomp, or write loader_network = true if "
            "what the loader runs can do no harm there",
        )
    return frozenset(found)


def harden() -> None:
    """Do what is possible everywhere."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("capset", struct.pack("=Ii", _CAPABILITIES_VERSION, 0), bytes(24))
    # Last: losing privileges takes it back.
    call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
