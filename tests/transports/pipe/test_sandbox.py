"""The walls around a child, tried from inside, with the sandbox on and off."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obhut.errors import SessionLostError
from obhut.transports.pipe.children import Children
from obhut.transports.pipe.control import Settings
from obhut.transports.pipe.parent import Child

Start = Callable[[str], Child]
Ask = Callable[..., str]
SECRET = "a-secret-of-the-parent"


def both(start: Start, ask: Ask, probe: str, argument: str = "") -> tuple[str, str]:
    """Return what a probe says behind the walls, and with the sandbox off."""
    return (
        ask(start("walled"), probe, argument),
        ask(start("unwalled"), probe, argument),
    )


def test_all_walls_stand(children: Children, start: Start) -> None:
    """Here all walls can be had, and each child says that it has them."""
    walls = frozenset({"network", "system calls", "files", "memory"})
    if os.getuid():  # the system's root may have any number of tasks
        walls |= {"tasks"}
    assert children.ready() == walls
    assert start("children").walls == walls
    assert start("unwalled").walls == {"memory"}


def test_connect(start: Start, ask: Ask) -> None:
    """A child can't open a TCP connection, to the parent's machine or elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        inside, outside = both(start, ask, "connect", port)
    assert inside.startswith("refused")
    assert outside == "connected"


def test_bind(start: Start, ask: Ask) -> None:
    """A child can't listen."""
    inside, outside = both(start, ask, "bind")
    assert inside.startswith("refused")
    assert outside == "bound"


def test_unix_socket(tmp_path: Path, start: Start, ask: Ask) -> None:
    """A child can't reach a service through its socket in the file system."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        inside, outside = both(start, ask, "unix", str(tmp_path / "s"))
    assert inside.startswith("refused")
    assert outside == "connected"


def test_read(tmp_path: Path, start: Start, ask: Ask) -> None:
    """A child can't read a file of its owner's, nor list a folder."""
    (tmp_path / "data.csv").write_text("private")
    inside, outside = both(start, ask, "read", str(tmp_path / "data.csv"))
    assert inside.startswith("refused: PermissionError")
    assert outside == "private"
    inside, outside = both(start, ask, "listing", str(tmp_path))
    assert inside.startswith("refused: PermissionError")
    assert outside == "data.csv"


def test_read_parent(start: Start, ask: Ask) -> None:
    """A child can't read the parent's environment through /proc."""
    inside, outside = both(start, ask, "read", f"/proc/{os.getpid()}/environ")
    assert inside.startswith("refused")
    assert "PATH" in outside or "refused" in outside  # root without capabilities


def test_write(tmp_path: Path, start: Start, ask: Ask) -> None:
    """A child can't write a file, not even a new one in a folder for all."""
    place = tmp_path / "new"
    assert ask(start("walled"), "write", str(place)).startswith("refused")
    assert not place.exists()
    assert ask(start("unwalled"), "write", str(place)) == "written"


@pytest.mark.parametrize(("probe", "open_"), [("program", "ran\n"), ("fork", "forked")])
def test_processes(start: Start, ask: Ask, probe: str, open_: str) -> None:
    """A child can't start a program or a process."""
    inside, outside = both(start, ask, probe)
    assert inside.startswith("refused")
    assert outside == open_


def test_no_call_makes_a_process(start: Start, ask: Ask) -> None:
    """No fork bomb: not by any system call that makes one, whatever glibc uses."""
    inside, outside = both(start, ask, "fork_raw")
    assert inside == "refused: none of them"
    assert outside.endswith("made a process")


def test_tasks_are_limited(ask: Ask) -> None:
    """No crowd of threads: 16, and four for each that may compute, are all there are.

    The walls stand in a user namespace, where nothing but the child counts: another
    child has as many, and threads outside make no difference.
    """
    command = (sys.executable, str(Path(__file__).with_name("plain_user.py")))
    settings = Settings("bob", memory=2**30, threads=2)
    with Children(settings, command=command) as plain:
        assert "tasks" in plain.ready()
        for _ in range(2):
            child = plain.start("s")
            assert ask(child, "crowd", "100") == "23"  # beside the first
            assert ask(child, "echo", "still here") == "still here"


