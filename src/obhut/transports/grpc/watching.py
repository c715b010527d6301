"""How much of a batch a served worker says it has done, at the client.

::

    read(call)                                   # waits; 0.4, or None
    done = Watching(ask)
    done()                                       # what was heard last; asks again

Rule: nobody has to wait for an answer, and whatever comes of a question raises nothing:
it is not known then.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from obhut.errors import RemoteProtocolError
from obhut.protocol import codec
from obhut.protocol.messages import Progress


def read(call: grpc.Future[bytes] | None) -> float | None:
    """Wait for an answer; return what share is done, None if that is not known.

    Args:
        call: the question; None if it could not be asked.
    """
    if call is None:
        return None
    try:
        said = codec.decode(call.result())
    except (grpc.RpcError, grpc.FutureCancelledError, RemoteProtocolError):
        return None
    if not isinstance(said, Progress) or said.thousandths is None:
        return None
    return said.thousandths / 1000


class Watching:
    """What share of a batch is done, as far as that was heard.

    Args:
        ask: asks the worker; None if there is no way to it.
    """

    def __init__(self, ask: Callable[[], grpc.Future[bytes] | None]) -> None:
        self._ask = ask
        self._call: grpc.Future[bytes] | None = None
        self._known: float | None = None

    def __call__(self) -> float | None:
        """Return what was heard last, and ask again."""
        call = self._call
        if call is None or call.done():
            if call is not None:
                self._known = read(call)
            self._call = self._ask()
        return self._known
