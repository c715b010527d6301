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


def test_chunks_are_bytes_of_their_own() -> None:
    """A frame that changes after it was cut changes no chunk."""
    frame = bytearray(wire.CHUNK_BYTES * 2)
    for size in (10, len(frame)):
        chunks = list(wire.cut(b"", [memoryview(frame)[:size]]))
        frame[:] = b"\xff" * len(frame)
        begin = PREFIX.size + 8
        assert not any(b"".join(chunks)[begin:])
        frame[:] = bytes(len(frame))


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


@given(st.lists(frames, min_size=2, max_size=5))
def test_memory_that_is_used_again_holds_each_parcel(
    parcels: list[list[bytes]],
) -> None:
    """With ``reuse`` the frames are right until the next chunk is fed."""
    assembler = wire.Assembler(BOUND, reuse=True)
    for frames in parcels:
        (chunk,) = wire.cut(b"", frames)
        parcel = assembler.feed(chunk)
        assert parcel is not None
        assert [bytes(frame) for frame in parcel[1]] == frames


def test_memory_that_is_not_used_again_stays() -> None:
    """Without ``reuse`` the frames of a parcel are its reader's."""
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
