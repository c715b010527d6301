"""Provenance: the digest of the computation that made a value, whoever ran it.

::

    rows = digest("load", "digits", "features")     # not whose
    step = digest("run", "aten.mul.Tensor", (rows, 0.5))
    step != digest("run", "aten.mul.Tensor", (rows, 0.25))

Rules:

- Two computations have one digest only if they are the same: what is hashed has one
  form in bytes, from which it can be read again. Numbers of different kinds differ, as
  do bytes and text.
- Names of sessions, ids and owners are in no digest.
- Of what nobody knows how it was made the digest is ``UNKNOWN``, and it equals no
  other, not even itself: ``alike``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

UNKNOWN = b""
"""Stands for a computation of which nothing is known."""

_encoder = msgspec.msgpack.Encoder(order="deterministic")


# object: whatever msgspec writes: numbers, text, bytes, lists, messages.
def digest(*parts: object) -> bytes:
    """Return the SHA-256 of what a computation is made of, in its one form.

    Args:
        parts: what kind of step it is, then numbers, text, parts of messages, and
            digests of what it was made of.
    """
    return hashlib.sha256(_encoder.encode(parts)).digest()


def alike(digests: Sequence[bytes]) -> bool:
    """Tell whether all come from one computation that is known."""
    return len(set(digests)) == 1 and UNKNOWN not in digests
