"""The table of system calls, run through the filter that is made of it."""

import errno
import mmap
import os
import struct
import subprocess
import sys

import pytest

from obhut.transports.pipe import landlock, seccomp

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}
ALLOWED, KILLED = "allowed", "killed"
PID = 4321


def verdict(
    machine: str,
    number: int,
    *arguments: int,
    audit: int = 0,
    code: bytes = b"",
) -> str | int:
    """Run a filter as the kernel does; return what it says, or an errno."""
    code = code or seccomp.program(machine, PID)
    data = struct.pack(
        "=iIQ6Q", number, audit or AUDIT[machine], 0, *[*arguments, *[0] * 6][:6]
    )
    at, held = 0, 0
    while True:
        op, true, false, k = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        if op == 0x20:
            held = struct.unpack_from("=I", data, k)[0]
        elif op == 0x54:
            held &= k
        elif op == 0x15:
            at += true if held == k else false
        elif op == 0x35:
            at += true if held >= k else false
        else:
            assert op == 0x06
            if k == 0x7FFF0000:
                return ALLOWED
            return KILLED if k == 0x80000000 else k & 0xFFFF


machines = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


@machines
def test_unknown_is_refused(machine: str) -> None:
    """Every number that the table does not name is answered with ENOSYS."""
    column = COLUMN[machine]
    known = {row[:2][column] for row in seccomp.CALLS.values()}
    for number in range(1000):
        if number not in known:
            assert verdict(machine, number) == errno.ENOSYS
    assert verdict(machine, 0x40000000) == errno.ENOSYS  # x32


@machines
def test_a_loader_may_call_all_but_what_is_refused(machine: str) -> None:
    """Each number of the table, by any way into the kernel."""
    column = COLUMN[machine]
    refused = {row[column] for row in seccomp.REFUSED.values()}
    assert len(refused) == len(seccomp.REFUSED)
    code = seccomp.refusal(machine, seccomp.REFUSED)
    for number in range(1000):
        expected = errno.EPERM if number in refused else ALLOWED
        assert verdict(machine, number, code=code) == expected
        assert verdict(machine, number | 0x40000000, code=code) == errno.ENOSYS
        assert verdict(machine, number, audit=0x40000003, code=code) == KILLED
    fewer = seccomp.refusal(machine, {*seccomp.REFUSED} - seccomp.NETWORK_CALLS)
    socket = seccomp.REFUSED["socket"][column]
    assert verdict(machine, socket, code=fewer) == ALLOWED


@machines
def test_named_is_allowed(machine: str) -> None:
    """Every row without a rule is let through."""
    column = COLUMN[machine]
    for row in seccomp.CALLS.values():
        if row[2] is None and (number := row[:2][column]) is not None:
            assert verdict(machine, number, 2**64 - 1) == ALLOWED


@machines
def test_other_machine(machine: str) -> None:
    """A system call by another machine's table ends the process."""
    assert verdict(machine, 0, audit=0x40000003) == KILLED


@machines
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("mmap", (0, 9, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), ALLOWED),
        ("mmap", (0, 9, 3, mmap.MAP_SHARED), ALLOWED),
        ("mmap", (0, 9, 3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS), errno.EPERM),
        ("mmap", (0, 9, 3, 0x03 | mmap.MAP_ANONYMOUS), errno.EPERM),
        ("mmap", (0, 9, 3, 0x22 | 0x20000), ALLOWED),  # MAP_STACK: a thread's
        ("mmap", (0, 9, 3, 0x22 | 0x100), errno.EPERM),  # MAP_GROWSDOWN
        ("mmap", (0, 9, 3, mmap.MAP_SHARED | 0x100), errno.EPERM),
        ("openat", (3, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOWED),
        ("openat", (3, 0, os.O_WRONLY), errno.EPERM),
        ("openat", (3, 0, os.O_RDWR), errno.EPERM),
        ("openat", (3, 0, os.O_RDONLY | os.O_CREAT), errno.EPERM),
        ("clone", (0x3D0F00,), ALLOWED),
        ("clone", (17,), errno.EPERM),
        ("tgkill", (PID, 1, 6), ALLOWED),
        ("tgkill", (PID + 1, 1, 6), errno.EPERM),
        ("prctl", (15,), ALLOWED),
        ("prctl", (1,), errno.EPERM),
        ("prlimit64", (0, 1), ALLOWED),
        ("prlimit64", (1, 1), errno.EPERM),
        ("ioctl", (0, 0x5401), ALLOWED),
        ("ioctl", (0, 0x5451), ALLOWED),
        ("ioctl", (0, 0x5412), errno.EPERM),  # TIOCSTI
        ("fcntl", (0, 1), ALLOWED),
        ("fcntl", (0, 8), errno.EPERM),  # F_SETOWN
    ],
)
def test_rules(
    machine: str, name: str, arguments: tuple[int, ...], said: str | int
) -> None:
    """Rules look at the argument that they name."""
    number = seccomp.CALLS[name][:2][COLUMN[machine]]
    assert number is not None
    assert verdict(machine, number, *arguments) == said


def test_unknown_machine() -> None:
    """There is no filter for a machine without a table."""
    with pytest.raises(KeyError):
        seccomp.program("riscv64", PID)


PROBES = {
    "connect": "import socket; socket.create_connection(('127.0.0.1', 1))",
    "read": "open('/etc/passwd').read()",
    "write": "open('/tmp/obhut-was-here', 'w')",
    "run": "import os; os.posix_spawn('/bin/true', ['true'], {})",
    "signal": "import os; os.kill(os.getppid(), 0)",
}


@pytest.mark.parametrize(
    ("wall", "holds"),
    [
        ("pass", set()),
        ("seccomp.install()", {"connect", "write", "run", "signal"}),
        ("landlock.restrict([])", {"connect", "read", "write", "run", "signal"}),
        ("call('unshare', 0x50000000)", {"connect"}),
    ],
)
def test_each_wall_alone(wall: str, holds: set[str]) -> None:
    """What each wall holds by itself; the walls of a child overlap."""
    if "landlock" in wall and landlock.version() < 6:
        pytest.skip("this kernel's Landlock knows no signals")
    script = f"""
import errno, os, socket, sys
from obhut.transports.pipe import landlock, seccomp
from obhut.transports.pipe.libc import call
call("prctl", 38, 1, 0, 0, 0)
{wall}
for name, probe in {PROBES!r}.items():
    try:
        exec(probe)
    except ConnectionRefusedError:
        pass  # it went out
    except OSError as error:
        print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == holds


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 5, 6, 99])
def test_landlock_versions(version: int) -> None:
    """Each version of Landlock is asked for the rights that it knows."""
    rights, size = landlock.attributes(version)
    assert len(rights) == size
    assert size == (24 if version >= 6 else 16 if version >= 4 else 8)