def test_a_container_without_namespaces(ask: Ask) -> None:
    """The table of system calls, files and memory hold alone; the network is closed."""
    command = (sys.executable, str(Path(__file__).with_name("container_host.py")))
    with (
        Children(Settings("bob", memory=2**30), command=command) as children,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        assert children.ready() == {"system calls", "files", "memory"}
        port = str(server.getsockname()[1])
        child = children.start("s")
        assert ask(child, "connect", port).startswith("refused")
        assert ask(child, "fork_raw") == "refused: none of them"
        assert ask(child, "work") == "done"


def test_a_crowd_needs_no_wall_to_be_small(start: Start, ask: Ask) -> None:
    """Without the walls the same attack succeeds."""
    assert ask(start("unwalled"), "crowd", "100") == "100"


def test_signal(start: Start, ask: Ask) -> None:
    """A child can't signal the parent."""
    inside, outside = both(start, ask, "signalled", str(os.getpid()))
    assert inside.startswith("refused")
    assert outside == "reached"


def test_memory_of_others(start: Start, ask: Ask) -> None:
    """A child can't read another child's memory."""
    victim = start("walled")
    attacker = start("walled")
    said = ask(attacker, "memory_of", f"{victim.pid} {id(int)}")
    assert said.startswith("refused: OSError [Errno 38]")


def test_outlive(start: Start, ask: Ask) -> None:
    """A child can't arrange to outlive the fork server."""
    inside, outside = both(start, ask, "die_with_nobody")
    assert inside.startswith("refused")
    assert outside == "changed"


@pytest.mark.parametrize("probe", ["shared", "memfd"])
def test_uncounted_memory(start: Start, ask: Ask, probe: str) -> None:
    """A child can't make memory that its limit does not count."""
    inside, outside = both(start, ask, probe, str(2**20))
    assert inside.startswith("refused")
    assert outside in {"mapped", "made"}


def test_memory_that_grows_by_itself(start: Start, ask: Ask) -> None:
    """A mapping that grows down is refused, whatever its size is at first."""
    child = start("walled")
    for size in (4096, 10 * 2**30):
        assert ask(child, "growsdown", str(size)).startswith("refused")
    assert ask(start("unwalled"), "growsdown", "4096") == "mapped"


@pytest.mark.parametrize("probe", ["tensor", "private"])
def test_memory_limit(start: Start, ask: Ask, probe: str) -> None:
    """A limit of 1 GiB refuses 10 GiB, leaves half of it, and the child goes on."""
    child = start("walled")
    assert ask(child, probe, str(10 * 2**30)).startswith("refused")
    assert not ask(child, probe, str(2**29)).startswith("refused")
    assert ask(child, "echo", "still here") == "still here"


def test_limits_stay(start: Start, ask: Ask) -> None:
    """A child can't raise its own limit, even where it began as root."""
    for source in ("walled", "unwalled"):
        assert ask(start(source), "limits_raised").startswith("refused")


def test_environment(start: Start, ask: Ask) -> None:
    """A child inherits no variable but the few that are named."""
    said = ask(start("unwalled"), "environment")
    assert "OPENBLAS_NUM_THREADS" in said
    assert SECRET not in said
    assert "HOME" not in said


def test_files_are_closed(start: Start, ask: Ask) -> None:
    """A child has its pipe open and nothing else that leads anywhere."""
    for source in ("walled", "unwalled"):
        child = start(source)
        assert ask(child, "files") == "[0, 1, 2, 3]"
        assert ask(child, "standard") == "[True, True, True]"


def test_capabilities(start: Start, ask: Ask) -> None:
    """A child has no capability, even where the worker runs as root."""
    assert ask(start("unwalled"), "capabilities") == repr([0] * 6)


def test_no_grpc(start: Start, ask: Ask) -> None:
    """Neither the fork server nor a child has loaded gRPC or a client."""
    loaded = ask(start("walled"), "modules").split()
    assert "torch" in loaded
    assert not {"grpc", "obhut.client", "cryptography"} & set(loaded)


def test_work(start: Start, ask: Ask) -> None:
    """Convolutions, decompositions, random numbers and late imports go on working."""
    assert ask(start("walled"), "work") == "done"


def test_threads(start: Start, ask: Ask) -> None:
    """An operator may use threads behind the walls."""
    assert ask(start("walled"), "threads") == "tensor(True)"


def test_parent_reads_on(start: Start, ask: Ask) -> None:
    """A child that ends behind its walls says how, as any other does."""
    with pytest.raises(SessionLostError, match="SIGSEGV"):
        ask(start("walled"), "segfault")
