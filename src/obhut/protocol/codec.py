"""Messages to bytes, bytes to messages.

::

    header = encode(Batch("s", 1, requests))     # frames travel beside it
    message = decode(header, frames)             # or RemoteProtocolError

Rules:

- Decoding is by table only: the schema in ``messages`` names every class that
  can come out, and there is no pickle.
- Any bytes decode to a message or raise ``RemoteProtocolError``, nothing else.
- A tensor's bytes are never part of the header. Each frame is read by exactly
  one ``TensorData``, and its length is the one that the shape and dtype declare.
- Nothing is allocated for a tensor before its declaration has been checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from obhut.errors import CallError, LimitError, RemoteProtocolError

from . import limits
from .dtypes import nbytes
from .messages import (
    AnyAnswer,
    AnyMessage,
    Batch,
    Deliver,
    Fetched,
    Put,
    Results,
    State,
    StateAnswer,
    TensorData,
)

Frame: TypeAlias = bytes | bytearray | memoryview
"""Bytes of one tensor, dense and row-major."""


class FrameDigest(bytes):
    """Stands for a frame where nobody reads it: its digest, empty if not known."""


def frame_digest(frame: Frame) -> bytes:
    """Return a frame's SHA-256; empty if it is not known."""
    if isinstance(frame, FrameDigest):
        return bytes(frame)
    return hashlib.sha256(frame).digest()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """Return the message's header; its frames travel beside it, as they are.

    Raises:
        CallError: if it holds text or a number that has no form in a message.
        LimitError: if the header is larger than a receiver accepts.
    """
    try:
        header = _encoder.encode(message)
    except (ValueError, OverflowError, TypeError) as error:
        raise CallError(f"a message can not be written: {error}") from error
    if len(header) > limits.HEADER_BYTES:
        raise LimitError(
            f"a message's header may have {limits.HEADER_BYTES:,} bytes, this one has "
            f"{len(header):,}; send large tensors instead of long lists"
        )
    return header


def size(answer: AnyAnswer) -> int:
    """Return the bytes that an answer takes in a header."""
    return len(_encoder.encode(answer))


def decode(header: bytes | memoryview, frames: Sequence[Frame] = ()) -> AnyMessage:
    """Return the message that ``encode`` was given, checked against its frames.

    Raises:
        RemoteProtocolError: if these bytes and frames are no message.
    """
    return decode_ahead(header, tuple(map(len, frames)))


def decode_ahead(header: bytes | memoryview, sizes: Sequence[int]) -> AnyMessage:
    """Return the message whose frames are still to come, checked against their sizes.

    Raises:
        RemoteProtocolError: if these bytes and such frames are no message.
    """
    if len(header) > limits.HEADER_BYTES:
        raise RemoteProtocolError(
            f"expected a header of at most {limits.HEADER_BYTES:,} bytes, "
            f"got {len(header):,}"
        )
    try:
        message: AnyMessage = _decoder.decode(header)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"not a message: {error}") from error
    check(message, sizes)
    return message


def check(message: AnyMessage, sizes: Sequence[int]) -> None:
    """Hold a decoded message to the sizes of its frames.

    Raises:
        RemoteProtocolError: naming the rule that is broken.
    """
    if isinstance(message, Deliver | State) and not sizes:
        sizes = message.sizes  # the header of a delivery, whose frames follow
    named, tensors = _read(message)
    # A line break would forge a log's next line.
    if not all(map(str.isprintable, named)):
        raise RemoteProtocolError(
            "expected names of sessions and workers, and a version, in characters that "
            "can be printed; a line break or a control character came"
        )
    expected = 0
    for data in tensors:
        if data.frame != expected or expected >= len(sizes):
            raise RemoteProtocolError(
                f"expected tensors to name frames 0, 1, … of {len(sizes)} in order, "
                f"got {data.frame} after {expected - 1}"
            )
        declared, came = nbytes(data.dtype, data.shape), sizes[expected]
        if declared != came:
            raise RemoteProtocolError(
                f"frame {expected} is declared as {declared:,} bytes, {came:,} came"
            )
        expected += 1
    if expected != len(sizes):
        raise RemoteProtocolError(
            f"{len(sizes)} frames came, the message names {expected}"
        )


def _read(message: AnyMessage) -> tuple[list[str], Sequence[TensorData]]:
    """Return what may stand in a log, and each declaration of a frame, in order."""
    named = [getattr(message, field) for field in message.names]
    tensors: Sequence[TensorData] = ()
    match message:
        case Batch(requests=requests):
            tensors = puts = []
            for request in requests:
                if request.__class__ is Put:
                    puts.append(request.data)
                if request.names:
                    named += [getattr(request, field) for field in request.names]
        case Results(answers=answers):
            tensors = [a.data for a in answers if a.__class__ is Fetched]
        case Deliver(ids=ids, tensors=tensors):
            if len(ids) != len(tensors):
                raise RemoteProtocolError("a delivery names one id for each tensor")
        case State(tensors=tensors) | StateAnswer(tensors=tensors):
            pass
        case _:
            pass
    return named, tensors
