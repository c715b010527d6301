"""Parcels as chunks: any cut gives the parcel back, and nothing hostile costs room."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import LimitError, RemoteProtocolError
from obhut.protocol import limits
from obhut.transports.grpc import wire

BOUND = 1_000
"""Bytes of tensors that the assemblers of these tests take."""

PREFIX = struct.Struct("<IIQ")


def prefix(header: int, lengths: Sequence[int], total: int | None = None) -> bytes:
    """Return the beginning of a parcel, as it announces itself."""
    announced = sum(lengths) if total is None else total
    packed = struct.pack(f"<{len(lengths)}Q", *lengths)
    return PREFIX.pack(header, len(lengths), announced) + packed


def pieces(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Cut bytes into pieces of these sizes in turn; zero is an empty piece."""
    cut: list[bytes] = []
    k = 0
    while data:
        size = sizes[k % len(sizes)] if sizes else len(data)
        if size == 0 and not any(sizes):
            size = 1
        cut.append(data[:size])
        data = data[size:]
        k += 1
    return cut


frames = st.lists(st.binary(max_size=60), max_size=8)
sizes = st.lists(st.integers(0, 40), max_size=5)


@given(st.binary(max_size=80), frames, sizes)
def test_a_parcel_comes_back_however_it_was_cut(
    header: bytes, frames: list[bytes], sizes: list[int]
) -> None:
    """What ``cut`` yields is put together again from chunks of any size."""
    assembler = wire.Assembler(BOUND)
    whole = b"".join(wire.cut(header, frames))
    *before, last = pieces(whole, sizes)
    assert assembler.idle
    for piece in before:
        assert assembler.feed(piece) is None
        if piece:
            assert not assembler.idle
    parcel = assembler.feed(last)
    assert parcel is not None
    assert parcel[0] == header
    assert [bytes(frame) for frame in parcel[1]] == frames
    assert assembler.idle


@given(st.lists(st.tuples(st.binary(max_size=30), frames), min_size=1, max_size=5))
def test_parcels_follow_each_other(parcels: list[tuple[bytes, list[bytes]]]) -> None:
    """One assembler takes any number of parcels, one after the other."""
    assembler = wire.Assembler(BOUND)
    for header, frames in parcels:
        (chunk,) = wire.cut(header, frames)
        parcel = assembler.feed(chunk)
        assert parcel is not None
        assert (parcel[0], [bytes(f) for f in parcel[1]]) == (header, frames)


def test_a_large_parcel_is_cut_into_chunks_of_the_agreed_size() -> None:
    """All chunks but the last are full, and hold nothing but the parcel."""
    frames = [bytes([k]) * (wire.CHUNK_BYTES * 2 // 3) for k in range(5)]
    chunks = list(wire.cut(b"header", frames))
    assert {len(chunk) for chunk in chunks[:-1]} == {wire.CHUNK_BYTES}
    assert len(chunks[-1]) <= wire.CHUNK_BYTES
    assembler = wire.Assembler(sum(map(len, frames)))
    *none, parcel = [assembler.feed(chunk) for chunk in chunks]
    assert none == [None] * len(none)
    assert parcel is not None
    assert parcel[0] == b"header"
    assert [bytes(frame) for frame in parcel[1]] == frames


def test_chunks_are_cut_when_it_is_their_turn() -> None:
    """A chunk holds what its frame held when the chunk was asked for."""
    frame = bytearray(wire.CHUNK_BYTES * 2)
    chunks = wire.cut(b"", [frame])
    first = next(chunks)
    frame[:] = b"\xff" * len(frame)
    assert not any(first[PREFIX.size + 8 :])
    assert set(b"".join(chunks)) == {0xFF}


@given(st.binary(max_size=80), frames)
def test_a_parcels_length_is_that_of_its_chunks(
    header: bytes, frames: list[bytes]
) -> None:
    """So much room is enough for a copy of all chunks."""
    assert wire.length(header, frames) == sum(map(len, wire.cut(header, frames)))


@pytest.mark.parametrize(
    "begin",
    [
        prefix(limits.HEADER_BYTES + 1, []),
        prefix(2**32 - 1, []),
        PREFIX.pack(10, wire.FRAMES_AT_MOST + 1, 0),
        PREFIX.pack(10, 2**32 - 1, 0),
        PREFIX.pack(10, 1, wire.FRAME_BYTES_AT_MOST + 1),
        PREFIX.pack(10, 1, 2**64 - 1),
        prefix(0, [10], total=9),
        prefix(0, [10], total=11),
        prefix(0, [2**64 - 1, 1], total=0),
        prefix(0, [2**64 - 1], total=BOUND),
        prefix(0, [2**63, 2**63], total=0),
        prefix(0, [], total=1),
    ],
    ids=lambda begin: begin.hex()[:48],
)
def test_a_hostile_prefix_is_refused_at_once(begin: bytes) -> None:
    """Lengths past the limits, or that contradict each other, are refused."""
    with pytest.raises(RemoteProtocolError):
        wire.Assembler(BOUND).feed(begin)


@pytest.mark.parametrize("begin", [b"", b"\1", PREFIX.pack(10, 1, 5)[:-1]])
def test_a_prefix_that_is_not_whole_waits(begin: bytes) -> None:
    """Nothing is said of a parcel before its prefix is there."""
    assembler = wire.Assembler(BOUND)
    assert assembler.feed(begin) is None
    assert assembler.idle == (not begin)


def test_room_is_made_when_a_frames_first_byte_comes() -> None:
    """Who announces frames and sends none gets no room for them."""
    most = wire.FRAME_BYTES_AT_MOST
    assembler = wire.Assembler(most)
    tracemalloc.start()
    try:
        assert assembler.feed(prefix(3, [most]) + b"abc") is None
        assert not assembler.idle
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=20), st.integers(1, 30), sizes)
def test_frames_beyond_the_limit_are_thrown_away(
    header: bytes, excess: int, sizes: list[int]
) -> None:
    """They are refused when all have come, and the next parcel is taken."""
    assembler = wire.Assembler(10)
    (whole,) = wire.cut(header, [bytes(7), bytes(3 + excess)])
    *before, last = pieces(whole, sizes)
    assert [assembler.feed(piece) for piece in before] == [None] * len(before)
    with pytest.raises(LimitError, match="10 bytes"):
        assembler.feed(last)
    assert assembler.idle
    (whole,) = wire.cut(header, [bytes(7), bytes(3)])
    assert assembler.feed(whole) == (header, (bytes(7), bytes(3)))


