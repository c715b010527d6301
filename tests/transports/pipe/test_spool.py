"""Large tensors that wait on a disk, and children that try to change them there."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from obhut.errors import LimitError
from obhut.host.unnamed import named_once, unnamed
from obhut.protocol import codec
from obhut.protocol.messages import PROTOCOL_VERSION as PROTOCOL
from obhut.protocol.messages import Batch, Fetch, Open, Put, TensorData
from obhut.transports.pipe.children import FORK_SERVER, Children
from obhut.transports.pipe.control import Settings
from obhut.transports.pipe.mappings import Mappings
from obhut.transports.pipe.parent import Child, InSegment
from obhut.transports.pipe.segment import SPOOLED_FROM, Pool, Segment
from obhut.worker.tensors import from_frame

from .conftest import MEMORY, PROBES, Ask

SIZE = SPOOLED_FROM + 2**20
COUNT = SIZE // 4


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """Return what a parent has that spools."""
    made = Pool(2**30, mapped=False, spool=tmp_path)
    yield made
    made.close()


def written(pool: Pool, value: int) -> Segment:
    """Return a segment full of one value, as a child gets it."""
    segment = pool.take(SIZE)
    pool.write(segment, 0, bytes([value]) * SIZE)
    pool.finish(segment)
    return segment


def adopted(mappings: Mappings, segment: Segment) -> torch.Tensor:
    """Return the tensor in a segment."""
    (frame,) = mappings.frames(segment.number, os.dup(segment.fd), (SIZE,))
    return from_frame(frame, "uint8", (SIZE,))


def test_only_what_is_large_is_a_file(pool: Pool, tmp_path: Path) -> None:
    """A file has no name, and less than its least size is memory as before."""
    large, small = pool.take(SPOOLED_FROM), pool.take(SPOOLED_FROM - 1)
    assert (large.spooled, small.spooled) == (True, False)
    assert os.fstat(large.fd).st_dev == tmp_path.stat().st_dev
    assert os.fstat(large.fd).st_nlink == 0
    assert os.fstat(large.fd).st_size >= SPOOLED_FROM
    assert not list(tmp_path.iterdir())
    pool.give(large)
    pool.give(small)


def test_a_file_is_used_once(pool: Pool) -> None:
    """What came next would be hidden by what a tensor's owner wrote over the first."""
    first = pool.take(SIZE)
    pool.give(first)
    assert first.fd == -1
    second = pool.take(SIZE)
    assert second is not first
    assert second.number != first.number
    pool.give(second)


def test_what_is_written_in_place_is_the_childs_own(pool: Pool) -> None:
    """The file stays as it is; letting memory go loses no change."""
    mappings, segment = Mappings(), written(pool, 3)
    pool.lend(segment)
    tensor = adopted(mappings, segment)
    tensor[: 2**22] += 4
    mappings.passed(tensor)
    assert tensor[: 2**22].eq(7).all()
    assert tensor[2**22 :].eq(3).all()
    assert set(os.pread(segment.fd, SIZE, 0)) == {3}
    del tensor
    pool.returned(mappings.returned())
    assert segment.fd == -1


def mapped_files() -> int:
    """Return how many files in no folder this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("(deleted)" in line and "memfd" not in line for line in lines)


def test_a_file_goes_with_its_last_tensor(pool: Pool) -> None:
    """It is unmapped at once, so that its room on the disk is free."""
    before = mapped_files()
    mappings, segment = Mappings(), written(pool, 1)
    tensor = adopted(mappings, segment)
    assert mapped_files() == before + 1
    assert mappings.returned() == ()
    del tensor
    assert mappings.returned() == (segment.number,)
    assert mapped_files() == before
    pool.give(segment)


def test_closing_leaves_what_a_child_reads(pool: Pool) -> None:
    """A child that still has a file mapped reads it to the end, and is not killed."""
    mappings, segment = Mappings(), written(pool, 9)
    tensor = adopted(mappings, segment)
    pool.give(segment)
    assert tensor.eq(9).all()


def test_disk_use_counts_as_memory_does(tmp_path: Path) -> None:
    """A session has no more on the disk than it may have in all."""
    pool = Pool(0, mapped=False, most=2 * SIZE, spool=tmp_path)
    kept = [written(pool, 1), written(pool, 2)]
    third = pool.take(SIZE)
    with pytest.raises(LimitError, match="let go of some"):
        pool.write(third, 0, b"x")
    pool.give(kept[0])
    pool.write(third, 0, b"x")
    for segment in (kept[1], third):
        pool.give(segment)


@pytest.mark.parametrize("make", [unnamed, named_once])
def test_files_have_no_name_and_nobody_may_write(
    make: Callable[[Path], int], tmp_path: Path
) -> None:
    """Whether or not the file system knows files that never had one."""
    fd = make(tmp_path)
    assert not list(tmp_path.iterdir())
    assert os.fstat(fd).st_mode & 0o777 == 0o400
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_no_folder_is_no_room(tmp_path: Path) -> None:
    """A folder that is gone refuses the message; nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LimitError, match="no room"):
        Pool(0, mapped=False, spool=tmp_path / "gone").take(SIZE)
    assert len(os.listdir("/proc/self/fd")) == before


