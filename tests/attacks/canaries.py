"""A judge that looks for private values in all that reached a requester.

Rules:

- Bytes are searched at each alignment for a value as float64, float32 and integer, in
  either order of bytes and of either sign.
- Numbers are compared by mantissa, so that a value is known when it was negated or
  multiplied by a power of two.
- Texts are searched for numbers of six digits and more.

What it can not see: values that were changed otherwise. That is for the solver.
"""

from __future__ import annotations

import bisect
import math
import re
import struct
from collections.abc import Iterable, Iterator

import torch

from .stage import Evidence

_NUMBER = re.compile(r"\d+\.?\d*(?:e[-+]?\d+)?", re.IGNORECASE)

_FEW = 16
"""In a tensor of more elements, one match by mantissa may be chance."""

_MANTISSAS = {torch.float64: 2.0**52, torch.float32: 2.0**23}
"""How many different mantissas there are."""


class Canaries:
    """Private values, in all forms in which they are looked for.

    Args:
        evidence: what owners hold.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._bytes: dict[int, dict[bytes, str]] = {4: {}, 8: {}}
        self._mantissas: dict[torch.dtype, dict[float, str]] = {
            torch.float64: {},
            torch.float32: {},
        }
        self._sorted: list[tuple[float, str]] = []
        for owner, tensors in evidence.private.items():
            for tensor in tensors:
                for value in tensor.reshape(-1).tolist():
                    if math.isfinite(value) and abs(value) > 1e5 * (
                        tensor.dtype is torch.int64
                    ):
                        self._add(owner, tensor.dtype, value)
        self._sorted.sort()

    def alarms(self, evidence: Evidence) -> Iterator[str]:
        """Yield what was found, and where."""
        for exchange in evidence.exchanges:
            for blob in (exchange.header, *exchange.frames):
                yield from self._in_bytes(blob)
            for values in exchange.values:
                yield from self._in_values(values)
            yield from self._in_text(exchange.header.decode(errors="ignore"))
        for text in evidence.printed:
            yield from self._in_text(text)

    def _add(self, owner: str, dtype: torch.dtype, value: float) -> None:
        for number in (value, -value):
            for form in ("<", ">"):
                if dtype is torch.float32:
                    self._bytes[4][struct.pack(f"{form}f", number)] = owner
                if dtype is torch.int64:
                    self._bytes[8][struct.pack(f"{form}q", int(number))] = owner
                self._bytes[8][struct.pack(f"{form}d", number)] = owner
        mantissa = abs(math.frexp(value)[0])
        self._mantissas[torch.float64][mantissa] = owner
        single = struct.unpack("f", struct.pack("f", mantissa))[0]
        self._mantissas[torch.float32][single] = owner
        self._sorted.append((abs(value), owner))

    def _in_bytes(self, blob: bytes) -> Iterator[str]:
        for size, known in self._bytes.items():
            for at in range(len(blob) - size + 1):
                owner = known.get(blob[at : at + size])
                if owner is not None:
                    yield f"a value of {owner} in bytes"
                    break

    def _in_values(self, values: torch.Tensor) -> Iterator[str]:
        if values.is_complex():
            values = torch.view_as_real(values.resolve_conj())
        if not values.is_floating_point():
            values = values.double()
        known = self._mantissas[
            torch.float64 if values.dtype is torch.float64 else torch.float32
        ]
        # A narrower dtype has too few digits to recognise anything by.
        if values.dtype not in self._mantissas:
            return
        mantissas = torch.frexp(values.reshape(-1)).mantissa.abs().tolist()
        found = [owner for one in mantissas if (owner := known.get(one))]
        chance = len(mantissas) * len(known) / _MANTISSAS[values.dtype]
        enough = 1 if len(mantissas) <= _FEW else 2 + 6 * chance
        if len(found) >= enough:
            yield f"{len(found)} values of {', '.join(sorted(set(found)))} in a tensor"

    def _in_text(self, text: str) -> Iterator[str]:
        for owner in self._matches(_NUMBER.findall(text)):
            yield f"a value of {owner} in a text"

    def _matches(self, numbers: Iterable[str]) -> Iterator[str]:
        for number in numbers:
            digits = len(number.lower().partition("e")[0].replace(".", "").lstrip("0"))
            if digits < 6:
                continue
            near = float(number)
            slack = near * 10.0 ** (1 - min(digits, 16))
            at = bisect.bisect_left(self._sorted, (near - slack, ""))
            if at < len(self._sorted) and self._sorted[at][0] <= near + slack:
                yield self._sorted[at][1]
