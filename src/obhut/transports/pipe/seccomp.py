"""Which system calls a child may make: a table, and the filter made of it.

Rules:

- What the table does not name is answered with ``ENOSYS``. Nothing in it opens a
  connection, starts a program or a process, or makes memory that the limits on
  memory do not count.
- An owner's loader, which runs any library there is, has another: a table of what it
  may not call (``REFUSED``), answered with ``EPERM``.
- The filter is built before it is installed, and is never taken off.

Source: seccomp(2), linux/filter.h, and the kernel's system call tables.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from .libc import call

_PR_SET_NAME = 15
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CLONE_THREAD = 0x10000
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100
_MAP = _MAP_SHARED | _MAP_ANONYMOUS | _MAP_GROWSDOWN
_O_CHANGES = (
    os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0x400000  # O_TMPFILE
)
_IOCTLS = (
    0x5401,  # TCGETS: Python asks whether a file that it opens is a terminal
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
)
_FCNTLS = (
    fcntl.F_DUPFD,
    fcntl.F_GETFD,
    fcntl.F_SETFD,
    fcntl.F_GETFL,
    fcntl.F_SETFL,
    fcntl.F_DUPFD_CLOEXEC,
)


class Condition(NamedTuple):
    """When a system call is let through, by its argument's lower 32 bits.

    Attributes:
        argument: which argument.
        mask: the bits that are looked at.
        values: what they must be; the process's own id stands for -1.
    """

    argument: int
    mask: int
    values: tuple[int, ...]


_ALL = 0xFFFFFFFF
_OWN = -1

CALLS: Mapping[str, tuple[int | None, int | None, Condition | None]] = {
    # name: number on x86_64, number on aarch64, rule. The frequent ones come first.
    "futex": (202, 98, None),
    "poll": (7, None, None),
    "ppoll": (271, 73, None),
    "recvmsg": (47, 212, None),
    "sendmsg": (46, 211, None),
    "pwrite64": (18, 68, None),
    # Neither shared and anonymous, nor growing: later pages of that go uncounted.
    "mmap": (9, 222, Condition(3, _MAP, (0, _MAP_SHARED, _MAP_ANONYMOUS))),
    "munmap": (11, 215, None),
    "madvise": (28, 233, None),
    "mprotect": (10, 226, None),
    "mremap": (25, 216, None),
    "brk": (12, 214, None),
    "close": (3, 57, None),
    "read": (0, 63, None),
    "write": (1, 64, None),
    "pread64": (17, 67, None),
    "readv": (19, 65, None),
    "writev": (20, 66, None),
    "recvfrom": (45, 207, None),
    "sendto": (44, 206, None),
    "lseek": (8, 62, None),
    "sched_yield": (24, 124, None),
    "openat": (257, 56, Condition(2, _O_CHANGES, (os.O_RDONLY,))),
    "fstat": (5, 80, None),
    "stat": (4, None, None),
    "lstat": (6, None, None),
    "newfstatat": (262, 79, None),
    "statx": (332, 291, None),
    "access": (21, None, None),
    "faccessat": (269, 48, None),
    "faccessat2": (439, 439, None),
    "readlink": (89, None, None),
    "readlinkat": (267, 78, None),
    "getdents64": (217, 61, None),
    "getcwd": (79, 17, None),
    # Not F_SETOWN, by which the kernel sends signals to other processes.
    "fcntl": (72, 25, Condition(1, _ALL, _FCNTLS)),
    "ioctl": (16, 29, Condition(1, _ALL, _IOCTLS)),
    # Threads, and no other processes. glibc falls back from clone3, whose flags a
    # filter can not see.
    "clone": (56, 220, Condition(0, _CLONE_THREAD, (_CLONE_THREAD,))),
    "set_robust_list": (273, 99, None),
    "rseq": (334, 293, None),
    "membarrier": (324, 283, None),
    "prctl": (157, 167, Condition(0, _ALL, (_PR_SET_NAME,))),
    "arch_prctl": (158, None, None),
    "sched_getaffinity": (204, 123, None),
    "sched_getparam": (143, 121, None),
    "sched_getscheduler": (145, 120, None),
    "getcpu": (309, 168, None),
    # abort() sends itself a signal; nobody else may get one.
    "tgkill": (234, 131, Condition(0, _ALL, (_OWN,))),
    "rt_sigaction": (13, 134, None),
    "rt_sigprocmask": (14, 135, None),
    "rt_sigreturn": (15, 139, None),
    "sigaltstack": (131, 132, None),
    "restart_syscall": (219, 128, None),
    "getpid": (39, 172, None),
    "getppid": (110, 173, None),
    "gettid": (186, 178, None),
    "getuid": (102, 174, None),
    "geteuid": (107, 175, None),
    "getgid": (104, 176, None),
    "getegid": (108, 177, None),
    "getrandom": (318, 278, None),
    "clock_gettime": (228, 113, None),
    "clock_getres": (229, 114, None),
    "clock_nanosleep": (230, 115, None),
    "nanosleep": (35, 101, None),
    "gettimeofday": (96, 169, None),
    "time": (201, None, None),
    "times": (100, 153, None),
    "getrusage": (98, 165, None),
    # Its own limits only, and those can not be raised again.
    "prlimit64": (302, 261, Condition(0, _ALL, (0,))),
    "sysinfo": (99, 179, None),
    "uname": (63, 160, None),
    "exit": (60, 93, None),
    "exit_group": (231, 94, None),
}
"""The system calls that an operator on a CPU, Python and the pipe need."""

REFUSED: Mapping[str, tuple[int, int]] = {
    # name: number on x86_64, number on aarch64.
    "socket": (41, 198),
    "io_uring_setup": (425, 425),  # which makes sockets, too
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
}
"""What a loader may not call: connections, other processes, the system's own walls."""