def spooling(command: tuple[str, ...], sandbox: str, folder: Path) -> Children:
    """Return children whose large tensors wait in a folder."""
    settings = Settings(
        "bob", memory=MEMORY, sandbox=sandbox, seconds=60, spool=str(folder)
    )
    return Children(settings, command=command)


@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_a_child_can_not_change_what_it_reads(
    sandbox: str, ask: Ask, tmp_path: Path
) -> None:
    """Not by its descriptor, nor by its name in /proc, with walls or without."""
    with spooling(PROBES, sandbox, tmp_path) as children:
        child = children.start("s")
        segment = child.segment(SIZE)
        child.write(segment, 0, bytes([5]) * SIZE)
        status = os.fstat(segment.fd)
        said = child.exchange("change_file", b"", InSegment(segment, (SIZE,)), 0.0)
        attempts = dict(line.split("=", 1) for line in said.header.decode().split("\n"))
        assert len(attempts) == 9
        assert {how.split(":")[0] for how in attempts.values()} == {"refused"}, attempts
        assert os.fstat(segment.fd).st_size == status.st_size
        assert os.pread(segment.fd, SIZE, 0) == bytes([5]) * SIZE
        assert ask(child, "echo", "still there") == "still there"


def test_a_child_never_sees_anothers_file(ask: Ask, tmp_path: Path) -> None:
    """Each gets its own, anew each time, and can't find others' in the folder."""
    with spooling(PROBES, "auto", tmp_path) as children:
        pair = [children.start("a"), children.start("b")]
        inodes = []
        for child, value in zip(pair, (b"\1", b"\2"), strict=True):
            segment = child.segment(SIZE)
            child.write(segment, 0, value * 100)
            inodes.append(os.fstat(segment.fd).st_ino)
            stored = InSegment(segment, (SIZE,))
            said = child.exchange("files_seen", b"", stored, 0.0)
            assert said.header.decode() == f"{inodes[-1]}:{value[0]}"
            assert ask(child, "listing", str(tmp_path)).startswith("refused")
        assert len(set(inodes)) == 2
        again = pair[0].segment(SIZE)
        assert os.pread(again.fd, 200, 0) == bytes(200), "it is empty"
        pair[0].give_back(again)


def round_trip(child: Child, number: int, tensor: torch.Tensor) -> torch.Tensor:
    """Hold a tensor at a child, and fetch it."""
    look = TensorData("float32", tuple(tensor.shape), 0)
    batch = Batch("s", number, (Put(number, look), Fetch(number)))
    frames = (tensor.numpy().tobytes(),)
    answer = child.exchange("me", codec.encode(batch), frames, 0.0)
    codec.decode(answer.header, answer.frames)
    return torch.frombuffer(bytearray(answer.frames[0]), dtype=torch.float32)


def use(folder: Path, command: tuple[str, ...] = FORK_SERVER) -> str:
    """Fill a small disk with a session's tensors; return how that was refused."""
    with spooling(command, "auto", folder) as children:
        child = children.start("s")
        opened = Open("s", PROTOCOL, str(torch.__version__))
        child.exchange("me", codec.encode(opened), (), 0.0)
        large = torch.rand(COUNT)
        assert round_trip(child, 1, large).equal(large)
        try:
            round_trip(child, 2, large)
        except LimitError as error:
            said = str(error)
        else:
            return "nothing was refused"
        small = torch.rand(100_000)
        assert round_trip(child, 2, small).equal(small), "the session goes on"
        return said


FULL = """
import ctypes, os, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)
uid, gid = os.getuid(), os.getgid()
try:
    call("unshare", 0x10000000 | 0x00020000)  # user and mount namespaces
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    call("mount", b"none", os.fsencode(sys.argv[1]), b"tmpfs", 0, b"size=24m")
except OSError as error:
    print("no disk of our own:", error)
else:
    from tests.transports.pipe.test_spool import use
    print(use(Path(sys.argv[1])))
"""


def test_a_full_disk_refuses_a_message(tmp_path: Path) -> None:
    """The sender is told, and the session goes on with what fits."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=50,
        check=False,
    )
    if done.stdout.startswith("no disk"):
        pytest.skip(done.stdout)
    assert "no room for more on the worker's disk: No space left" in done.stdout, (
        done.stdout + done.stderr
    )


def test_files_larger_than_allowed_refuse_a_message(pool: Pool) -> None:
    """What the system does not let a process write is refused, not fatal."""
    segment = pool.take(SIZE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(LimitError, match="no room for more on the worker's disk"):
            pool.write(segment, 2**20, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    pool.write(segment, 2**20, b"x" * 100)
    pool.give(segment)
