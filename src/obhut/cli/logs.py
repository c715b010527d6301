"""A served worker's log, which nobody can fill a disk with.

Rules:

- Each kind of line, known by the place in the code that writes it, has so many at once
  and one a second from then on. So what is refused often does not hide what is rare.
- A line is one line: line breaks and control characters in the words of others are
  escaped.
- How many were left out is said with the next that is written.
- gRPC's own lines, which strangers cause at each handshake, are left out, unless
  ``GRPC_VERBOSITY`` asks for them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from obhut.host.wording import printable

AT_ONCE = 100
"""Lines of one kind that may come at once; one more a second after."""

_LENGTH = 2_000
"""Letters of a line."""


def begin() -> None:
    """Write lines to the standard error. Call it before gRPC is imported."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Indented("%(asctime)s %(levelname)s %(message)s"))
        handler.addFilter(Steady())


class Indented(logging.Formatter):
    """Writes where an error came from below its line, so that none begins like one."""

    # Any: as the base class has it.
    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the lines of an error."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {printable(line)}" for line in lines)


@dataclass(slots=True)
class _Allowance:
    """What may be written of one kind of line, and what was not."""

    room: float
    seen: float
    left_out: int = 0


class Steady(logging.Filter):
    """Leaves out lines of a kind that come too often.

    Args:
        clock: tells the time in seconds, and does not go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: defaultdict[tuple[str, int], _Allowance] = defaultdict(
            lambda: _Allowance(AT_ONCE, clock())
        )

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is written; say with it how many were not."""
        with self._lock:
            kind, now = self._kinds[record.pathname, record.lineno], self._clock()
            kind.room = min(AT_ONCE, kind.room + now - kind.seen)
            kind.seen = now
            if kind.room < 1:
                kind.left_out += 1
                return False
            kind.room -= 1
            left_out, kind.left_out = kind.left_out, 0
        said = printable(record.getMessage()[:_LENGTH])[:_LENGTH]
        if left_out:
            said += f" ({left_out:,} lines such as this were left out)"
        record.msg, record.args = said, ()
        return True
