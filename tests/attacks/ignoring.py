"""Tables and limits as they would be if some rules were not there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from types import MappingProxyType

from obhut.guard import coefficients
from obhut.ops import table
from obhut.ops.table import Flag, Row
from obhut.worker import executor, guarded

_GUARDS = frozenset((Flag.GUARD_REFUSED, Flag.GUARD_CHECKED))


@contextlib.contextmanager
def any_coefficient() -> Iterator[None]:
    """Let coefficients have any number of bits while inside."""
    check, fits = coefficients.check, coefficients.fits
    vars(coefficients).update(check=lambda one: one, fits=lambda one: True)
    try:
        yield
    finally:
        vars(coefficients).update(check=check, fits=fits)


@contextlib.contextmanager
def ignoring(flags: frozenset[Flag]) -> Iterator[None]:
    """Let workers of this process ignore flags while inside.

    A row whose results' size depends on values is refused for that reason: without
    ``DYNAMIC`` it is not.
    """
    if not flags:
        yield
        return
    read, rows = vars(guarded), table.ROWS
    checks = read["CHECKS"]
    _set(MappingProxyType({name: _without(row, flags) for name, row in rows.items()}))
    if Flag.GUARD_CHECKED in flags:
        read.update(CHECKS={})
    try:
        yield
    finally:
        _set(rows)
        read.update(CHECKS=checks)


def _set(rows: object) -> None:
    """Put another table in place, and forget what was read from the one before."""
    vars(table)["ROWS"] = rows
    executor.operator.cache_clear()
    guarded.guarded.cache_clear()


def _without(row: Row, flags: frozenset[Flag]) -> Row:
    gone = flags & row.flags
    if Flag.DYNAMIC in gone:
        gone |= _GUARDS
    return dataclasses.replace(row, flags=row.flags - gone) if gone else row
