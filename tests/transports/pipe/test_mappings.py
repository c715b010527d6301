"""Tensors that live in what a parent lent."""

import fcntl
import gc
import os

import pytest
import torch

from obhut.errors import RemoteProtocolError
from obhut.transports.pipe.mappings import ADOPTED_FROM, Mappings
from obhut.transports.pipe.segment import LENT_AT_MOST, Pool, Segment, places
from obhut.worker.tensors import from_frame

MEGABYTE = 2**20


def lent(pool: Pool, sizes: tuple[int, ...]) -> Segment:
    """Return memory where frame k is full of k + 1."""
    offsets, end = places(sizes)
    segment = pool.take(end)
    for k, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        pool.write(segment, offset, bytes([k + 1]) * size)
    return segment


def tensors(
    mappings: Mappings, segment: Segment, sizes: tuple[int, ...]
) -> list[torch.Tensor]:
    """Make a tensor of each frame."""
    frames = mappings.frames(segment.number, os.dup(segment.fd), sizes)
    return [from_frame(f, "uint8", (len(f),)) for f in frames]


def blocks(segment: Segment) -> int:
    """Return how many bytes of memory a segment has."""
    return os.fstat(segment.fd).st_blocks * 512


@pytest.fixture
def pool() -> Pool:
    """Return a parent's memory."""
    return Pool(0, mapped=False)


def test_a_large_tensor_lives_in_what_was_lent(pool: Pool) -> None:
    """Its values are right, it can be written to, and it is aligned as others are."""
    mappings, sizes = Mappings(), (3, MEGABYTE, 70_000, MEGABYTE + 1)
    segment = lent(pool, sizes)
    found = tensors(mappings, segment, sizes)
    for k, tensor in enumerate(found):
        assert tensor.eq(k + 1).all()
        assert tensor.data_ptr() % 64 == 0
    found[1].add_(10)
    offsets, _ = places(sizes)
    assert os.pread(segment.fd, 1, offsets[1]) == b"\x0c"
    found[2].add_(10)
    assert os.pread(segment.fd, 1, offsets[2]) == b"\x03", "a small one is a copy"
    assert found[3].eq(4).all()


def test_memory_goes_back_with_its_last_tensor(pool: Pool) -> None:
    """A view is enough to keep it; each segment is returned once."""
    mappings, sizes = Mappings(), (MEGABYTE, MEGABYTE)
    segment = lent(pool, sizes)
    first, second = tensors(mappings, segment, sizes)
    assert mappings.returned() == ()
    view = first[10:20]
    del first, second
    assert mappings.returned() == ()
    assert view.eq(1).all()
    del view
    gc.collect()
    assert mappings.returned() == (segment.number,)
    assert mappings.returned() == ()


def test_small_frames_need_no_memory_afterwards(pool: Pool) -> None:
    """What was copied goes back at once."""
    mappings, sizes = Mappings(), (ADOPTED_FROM - 1, 100_000)
    segment = lent(pool, sizes)
    found = tensors(mappings, segment, sizes)
    assert mappings.returned() == (segment.number,)
    assert found[0].eq(1).all()


def test_a_small_tensor_keeps_no_large_ones_memory(pool: Pool) -> None:
    """What no tensor lives in goes back to the system, page by page."""
    mappings, sizes = Mappings(), (8 * MEGABYTE, MEGABYTE, 8 * MEGABYTE)
    segment = lent(pool, sizes)
    first, second, third = tensors(mappings, segment, sizes)
    assert blocks(segment) >= 17 * MEGABYTE
    del first, third
    assert mappings.returned() == ()
    assert blocks(segment) <= MEGABYTE + 4 * 4096
    assert second.eq(2).all()


def test_few_segments_are_kept(pool: Pool) -> None:
    """With many, tensors are copied, so that their parent has files left."""
    mappings, held = Mappings(), []
    returned: list[int] = []
    for _ in range(LENT_AT_MOST + 3):
        segment = lent(pool, (MEGABYTE,))
        held += tensors(mappings, segment, (MEGABYTE,))
        returned += mappings.returned()
    assert len(returned) == 3
    assert all(tensor.eq(1).all() for tensor in held)


def test_what_was_mapped_is_known_by_its_number(pool: Pool) -> None:
    """The file need not come again; once it is gone, its number is nothing."""
    mappings = Mappings()
    segment = lent(pool, (100_000,))
    mappings.frames(segment.number, os.dup(segment.fd), (100_000,))
    (frame,) = mappings.frames(segment.number, None, (100_000,))
    assert set(frame) == {1}
    del frame
    mappings.forget([segment.number, 77])
    with pytest.raises(RemoteProtocolError, match="lent"):
        mappings.frames(segment.number, None, (100_000,))


def test_a_segment_too_small_for_its_frames(pool: Pool) -> None:
    """It is refused, and goes back."""
    mappings, segment = Mappings(), lent(pool, (10,))
    with pytest.raises(RemoteProtocolError, match="smaller"):
        mappings.frames(segment.number, os.dup(segment.fd), (2 * MEGABYTE,))
    assert mappings.returned() == (segment.number,)


def test_what_can_not_be_mapped_is_no_memory() -> None:
    """The file is closed, and the segment goes back."""
    mappings = Mappings()
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(MemoryError):
        mappings.frames(5, fd, (10,))
    with pytest.raises(OSError, match="Bad file"):
        fcntl.fcntl(fd, fcntl.F_GETFD)
    assert mappings.returned() == (5,)