def test_frames_are_their_readers() -> None:
    """The frames of a parcel stay as they are, whatever comes after it."""
    assembler = wire.Assembler(BOUND)
    kept = [assembler.feed(*wire.cut(b"", [bytes([k]) * 9])) for k in range(3)]
    for k, parcel in enumerate(kept):
        assert parcel is not None
        assert parcel[1] == (bytes([k]) * 9,)


@given(st.binary(max_size=20), frames, st.binary(min_size=1, max_size=20))
def test_bytes_after_the_end_are_refused(
    header: bytes, frames: list[bytes], more: bytes
) -> None:
    """A chunk ends where its parcel does."""
    (chunk,) = wire.cut(header, frames)
    with pytest.raises(RemoteProtocolError, match="after the end"):
        wire.Assembler(BOUND).feed(chunk + more)


@given(st.lists(st.binary(max_size=64), max_size=10))
def test_any_chunks_are_a_parcel_or_refused(chunks: list[bytes]) -> None:
    """Nothing else comes out."""
    assembler = wire.Assembler(BOUND)
    for chunk in chunks:
        try:
            parcel = assembler.feed(chunk)
        except RemoteProtocolError:
            return
        if parcel is not None:
            assembler = wire.Assembler(BOUND)


@given(
    st.integers(0, 40),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(-2, 2),
    st.binary(max_size=200),
    sizes,
)
def test_near_parcels_are_parcels_or_refused(
    header: int, lengths: list[int], off: int, body: bytes, sizes: list[int]
) -> None:
    """A parcel that lies a little is refused, or waits for what it announced."""
    total = max(0, sum(lengths) + off)
    assembler = wire.Assembler(BOUND)
    whole = prefix(header, lengths, total) + body
    result = None
    for piece in pieces(whole, sizes):
        try:
            result = assembler.feed(piece)
        except RemoteProtocolError:
            return
        if result is not None:
            break
    if result is None:
        assert not assembler.idle
        assert len(body) < header + sum(lengths)
        return
    head, got = result
    assert (len(head), [len(frame) for frame in got]) == (header, lengths)
    assert body.startswith(head + b"".join(bytes(frame) for frame in got))


# --- places -----------------------------------------------------------------------

LARGE = wire.PLACED_BYTES

mixed = st.lists(
    st.one_of(st.integers(0, 60), st.integers(LARGE, LARGE + 60)),
    min_size=1,
    max_size=6,
)


def filled(lengths: Sequence[int]) -> list[bytes]:
    """Return frames of these lengths that are all different."""
    return [bytes([k + 1]) * length for k, length in enumerate(lengths)]


