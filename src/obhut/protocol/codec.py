"""Messages to bytes, bytes to messages.

Rules:

- Decoding is by table only: the schema in ``messages`` names every class that
  can come out, and there is no pickle.
- Any bytes decode to a message or raise ``RemoteProtocolError``, nothing else.
- A tensor's bytes are never part of the header. Each frame is read by exactly
  one ``TensorData``, and its length is the one that the shape and dtype declare.
- Nothing is allocated for a tensor before its declaration has been checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import msgspec

from obhut.errors import LimitError, RemoteProtocolError

from . import limits
from .dtypes import ITEM_BYTES
from .messages import (
    AnyMessage,
    Batch,
    Deliver,
    Fetched,
    Inline,
    Leaf,
    Put,
    Results,
    Run,
    TensorData,
    Value,
)

Frame: TypeAlias = bytes | bytearray | memoryview
"""Bytes of one tensor, dense and row-major."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor, exactly.

    Raises:
        RemoteProtocolError: if the dtype does not travel or the shape is none.
    """
    size = ITEM_BYTES.get(dtype)
    if size is None:
        raise RemoteProtocolError(f"expected a dtype that travels, got {dtype[:80]!r}")
    if len(shape) > limits.DIMENSIONS or any(n < 0 for n in shape):
        raise RemoteProtocolError(
            f"expected at most {limits.DIMENSIONS} sizes, none negative"
        )
    return size * math.prod(shape)


def encode(message: AnyMessage) -> bytes:
    """Return the message's header; its frames travel beside it, as they are.

    Raises:
        LimitError: if the header is larger than a receiver accepts.
    """
    header = _encoder.encode(message)
    if len(header) > limits.HEADER_BYTES:
        raise LimitError(
            f"a message's header may have {limits.HEADER_BYTES:,} bytes, this one has "
            f"{len(header):,}; send large tensors instead of long lists"
        )
    return header


def decode(header: bytes | memoryview, frames: Sequence[Frame] = ()) -> AnyMessage:
    """Return the message that ``encode`` was given, checked against its frames.

    Raises:
        RemoteProtocolError: if these bytes and frames are no message.
    """
    if len(header) > limits.HEADER_BYTES:
        raise RemoteProtocolError(
            f"expected a header of at most {limits.HEADER_BYTES:,} bytes, "
            f"got {len(header):,}"
        )
    try:
        message = _decoder.decode(header)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"not a message: {error}") from error
    check(message, frames)
    return message


def check(message: AnyMessage, frames: Sequence[Frame]) -> None:
    """Hold a decoded message to the limits and to its frames.

    Raises:
        RemoteProtocolError: naming the rule that is broken.
    """
    if isinstance(message, Batch):
        if len(message.requests) > limits.REQUESTS_PER_BATCH:
            raise RemoteProtocolError(
                f"a batch holds at most {limits.REQUESTS_PER_BATCH:,} requests"
            )
        for request in message.requests:
            if request.__class__ is Run:
                _check_run(request)
    expected = 0
    for data in _tensors(message):
        if data.frame != expected or expected >= len(frames):
            raise RemoteProtocolError(
                f"expected tensors to name frames 0, 1, … of {len(frames)} in order, "
                f"got {data.frame} after {expected - 1}"
            )
        declared, came = nbytes(data.dtype, data.shape), len(frames[expected])
        if declared != came:
            raise RemoteProtocolError(
                f"frame {expected} is declared as {declared:,} bytes, {came:,} came"
            )
        expected += 1
    if expected != len(frames):
        raise RemoteProtocolError(
            f"{len(frames)} frames came, the message names {expected}"
        )


def _tensors(message: AnyMessage) -> Iterator[TensorData]:
    """Yield each declaration of a frame, in the message's order."""
    match message:
        case Batch(requests=requests):
            for request in requests:
                if request.__class__ is Put:
                    yield request.data
        case Results(answers=answers):
            for answer in answers:
                if answer.__class__ is Fetched:
                    yield answer.data
        case Deliver(ids=ids, tensors=tensors):
            if len(ids) != len(tensors):
                raise RemoteProtocolError("a delivery names one id for each tensor")
            yield from tensors
        case _:
            return


def _check_run(run: Run) -> None:
    """Hold one operator's arguments to the limits."""
    count = len(run.args) + len(run.kwargs)
    if count > limits.ARGUMENTS_PER_REQUEST or len(run.op) > limits.TEXT_CHARACTERS:
        raise RemoteProtocolError("an operator has too many or too long arguments")
    if not 0 <= run.count <= limits.RESULTS_PER_REQUEST:
        raise RemoteProtocolError("an operator has too many results")
    for value in run.args:
        _check_value(value)
    if run.kwargs:
        for value in run.kwargs.values():
            _check_value(value)


def _check_value(value: Value | Leaf) -> None:
    """Hold an inline tensor, alone or in a list, to its declaration."""
    kind = value.__class__
    if kind is list:
        for leaf in value:  # type: ignore[union-attr] # the class was compared
            if leaf.__class__ is Inline:
                _check_inline(leaf)  # type: ignore[arg-type] # likewise
    elif kind is Inline:
        _check_inline(value)  # type: ignore[arg-type] # likewise


def _check_inline(inline: Inline) -> None:
    """Hold an inline tensor to its declaration and to the limit for such."""
    declared = nbytes(inline.dtype, inline.shape)
    if declared != len(inline.data) or declared > limits.INLINE_BYTES:
        raise RemoteProtocolError(
            f"an inline tensor has {limits.INLINE_BYTES:,} bytes at most and as many "
            "as it declares"
        )
