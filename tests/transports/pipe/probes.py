"""A fork server whose children do what a test asks, as exploited ones would.

A message's sender names the probe, its header holds the argument, the answer's
header what came of it. Probes that end in ``_link`` speak for themselves.
"""

# ruff: noqa: D103 # a probe is what its name says

import ctypes
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from obhut.transports.pipe import forkserver
from obhut.transports.pipe.control import Handle, Handled, Settings, Sizes
from obhut.transports.pipe.link import Link, Received


def echo(argument: str) -> str:
    return argument


def connect(argument: str) -> str:
    with socket.create_connection(("127.0.0.1", int(argument)), timeout=5):
        return "connected"


def bind(argument: str) -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return "bound"


def unix(argument: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(argument)
        return "connected"


def read(argument: str) -> str:
    return Path(argument).read_bytes().decode(errors="replace")


def write(argument: str) -> str:
    Path(argument).write_text("it was here")
    return "written"


def listing(argument: str) -> str:
    return " ".join(os.listdir(argument))


def program(argument: str) -> str:
    return subprocess.check_output(["/bin/echo", "ran"], text=True)


def fork(argument: str) -> str:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return "forked"


def fork_raw(argument: str) -> str:
    """Try each system call that makes a process, with what glibc would not send."""
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = {"x86_64": (57, 58, 56, 435), "aarch64": (220, 435)}[os.uname().machine]
    for number in numbers:
        arguments = (ctypes.create_string_buffer(64), 64) if number == 435 else (17, 0)
        pid = libc.syscall(number, *arguments, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid > 0:
            return f"{number} made a process"
    return "refused: none of them"


def crowd(argument: str) -> str:
    """Make so many threads that do nothing; say how many there are."""
    threading.stack_size(2**15)
    for number in range(int(argument)):
        waiting = threading.Thread(target=lambda: select.poll().poll(), daemon=True)
        try:
            waiting.start()
        except RuntimeError:
            return str(number)
    return argument


def burn(argument: str) -> str:
    end = time.process_time() + float(argument)
    while time.process_time() < end:
        pass
    return "burnt"


def burn_on(argument: str) -> str:
    threading.Thread(target=burn, args=("1000",), daemon=True).start()
    return "burning"


def signalled(argument: str) -> str:
    os.kill(int(argument), 0)
    return "reached"


def memory_of(argument: str) -> str:
    """Read another process's memory at an address of this process's own libc."""
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    libc = ctypes.CDLL(None, use_errno=True)
    pid, address = map(int, argument.split())
    remote = (ctypes.c_void_p * 2)(address, 8)
    if libc.process_vm_readv(pid, vector, 1, remote, 1, 0) != 8:
        raise OSError(ctypes.get_errno(), "not read")
    return buffer.raw.hex()


def shared(argument: str) -> str:
    with mmap.mmap(-1, int(argument)):
        return "mapped"


def memfd(argument: str) -> str:
    os.ftruncate(os.memfd_create("x"), int(argument))
    return "made"


def tensor(argument: str) -> str:
    return str(torch.ones(int(argument) // 4).numel())


def private(argument: str) -> str:
    return str(len(bytearray(int(argument))))


def growsdown(argument: str) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_long] * 4
    found = libc.mmap(None, int(argument), 3, mmap.MAP_PRIVATE | 0x20 | 0x100, -1, 0)
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "not mapped")
    return "mapped"


def limits_raised(argument: str) -> str:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))
    return "raised"


def environment(argument: str) -> str:
    return repr(dict(os.environ)) + Path("/proc/self/environ").read_text()


def files(argument: str) -> str:
    found = []
    for fd in range(4096):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return repr(found)


def standard(argument: str) -> str:
    null = os.stat("/dev/null")
    return repr([os.path.samestat(os.fstat(fd), null) for fd in range(3)])


def modules(argument: str) -> str:
    return " ".join(sorted(sys.modules))


def capabilities(argument: str) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    # Asked before the walls are up it would need no own file.
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "no capget")
    return repr(list(data))


def threads(argument: str) -> str:
    torch.set_num_threads(2)
    return str(torch.rand(2000, 2000).mm(torch.rand(2000, 2000)).sum().isfinite())


