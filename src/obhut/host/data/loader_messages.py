"""What an owner's loader, in a process of its own, says to the worker that started it.

::

    write(pipe, Values((Head("x", "float32", (2, 3)),)), [buffer])   # the process
    message = read(pipe)                                             # the worker

Rules:

- A message is the length of its head in four bytes, the head in JSON, and as many
  bytes as the head says, which are no message's concern.
- Nothing is pickled. What a head says is held to its type, and to a limit.
- It is said in one direction only, in the order of ``Walled``, ``Values`` or ``Rows``
  any number of times, ``Done``; or ``Failed`` at any point.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

HEAD_BYTES = 2**20
"""What a head has at most, in bytes, which is enough for some thousand arrays."""

_LENGTH = 4


class Request(Struct, frozen=True, kw_only=True):
    """What a worker wants of a loader.

    Attributes:
        data: the data set's name, for what the loader prints.
        module: where the function is.
        function: its name in there.
        folder: where the module may lie; the process's working folder. Empty for a
            module of obhut's own.
        arguments: what the function is called with.
        path: what it is called with before those, if the declaration has a path.
        network: whether it may open connections.
    """

    data: str
    module: str
    function: str
    folder: str
    arguments: tuple[str, ...] = ()
    path: str | None = None
    network: bool = False


class Walled(Struct, frozen=True, tag=True):
    """The process is behind its walls.

    Attributes:
        walls: those that stand.
        refused: why it is not started, if too few of them do: the wall, why there is
            none, what to do.
    """

    walls: tuple[str, ...]
    refused: tuple[str, str, str] | None = None


class Head(Struct, frozen=True):
    """An array whose bytes follow, row-major, in this machine's order.

    Attributes:
        name: its name.
        dtype: the element type, by its name in ``protocol.dtypes``.
        shape: elements along each dimension.
    """

    name: Annotated[str, Meta(min_length=1, max_length=1_000)]
    dtype: str
    shape: tuple[Annotated[int, Meta(ge=0)], ...]


class Values(Struct, frozen=True, tag=True):
    """Arrays, whose bytes follow one after the other."""

    arrays: Annotated[tuple[Head, ...], Meta(min_length=1)]


class Rows(Struct, frozen=True, tag=True):
    """Rows of a table: that many bytes follow, a stream of Arrow's IPC format."""

    size: Annotated[int, Meta(ge=1)]


class Failed(Struct, frozen=True, tag=True):
    """The function raised something, or returned what is no data.

    Leak: it may quote what the owner's function says; for the owner's console.

    Attributes:
        problem: what is wrong.
        advice: what to do.
        file: where; empty for the loader itself.
        column: as in ``DatasetError``.
        row: likewise.
    """

    problem: str
    advice: str
    file: str = ""
    column: str = ""
    row: Annotated[int, Meta(ge=0)] = 0


class Done(Struct, frozen=True, tag=True):
    """There is no more."""


Message: TypeAlias = Walled | Values | Rows | Failed | Done

_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def write(pipe: int, message: Message, bodies: Iterable[memoryview] = ()) -> None:
    """Say something.

    Args:
        pipe: a descriptor.
        message: what.
        bodies: the bytes that follow.

    Raises:
        OSError: if nobody listens.
        ValueError: if the head is too long.
    """
    head = msgspec.json.encode(message)
    if len(head) > HEAD_BYTES:
        raise ValueError("expected fewer arrays, or shorter names")
    parts = (memoryview(len(head).to_bytes(_LENGTH, "big") + head), *bodies)
    for part in parts:
        done = 0
        while done < len(part):
            done += os.write(pipe, part[done:])


def read(pipe: IO[bytes]) -> Message:
    """Return what was said; the bytes that follow are the caller's to read.

    Raises:
        EOFError: if nobody speaks any more.
        ValueError: if it is no message.
    """
    size = int.from_bytes(_exactly(pipe, _LENGTH), "big")
    if not 0 < size <= HEAD_BYTES:
        raise ValueError("expected a head of some bytes")
    return _DECODER.decode(_exactly(pipe, size))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = pipe.read(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data
