"""One end of the pipe between a parent and a child, or the fork server.

On the wire: the sizes of control and body, the control, the body. A file may come
along, with the first byte.

Rules:

- Sizes are held to limits before memory is allocated for what they announce.
- A deadline is for a whole message, however slowly its bytes come.
- An end that does not ask for files gets none: the kernel closes them.
- One message is under way at a time; a byte behind one that stands alone breaks the
  protocol.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from obhut.errors import LimitError, RemoteProtocolError
from obhut.protocol import limits
from obhut.protocol.codec import Frame

from .control import Control

INLINE_BYTES = 64 * 2**10
"""Frames that have more bytes together travel in shared memory."""

CONTROL_BYTES = 2**20
"""Bytes that a control may have."""

BODY_BYTES = 2 * limits.HEADER_BYTES + INLINE_BYTES
"""Bytes that headers and inline frames may have together."""

_SIZES = struct.Struct("=II")
_READ_AT_ONCE = 16 * 2**10
_AT_ONCE = 128 * 2**10
_BUFFERS = 64  # well below IOV_MAX
_FILE_BYTES = socket.CMSG_SPACE(array.array("i").itemsize)

_encoder = msgspec.msgpack.Encoder()
_T = TypeVar("_T", bound=Control)


class Received(NamedTuple, Generic[_T]):
    """What came: the control, the bytes behind it, and a file, if one came along."""

    control: _T
    body: memoryview
    fd: int | None


class Link(Generic[_T]):
    """Sends any control, receives those of one table.

    Args:
        sock: a connected stream socket, which the link owns from now on.
        table: the type of what may come.
        takes_files: whether files may come along.
    """

    def __init__(
        self,
        sock: socket.socket,
        table: object,
        *,
        takes_files: bool,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder: msgspec.msgpack.Decoder[_T] = msgspec.msgpack.Decoder(table)
        self._takes_files = takes_files
        # Whoever takes files reads no more than a message: another one, and its file,
        # may be behind it.
        size = _SIZES.size if takes_files else _READ_AT_ONCE
        self._begin = memoryview(bytearray(size))
        self._behind = 0  # bytes of it that came behind the last message
        self._reads = select.poll()
        self._reads.register(sock, select.POLLIN)
        self._writes = select.poll()
        self._writes.register(sock, select.POLLOUT)

    def send(
        self,
        control: Control,
        body: Sequence[Frame] = (),
        *,
        fd: int | None = None,
        deadline: float | None = None,
    ) -> None:
        """Send a message.

        Args:
            control: what is said.
            body: the bytes behind it.
            fd: a file that the other end gets as well.
            deadline: when to give up, by ``time.monotonic``.

        Raises:
            LimitError: if it is larger than a receiver accepts. Nothing was sent.
            EOFError: if the other end is gone.
            TimeoutError: if it was not taken in time.
        """
        head = _encoder.encode(control)
        size = sum(map(len, body))
        if len(head) > CONTROL_BYTES or size > BODY_BYTES:
            raise LimitError(
                f"a message has at most {BODY_BYTES:,} bytes of headers, this one has "
                f"{size:,} and {len(head):,} that describe its parts; ask for less "
                "at once"
            )
        prefix = _SIZES.pack(len(head), size)
        if size <= _AT_ONCE:
            rest = [memoryview(b"".join((prefix, head, *body)))]
        else:
            rest = [memoryview(b) for b in (prefix + head, *body) if len(b)]
        files = [] if fd is None else [_file(fd)]
        while rest:
            try:
                sent = self.sock.sendmsg(rest[:_BUFFERS], files, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                _wait(self._writes, deadline)
                continue
            except OSError as error:
                raise EOFError("the other end is gone") from error
            files = []
            while rest and sent >= len(rest[0]):
                sent -= len(rest.pop(0))
            if sent:
                rest[0] = rest[0][sent:]

    def waits(self, seconds: float = 0.0) -> bool:
        """Tell whether something came in so long, or the other end is gone."""
        return bool(self._behind or self._reads.poll(seconds * 1e3))

    def receive(self, deadline: float | None = None) -> Received[_T]:
        """Wait for a message.

        Duty: close the file that came along.

        Args:
            deadline: when to give up, by ``time.monotonic``.

        Raises:
            RemoteProtocolError: if what comes is no message.
            EOFError: if the other end is gone.
            TimeoutError: if it has not come in time.
        """
        fd: int | None = None
        begin, got = self._begin, self._behind
        self._behind, first = 0, not got
        try:
            if first:
                _wait(self._reads, deadline)  # a message is hardly ever there already
            while got < _SIZES.size:
                count, came = self._read(begin[got:], deadline)
                fd = came if fd is None else fd
                got += count
            head, size = _SIZES.unpack_from(begin)
            if head > CONTROL_BYTES or size > BODY_BYTES:
                raise RemoteProtocolError(
                    f"expected at most {CONTROL_BYTES:,} and {BODY_BYTES:,} bytes, "
                    f"{head:,} and {size:,} were announced"
                )
            end = _SIZES.size + head + size
            whole = memoryview(bytearray(head + size))
            there = begin[_SIZES.size : min(end, got)]
            whole[: len(there)] = there
            if got > end:
                self._behind = got - end
                begin[: self._behind] = bytes(begin[end:got])
            # What came was less than there was room for: nothing is behind it.
            drained = self._takes_files or (first and end <= got < len(begin))
            got = len(there)
            while got < len(whole):
                got += self._read(whole[got:], deadline)[0]
            body = whole[head:].toreadonly()
            try:
                control = self._decoder.decode(whole[:head])
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise RemoteProtocolError("what came is no message") from error
            more = self._behind or (not drained and self._is_more())
            if more and control.alone:
                raise RemoteProtocolError("more came than was announced")
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        return Received(control, body, fd)

    def _is_more(self) -> bool:
        """Tell whether something is behind a message, of who answers one by one."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except OSError:  # nothing is, or the other end is gone
            return False

    def _read(self, into: memoryview, deadline: float | None) -> tuple[int, int | None]:
        """Read what is there, at least a byte; return how much, and a file."""
        fd = None
        while True:
            try:
                if self._takes_files:
                    count, ancillary, _, _ = self.sock.recvmsg_into(
                        [into], _FILE_BYTES, socket.MSG_CMSG_CLOEXEC
                    )
                    for *_, data in ancillary:
                        fd = array.array("i", data)[0]
                else:
                    count = self.sock.recv_into(into)
            except BlockingIOError:
                _wait(self._reads, deadline)
                continue
            except OSError as error:
                raise EOFError("the other end is gone") from error
            if not count:
                raise EOFError("the other end is gone")
            return count, fd

    def close(self) -> None:
        """Close this end."""
        self.sock.close()


def _file(fd: int) -> tuple[int, int, array.array[int]]:
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))


def _wait(poll: select.poll, deadline: float | None) -> None:
    """Wait until there is something to do.

    Raises:
        TimeoutError: if there is nothing in time.
    """
    left = None if deadline is None else max(deadline - time.monotonic(), 0) * 1e3
    if not poll.poll(left):
        raise TimeoutError("the other end did not answer in time")
