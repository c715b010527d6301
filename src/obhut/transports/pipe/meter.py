"""How much processor time another process has used, as the kernel counts it.

Rules:

- All threads of the process count, and what it does between two messages too.
- A process that has been ended keeps its last reading: its number may be another's
  by then.

Source: clock_getcpuclockid(3); the number of such a clock is part of Linux's
interface (linux/posix-timers.h, MAKE_PROCESS_CPUCLOCK).
"""

from __future__ import annotations

import threading
import time

_SCHEDULED = 2  # CPUCLOCK_SCHED: in nanoseconds, not in ticks


class Meter:
    """The processor time of one process.

    Args:
        pid: the process, which was started a moment ago.
    """

    def __init__(self, pid: int) -> None:
        self._clock = (~pid << 3) | _SCHEDULED
        self._lock = threading.Lock()
        self._stopped = False
        self._seconds = 0.0

    def read(self) -> float:
        """Return the seconds of processor time until now, or until it stopped."""
        with self._lock:
            self._look()
            return self._seconds

    def stop(self) -> None:
        """Read for the last time. Call it before the process's number is let go of."""
        with self._lock:
            self._look()
            self._stopped = True

    def _look(self) -> None:
        if not self._stopped:
            try:
                now = time.clock_gettime(self._clock)
            except OSError:  # it is not there any more
                self._stopped = True
            else:
                self._seconds = max(self._seconds, now)


def available() -> bool:
    """Tell whether this system lets a process be measured."""
    try:
        time.clock_gettime((~1 << 3) | _SCHEDULED)
    except OSError:
        return False
    return True