NETWORK_CALLS = frozenset({"socket", "io_uring_setup"})
SIGNAL_CALLS = frozenset(
    {"kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"}
)

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_X32 = 0x40000000
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16


def program(machine: str, pid: int) -> bytes:
    """Return the filter for a machine, as BPF instructions.

    Args:
        machine: as ``platform.machine`` names it.
        pid: the process that it is for.

    Raises:
        KeyError: if there is no table for the machine.
    """
    column, audit = _MACHINES[machine]
    code = [
        _instruction(_LOAD, _MACHINE_AT),
        _instruction(_EQUAL, audit, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_AT),
    ]
    for row in CALLS.values():
        number, rule = row[:2][column], row[2]
        if number is None:
            continue
        arm = [_instruction(_RETURN, _ALLOW)] if rule is None else [*_arm(rule, pid)]
        code += [_instruction(_EQUAL, number, 0, len(arm)), *arm]
    code.append(_instruction(_RETURN, _REFUSE | errno.ENOSYS))
    return b"".join(code)


def refusal(machine: str, calls: Iterable[str]) -> bytes:
    """Return the filter that refuses some calls, as BPF instructions.

    Args:
        machine: as ``platform.machine`` names it.
        calls: names of ``REFUSED``.

    Raises:
        KeyError: if there is no table for the machine.
    """
    column, audit = _MACHINES[machine]
    code = [
        _instruction(_LOAD, _MACHINE_AT),
        _instruction(_EQUAL, audit, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_AT),
        # The same calls by other numbers, of programs for x32.
        _instruction(_AT_LEAST, _X32, 0, 1),
        _instruction(_RETURN, _REFUSE | errno.ENOSYS),
    ]
    for name in calls:
        code += [
            _instruction(_EQUAL, REFUSED[name][column], 0, 1),
            _instruction(_RETURN, _REFUSE | errno.EPERM),
        ]
    code.append(_instruction(_RETURN, _ALLOW))
    return b"".join(code)


def _arm(rule: Condition, pid: int) -> Iterator[bytes]:
    """Yield what decides about a system call that has a rule."""
    yield _instruction(_LOAD, _ARGUMENTS_AT + 8 * rule.argument)
    yield _instruction(_AND, rule.mask)
    for i, value in enumerate(rule.values):
        # To the last instruction, past the other values and the one before it.
        found = len(rule.values) - i
        yield _instruction(_EQUAL, pid if value == _OWN else value, found, 0)
    yield _instruction(_RETURN, _REFUSE | errno.EPERM)
    yield _instruction(_RETURN, _ALLOW)


def _instruction(code: int, k: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, true, false, k)


def available() -> bool:
    """Tell whether there is a table for this machine."""
    return platform.machine() in _MACHINES


def install(code: bytes | None = None) -> None:
    """Hold this process to a filter, for good.

    Duty: call it with one thread, after ``PR_SET_NO_NEW_PRIVS``.

    Args:
        code: the filter; by default the one of ``CALLS``.

    Raises:
        OSError: if the kernel has no such filters.
    """
    if code is None:
        code = program(platform.machine(), os.getpid())
    memory = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
    call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)