@given(mixed, st.lists(st.integers(5_000, LARGE), max_size=4))
def test_frames_come_apart_however_they_were_cut(
    lengths: list[int], sizes: list[int]
) -> None:
    """Each large frame is all of some memory that was made for it alone."""
    made: list[memoryview] = []

    def memory(size: int) -> memoryview:
        made.append(memoryview(bytearray(size)))
        return made[-1]

    frames = filled(lengths)
    place = wire.Apart(lengths, memory)
    offset = 0
    for piece in pieces(b"".join(frames), sizes):
        place.write(offset, memoryview(piece))
        offset += len(piece)
    found = place.frames()
    assert [bytes(frame) for frame in found] == frames
    large = [frame for frame in found if len(frame) >= LARGE]
    assert [frame is room for frame, room in zip(large, made, strict=True)] == [
        True
    ] * len(large)


def test_memory_is_asked_for_when_a_frames_first_byte_comes() -> None:
    """Who announces many large frames and sends one gets memory for one."""
    made: list[int] = []

    def memory(size: int) -> memoryview:
        made.append(size)
        return memoryview(bytearray(size))

    place = wire.Apart([LARGE, LARGE * 2, LARGE * 3], memory)
    assert made == []
    place.write(0, memoryview(bytes(10)))
    place.write(10, memoryview(bytes(10)))
    assert made == [LARGE]
    place.write(LARGE - 1, memoryview(bytes(2)))
    assert made == [LARGE, LARGE * 2]


class Trunk:
    """A place that remembers what was done with it."""

    def __init__(self, header: bytes, lengths: tuple[int, ...]) -> None:
        self.header = header
        self.lengths = lengths
        self.bytes = b""
        self.dropped = 0

    def write(self, offset: int, data: memoryview) -> None:
        """Take bytes in, in order."""
        assert offset == len(self.bytes)
        self.bytes += bytes(data)

    def frames(self) -> str:
        """Say that all is there."""
        return "all"

    def drop(self) -> None:
        """Count."""
        self.dropped += 1


def test_the_header_tells_where_large_frames_go() -> None:
    """A place is looked for when the first byte of a large parcel comes, once."""
    found: list[Trunk] = []

    def find(header: bytes, lengths: tuple[int, ...]) -> Trunk:
        found.append(Trunk(header, lengths))
        return found[-1]

    assembler = wire.Assembler(10 * LARGE, find)
    begin = prefix(4, [LARGE, 1]) + b"head"
    assert assembler.feed(begin) is None
    assert not found
    assert assembler.feed(b"x" * LARGE) is None
    assert assembler.feed(b"y") == (b"head", "all")
    (trunk,) = found
    assert (trunk.header, trunk.lengths) == (b"head", (LARGE, 1))
    assert trunk.bytes == b"x" * LARGE + b"y"
    parcel = assembler.feed(prefix(4, [LARGE]) + b"tiny" + bytes(LARGE))
    assert parcel is not None
    assert len(found) == 1, "a small parcel needs no place"
    assembler.drop()
    assert trunk.dropped == 0, "what is complete is its reader's"


def test_a_parcel_that_does_not_end_gives_its_place_back() -> None:
    """A stream that is cut in the middle of a frame leaves nothing behind."""
    found: list[Trunk] = []

    def find(header: bytes, lengths: tuple[int, ...]) -> Trunk:
        found.append(Trunk(header, lengths))
        return found[-1]

    assembler = wire.Assembler(10 * LARGE, find)
    assembler.feed(prefix(0, [LARGE, LARGE]) + bytes(LARGE + 5))
    assembler.drop()
    assembler.drop()
    assert found[0].dropped == 1


def test_no_place_is_looked_for_where_frames_are_too_large() -> None:
    """The limit comes first."""
    assembler = wire.Assembler(LARGE, lambda header, lengths: pytest.fail("looked for"))
    assert assembler.feed(prefix(0, [LARGE + 1]) + bytes(LARGE)) is None
    with pytest.raises(LimitError):
        assembler.feed(b"x")


def test_memory_that_the_system_does_not_have() -> None:
    """It is a MemoryError, as everywhere in Python."""
    with pytest.raises(MemoryError):
        wire.fresh(2**62)


@pytest.mark.parametrize("size", [0, 5, LARGE, LARGE + 1])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_filling_copies_just_the_bytes(
    size: int, start: int, kind: type[bytes] | type[bytearray]
) -> None:
    """Whatever the memory, and not a byte beside it."""
    source = kind(bytes(k % 251 for k in range(start + size)))
    room = bytearray(b"." * (size + 2))
    wire.fill(memoryview(room)[1 : size + 1], memoryview(source)[start:])
    assert room == b"." + source[start:] + b"."


def test_filling_keeps_to_the_room() -> None:
    """More than there is room for is refused, and nothing is written."""
    room = bytearray(LARGE)
    with pytest.raises(ValueError, match="different"):
        wire.fill(memoryview(room), memoryview(b"x" * (LARGE + 1)))
    assert not any(room)
