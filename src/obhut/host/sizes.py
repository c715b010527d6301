"""Sizes of memory as people write them: ``2 GiB``.

Rule: a number without a unit is refused, since bytes, megabytes and gigabytes
are all somebody's habit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

_UNITS: Mapping[str, int] = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)[ ]?([A-Za-z]{1,3})")


class Size(int):
    """Bytes, that print as people write them."""

    @classmethod
    def parse(cls, text: object) -> Size:
        """Return the bytes of ``2 GiB``, ``500 MB`` or ``1.5 GiB``.

        Raises:
            ValueError: if it is no size, or none of whole bytes above 0.
        """
        match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError('expected a size with its unit, such as "2 GiB"')
        size = Fraction(match[1]) * unit
        if size.denominator != 1 or not 0 < size < 2**63:
            raise ValueError(
                "expected a whole number of bytes, above 0 and below 2**63"
            )
        return cls(size)

    def __str__(self) -> str:
        for unit, name in (
            (2**40, "TiB"),
            (2**30, "GiB"),
            (2**20, "MiB"),
            (2**10, "KiB"),
        ):
            if self >= unit:
                return f"{int(self) / unit:.4g} {name}"
        return f"{int(self)} bytes"
