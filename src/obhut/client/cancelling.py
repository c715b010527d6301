"""Ctrl-C: what was asked of workers and is not done is given up.

Rules:

- What was asked is cancelled in all sessions: what was not sent is dropped, what a
  worker computes ends at its next operator, or batch of a program. At an owner's worker
  what was answered may not have been done on the rows: it is missing then.
- What names stand for is kept as the program believes it; a name of what was never
  made raises when it is used.
- Whether PyTorch records gradients, and asks classes of tensors, is as it was: Ctrl-C
  may come within the lines that put it back.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from obhut.errors import CancelledError

from .flights import REQUESTS_WAITING, Flight
from .unseen import Unseen

RANGES_REMEMBERED = 1_000
"""Ranges of ids of which is known that they may never have been made."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


# Any: sessions, whose class is defined above.
SESSIONS: weakref.WeakSet[Any] = weakref.WeakSet()
"""All that there are."""


def interrupted(stop: KeyboardInterrupt) -> None:
    """Cancel what was asked of all workers, and let Ctrl-C's exception say so."""
    for session in list(SESSIONS):
        said = session.cancel()
        if said:
            stop.add_note(said)


def interruptible(
    function: Callable[_Arguments, _Result],
) -> Callable[_Arguments, _Result]:
    """Let Ctrl-C inside a function cancel what was asked of all workers."""

    @functools.wraps(function)
    def guarded(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        records = torch.is_grad_enabled()
        asks = torch._C._get_torch_function_state()  # type: ignore[attr-defined] # no stub
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt as stop:
            torch._C._set_grad_enabled(records)
            torch._C._set_torch_function_state(asks)  # type: ignore[attr-defined] # likewise
            interrupted(stop)
            raise

    return guarded


def give_up(
    flights: deque[Flight], unmade: deque[range], unseen: Unseen, worker: str
) -> str:
    """Drop what was not sent, and let the worker compute no more of what was.

    Args:
        flights: a session's batches, changed to what is left of them.
        unmade: takes the ids that are not made now.
        unseen: the session's failures, of which none is raised any more.
        worker: the worker's name.

    Returns:
        What was given up, in words; empty if nothing was.
    """
    first, *rest = flights
    under_way = bool(rest) and not first.results and not first.cancelled
    waiting = rest or [first]
    items = [item for flight in waiting for item in flight.items]
    kept = [item for item in items if item[0].bookkeeping]
    dropped = [item for item in items if not item[0].bookkeeping]
    if not (dropped or under_way):
        return ""
    for flight in (*([first] if under_way else ()), *waiting):
        unmade.extend(flight.makes())
        for reference in flight.reshaped:
            # Any: a hold, whose class is defined above.
            held: Any = reference()
            if held is not None:
                held.spend("Ctrl-C cancelled what was to change its looks")
    flights.clear()
    if rest:
        flights.append(first)
    number = waiting[0].number
    for begin in range(0, max(len(kept), 1), REQUESTS_WAITING):
        # At least one: a number whose batch was refused is used again.
        mark = Flight(number)
        mark.items, mark.cancelled = kept[begin : begin + REQUESTS_WAITING], True
        flights.append(mark)
        number += 1
    flights.append(Flight(number))
    for flight in waiting:
        flight.refused = CancelledError("what was asked for", worker)
        flight.results, flight.items = True, []
    said = f"{worker}: what it was computing ends at the next operator"
    if dropped:
        site = f", from {dropped[0][1]} on" if dropped[0][1] else ""
        said = f"{worker}: {len(dropped):,} requests were cancelled{site}"
    for error in unseen.dropped():
        said += f"; before that: {error}"
    if under_way:
        first.cancel()
        if first.pending is not None:
            first.pending.cancel()
    return said
