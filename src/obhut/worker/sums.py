"""What an aggregator holds: sums of contributions that nobody has added up yet.

Rules:

- A sum is coefficients over contributions, as exact fractions; it has no values.
  Values are made once, at release, by ``evaluation``.
- Sums are immutable. What is not linear in the contributions, or would mix their
  elements, is no sum.
- What the requester sent itself is a contribution without an owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch

from obhut.errors import LimitError
from obhut.guard.policy import Quorum

TERMS_AT_MOST = 16_384
"""Contributions in one sum."""


class Contribution:
    """One tensor that was delivered or sent, as it came.

    Attributes:
        owner: who delivered it; empty for what the requester sent itself.
        key: what tells it from all others at this aggregator.
        tensor: its values.
        policy: the owner's policy; None if it has none.
        spoilt: whether its values never came; zeros stand for them.
        made: the digest of the computation that made it; empty if that is not known.
    """

    __slots__ = ("__weakref__", "key", "made", "owner", "policy", "spoilt", "tensor")

    def __init__(
        self,
        owner: str,
        key: str,
        tensor: torch.Tensor,
        policy: Quorum | None = None,
        spoilt: bool = False,
        made: bytes = b"",
    ) -> None:
        self.made = made
        self.owner = owner
        self.key = key
        self.tensor = tensor
        self.policy = policy
        self.spoilt = spoilt


@dataclass(frozen=True, slots=True)
class Sum:
    """A linear combination of contributions of as many elements.

    Attributes:
        terms: the coefficients, by contribution.
        shape: the sizes of the result.
        dtype: what the result is rounded to at the very end.
        kind: how the contributions are combined: ``sum``, or a named aggregator.
        finish: what is done to the result before it is converted: ``round``,
            ``trunc`` or nothing. What is finished takes part in no other sum.
        requires_grad: what a client that fetches it is told.
        shared: whether other names may stand for the same tensor, so that nothing
            may be written into it.
    """

    terms: Mapping[Contribution, Fraction]
    shape: tuple[int, ...]
    dtype: torch.dtype
    kind: str = "sum"
    finish: str = ""
    requires_grad: bool = False
    shared: bool = False

    @property
    def owned(self) -> dict[Contribution, Fraction]:
        """The terms that belong to owners."""
        return {c: f for c, f in self.terms.items() if c.owner}

    @property
    def open(self) -> bool:
        """Whether it may still take part in a sum."""
        return not self.finish and self.kind == "sum"

    def looking(self, shape: tuple[int, ...], dtype: torch.dtype) -> Sum:
        """Return the same elements in the same order, otherwise arranged."""
        return replace(self, shape=shape, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Stack:
    """Sums of one shape beside each other, as ``torch.stack`` puts them.

    Attributes:
        sums: what was stacked.
        dim: along which dimension of the result, from 0.
        shape: the sizes of the result.
        dtype: its dtype.
    """

    sums: tuple[Sum, ...]
    dim: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool = field(default=False)


def combined(
    parts: Iterable[tuple[Sum, Fraction]],
) -> dict[Contribution, Fraction]:
    """Return the terms of a linear combination of sums.

    Terms that cancel stay, with 0: who took part is part of what is decided on.

    Raises:
        LimitError: if there are too many terms.
    """
    terms: dict[Contribution, Fraction] = {}
    for part, factor in parts:
        for contribution, coefficient in part.terms.items():
            known = terms.get(contribution)
            scaled = coefficient * factor
            terms[contribution] = scaled if known is None else known + scaled
    if len(terms) > TERMS_AT_MOST:
        raise LimitError(f"a sum has at most {TERMS_AT_MOST:,} contributions")
    return terms