def work(argument: str) -> str:
    """Do what operators do that load, reserve or look something up."""
    x = torch.rand(8, 3, 32, 32, requires_grad=True)
    torch.nn.Conv2d(3, 4, 3)(x).relu().mean().backward()
    torch.linalg.svd(torch.rand(20, 20))
    torch.fft.fft(torch.rand(64))
    torch.rand(100_000).sort()
    torch.seed()
    torch.rand(2, 2).to(torch.bfloat16) @ torch.rand(2, 2).to(torch.bfloat16)
    list(torch.nn.LSTM(3, 4)(torch.rand(2, 2, 3)))
    torch.distributions.Gamma(torch.ones(2), torch.ones(2)).sample()
    assert x.grad is not None
    import colorsys  # a module that nobody has loaded

    return "done" + colorsys.__name__[:0]


FILES: list[int] = []
"""What came along with messages."""


def files_seen(argument: str) -> str:
    """Say which files came, and their first bytes."""
    return " ".join(f"{os.fstat(f).st_ino}:{os.pread(f, 1, 0)[0]}" for f in FILES)


def change_file(argument: str) -> str:
    """Try to change the last file that came, a line for each attempt."""
    fd, size = FILES[-1], 2**20
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_long] * 4
    libc.madvise.argtypes = libc.mprotect.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
    ]

    def mapped(access: int) -> int:
        found = libc.mmap(None, size, access, mmap.MAP_SHARED, fd, 0)
        if found == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "not mapped")
        return found

    def checked(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "not done")

    name = f"/proc/self/fd/{fd}"
    attempts: dict[str, Callable[[], object]] = {
        "pwrite": lambda: os.pwrite(fd, b"x", 0),
        "ftruncate": lambda: os.ftruncate(fd, 0),
        "fallocate": lambda: os.posix_fallocate(fd, 0, 2**30),
        "reopen": lambda: os.open(name, os.O_RDWR),
        "truncate": lambda: os.truncate(name, 0),
        "link": lambda: os.link(name, f"/var/tmp/{os.getpid()}", follow_symlinks=True),
        "map": lambda: mapped(3),
        "protect": lambda: checked(libc.mprotect(mapped(1), size, 3)),
        "punch": lambda: checked(libc.madvise(mapped(1), size, mmap.MADV_REMOVE)),
    }
    lines = []
    for what, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            lines.append(f"{what}=refused: {error.errno}")
        else:
            lines.append(f"{what}=done")
    return "\n".join(lines)


def abort(argument: str) -> str:
    os.abort()


def segfault(argument: str) -> str:
    return repr(ctypes.string_at(0))


def leave(argument: str) -> str:
    os._exit(7)


def hang(argument: str) -> str:
    select.poll().poll()
    return "never"


def ignore_signals(argument: str) -> str:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    return "ignored"


def die_with_nobody(argument: str) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(1, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "not changed")
    return "changed"


def drip_link(link: Link) -> None:
    """Announce a message, then send a byte whenever there is room, for ever."""
    link.sock.setblocking(True)
    link.sock.sendall((2**10).to_bytes(4, sys.byteorder) * 2)
    while True:
        link.sock.sendall(b"x")
        select.poll().poll(20)


def deaf_link(link: Link) -> None:
    """Answer, and never read again."""
    link.send(Handled(Sizes(0), (), False))
    hang("")


def answer(link: Link, received: Received) -> None:
    ask = received.control
    assert isinstance(ask, Handle)
    if received.fd is not None:
        FILES.append(received.fd)
    probe: Callable[[str], str] = globals()[ask.sender]
    try:
        said = probe(bytes(received.body[: ask.part.header]).decode())
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        said = f"refused: {type(error).__name__} {error}"
    link.send(Handled(Sizes(len(said.encode())), (), False), [said.encode()])


def run(link: Link, settings: Settings) -> None:
    while True:
        received = link.receive()
        name = received.control.sender
        if name.endswith("_link"):
            globals()[name](link)
        else:
            answer(link, received)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        forkserver.serve(control, run)
