"""A transport around another one, for those that look at what passes, or disturb it."""

from __future__ import annotations

from collections.abc import Sequence

from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage
from obhut.transports import Pending, Transport


class WrappingTransport:
    """A transport that passes everything on.

    Args:
        inner: the transport that carries the messages.
    """

    def __init__(self, inner: Transport) -> None:
        self.worker = inner.worker
        self.address = inner.address
        self.eager = inner.eager
        self.mends = inner.mends
        self.shared = inner.shared
        self._inner = inner

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Pending:
        """Send a message."""
        return self._inner.submit(message, frames)

    def progress(self, session: str, number: int) -> float | None:
        """Return what share of a batch is done."""
        return self._inner.progress(session, number)

    def close(self) -> None:
        """Give the way up."""
        self._inner.close()
