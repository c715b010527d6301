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

from obhut.errors import CallError, LimitError, RemoteProtocolError

from . import limits
from .dtypes import ITEM_BYTES
from .messages import (
    Aggregate,
    AnyAnswer,
    AnyMessage,
    AnyRequest,
    Batch,
    Cancel,
    Close,
    Deliver,
    Expect,
    Fetched,
    Find,
    Free,
    Inline,
    Label,
    Load,
    Move,
    Open,
    Put,
    Recalled,
    Ref,
    Results,
    Run,
    Symbol,
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
    # Also an empty tensor must have strides that fit.
    if size * math.prod(n for n in shape if n) >= 2**63:
        raise RemoteProtocolError("a tensor has less than 2**63 bytes")
    return size * math.prod(shape)


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
    """Hold a decoded message to the limits and to the sizes of its frames.

    Raises:
        RemoteProtocolError: naming the rule that is broken.
    """
    match message:
        case Batch(requests=requests, session=session):
            if len(requests) > limits.REQUESTS_PER_BATCH:
                raise RemoteProtocolError(
                    f"a batch holds at most {limits.REQUESTS_PER_BATCH:,} requests"
                )
            _check_names(session)
            for request in requests:
                _check_request(request)
        case Open(session=session, torch=version):
            _check_names(session, version)
        case Deliver(session=session, ids=ids, policy=policy):
            _check_names(session)
            _check_count(ids)
            if len(policy) > limits.POLICY_BYTES:
                raise RemoteProtocolError(
                    f"a policy has at most {limits.POLICY_BYTES:,} bytes"
                )
        case Close(session=session) | Cancel(session=session):
            _check_names(session)
        case Recalled(hash=hash, then=then):
            _check_names(hash, then)
        case _:
            pass
    expected = 0
    for data in _tensors(message):
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


def _check_request(request: AnyRequest) -> None:
    """Hold one request to the limits."""
    match request:
        case Run():
            _check_run(request)
        case Free():
            pass
        case Put(tags=tags, description=text) | Label(tags=tags, description=text):
            _check_texts(text, *_few(tags))
        case Find(tags=tags):
            _check_texts(*_few(tags))
        case Expect(sender=sender):
            _check_names(sender)
        case Load(dataset=dataset, part=part):
            _check_texts(dataset, part)
        case Move(to=to, session=session, ids=ids):
            _check_names(to, session)
            _check_count(ids)
        case Aggregate(kind=kind, ids=ids, dtype=dtype):
            _check_texts(kind, dtype)
            _check_count(ids)
        case _:
            pass


def _check_count(ids: tuple[int, ...]) -> None:
    if len(ids) > limits.REQUESTS_PER_BATCH:
        raise RemoteProtocolError(
            f"one move or delivery has at most {limits.REQUESTS_PER_BATCH:,} objects"
        )


def _few(tags: tuple[str, ...]) -> tuple[str, ...]:
    if len(tags) > limits.TAGS:
        raise RemoteProtocolError(f"an object has at most {limits.TAGS} tags")
    return tags


def _check_texts(*texts: str) -> None:
    for text in texts:
        if len(text) > limits.TEXT_CHARACTERS:
            raise RemoteProtocolError(
                f"a text has at most {limits.TEXT_CHARACTERS:,} characters"
            )


def _check_names(*names: str) -> None:
    """Hold names that stand in logs to one line: a line break forges the next."""
    _check_texts(*names)
    if not all(map(str.isprintable, names)):
        raise RemoteProtocolError(
            "expected names of sessions and workers, and a version, in characters that "
            "can be printed; a line break or a control character came"
        )


def _check_run(run: Run) -> None:
    """Hold one operator's arguments to the limits."""
    if len(run.args) + len(run.kwargs) > limits.ARGUMENTS_PER_REQUEST:
        raise RemoteProtocolError(
            f"an operator has at most {limits.ARGUMENTS_PER_REQUEST} arguments"
        )
    if not 0 <= run.count <= limits.RESULTS_PER_REQUEST:
        raise RemoteProtocolError(
            f"an operator has at most {limits.RESULTS_PER_REQUEST:,} results"
        )
    if run.seed is not None and not 0 <= run.seed < limits.SEEDS:
        raise RemoteProtocolError(f"a seed is at least 0 and below {limits.SEEDS:,}")
    _check_texts(run.op)
    for value in run.args:
        if value.__class__ not in _SMALL:
            _check_value(value)
    if run.kwargs:
        _check_texts(*run.kwargs)
        for value in run.kwargs.values():
            _check_value(value)


_SMALL = frozenset((Ref, int, float, bool, type(None)))
"""Arguments that need no check."""


def _check_value(value: Value) -> None:
    """Hold one argument to the limits, and what is inline to its declaration."""
    if isinstance(value, list) and len(value) > limits.LIST_ELEMENTS:
        raise RemoteProtocolError(
            f"a list has at most {limits.LIST_ELEMENTS:,} elements"
        )
    for leaf in value if isinstance(value, list) else (value,):
        match leaf:
            case Inline():
                _check_inline(leaf)
            case str():
                _check_texts(leaf)
            case Symbol(name=name):
                _check_texts(name)
            case _:
                pass


def _check_inline(inline: Inline) -> None:
    """Hold an inline tensor to its declaration and to the limit for such."""
    declared = nbytes(inline.dtype, inline.shape)
    if declared != len(inline.data) or declared > limits.INLINE_BYTES:
        raise RemoteProtocolError(
            f"an inline tensor has {limits.INLINE_BYTES:,} bytes at most and as many "
            "as it declares"
        )
