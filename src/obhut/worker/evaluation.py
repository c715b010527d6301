"""The values of a sum, made once, when it leaves an aggregator.

Canonical: the result depends on the contributions and their coefficients and not on
the expression they came from.

- A value that is not finite counts as 0.
- With a clip norm, a contribution is scaled down to that L2 norm first.
- Contributions are added in float64, in the order of owners and keys, with whole
  coefficients that have no common factor. So all multiples of a sum are made of the
  same one: no factor rounds each owner's values by themselves.
- Where float64 would round, pairs of float64 do not: a mean of equal values is that
  value, in every dtype. Which it is depends on the owners' dtypes and coefficients, and
  not on the dtype in which it is to leave: another one would be another sum of them.
- What is the requester's own is added last, and decides nothing of how the owners' are
  added, for the same reason: beside a large number each owner's values would be
  rounded by themselves.

Leak: ``nonfinite`` says whose contributions had a value that is not finite, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import torch

from obhut.errors import InternalError
from obhut.guard.kinds import Combining, parse

from . import pairs
from .pairs import Pair
from .sums import Contribution, Sum

BLOCK = 1 << 18
"""Elements that are worked on at a time: they stay in a processor's cache."""

_EXACT = 2**53
"""Whole numbers up to this one are float64."""

_SHORT = frozenset(
    (torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex32)
)
"""What float64 holds with digits to spare: it may be rounded to it before."""

_LONG = frozenset((torch.float64, torch.int64, torch.uint64, torch.complex128))
"""What a sum in float64 may round."""


class Evaluated(NamedTuple):
    """The values of a sum.

    Attributes:
        values: (the sum's shape), of its dtype.
        nonfinite: the owners of contributions that are spoilt, or had values that are
            not finite.
    """

    values: torch.Tensor
    nonfinite: frozenset[str]


def keep(block: torch.Tensor) -> None:
    """Keep a block that was read where it is."""


def evaluate(
    of: Sum,
    clip_norm: float | None = None,
    passed: Callable[[torch.Tensor], None] = keep,
) -> Evaluated:
    """Return the values of a sum.

    Args:
        of: the sum.
        clip_norm: the L2 norm that a contribution of an owner has at most.
        passed: told of each block, (elements) of a contribution, in order, once it was
            read and is not needed for now.
    """
    terms = sorted(
        ((c, f) for c, f in of.terms.items() if f),
        key=lambda t: (not t[0].owner, t[0].owner, t[0].key),
    )
    with torch.no_grad():
        flats = [_flat(contribution.tensor) for contribution, _ in terms]
        scales = [_clip(c, clip_norm, passed) for c, _ in terms]
        owned = sum(1 for c, _ in terms if c.owner)
        nonfinite = [c.spoilt for c, _ in terms]
        if of.kind == "sum":
            fractions = [f for _, f in terms]
            theirs = _factors(fractions[:owned], scales[:owned])
            reduce = _beside(
                _linear(theirs, [flat.dtype for flat in flats[:owned]]),
                _in_pairs(_factors(fractions[owned:], scales[owned:])),
                owned,
            )
        else:
            reduce = _elementwise(parse(of.kind), scales)

        def clean(blocks: Sequence[torch.Tensor]) -> _Made:
            found = [_finite(block) for block in blocks]
            for index, (_, finite) in enumerate(found):
                nonfinite[index] |= not finite
            return reduce([block for block, _ in found])

        values = _by_block(of.shape, of.dtype, of.finish, flats, clean, passed)
    marked = zip(nonfinite, terms, strict=True)
    return Evaluated(
        values, frozenset(c.owner for n, (c, _) in marked if n and c.owner)
    )


def combine(
    values: Sequence[torch.Tensor],
    coefficients: Sequence[Fraction],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return a linear combination, rounded once; to whole numbers, to the nearest.

    Values that are not finite count as they are.

    Args:
        values: one or more, of one shape; all complex or none.
        coefficients: one a value.
        dtype: of the result; complex if the values are.
    """
    with torch.no_grad():
        flats = [_flat(value) for value in values]
        factors = _factors(coefficients, [1.0] * len(values))
        dtypes = [flat.dtype for flat in flats]
        reduce = _in_float64(factors) if dtype in _SHORT else _linear(factors, dtypes)
        return _by_block(tuple(values[0].shape), dtype, "", flats, reduce)


def elementwise(values: Sequence[torch.Tensor], kind: Combining) -> torch.Tensor:
    """Return what values are combined into, each element by itself.

    Args:
        values: floating-point tensors of one shape, more than twice ``kind.trim``.
        kind: how, a row of ``ELEMENTWISE``.
    """
    dtype = values[0].dtype
    with torch.no_grad():
        flats = [_flat(value) for value in values]
        reduce = _elementwise(kind, [1.0] * len(values))
        return _by_block(tuple(values[0].shape), dtype, "", flats, reduce)


_Made: TypeAlias = torch.Tensor | Pair
"""A block of a result, (size,) float64, or a pair of these."""

_Reduce: TypeAlias = Callable[[Sequence[torch.Tensor]], _Made]
"""Combines blocks, each (size,), into one."""


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's numbers in a row; complex ones as two each."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # PyTorch does not add floats of 8 bits
    return tensor.reshape(-1)


def _by_block(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    finish: str,
    flats: Sequence[torch.Tensor],
    reduce: _Reduce,
    passed: Callable[[torch.Tensor], None] = keep,
) -> torch.Tensor:
    """Return what flat tensors are combined into, of a shape and a dtype."""
    size = math.prod(shape) * (2 if dtype.is_complex else 1)
    if not flats:
        return torch.zeros(shape, dtype=dtype)
    real = dtype.to_real() if dtype.is_complex else dtype
    result = torch.empty(size, dtype=real, device=flats[0].device)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        made = reduce([flat[start:end] for flat in flats])
        result[start:end] = _finished(made, real, finish)
        for flat in flats:
            passed(flat[start:end])
    if dtype.is_complex:
        return torch.view_as_complex(result.reshape(*shape, 2))
    return result.reshape(shape)


def _finished(made: _Made, dtype: torch.dtype, finish: str) -> torch.Tensor:
    """Return a block in a dtype, or in one that is converted to it as it is."""
    if dtype.is_floating_point:
        total = made.rounded() if isinstance(made, Pair) else made
        if finish == "round":
            return total.round()
        return total.trunc() if finish == "trunc" else total
    return _pair(made).whole(finish)


def _pair(made: _Made) -> Pair:
    """Return a block as a pair."""
    return made if isinstance(made, Pair) else Pair(made, torch.zeros_like(made))


def _beside(theirs: _Reduce, own: _Reduce, owned: int) -> _Reduce:
    """Return what adds the requester's own to a sum of the owners'.

    Args:
        theirs: what adds the first blocks.
        own: what adds the others.
        owned: how many are the owners'.
    """

    def reduce(blocks: Sequence[torch.Tensor]) -> _Made:
        if owned == len(blocks):
            return theirs(blocks)
        made = own(blocks[owned:])
        return _pair(theirs(blocks[:owned])).plus(_pair(made)) if owned else made

    return reduce


def _linear(factors: _Factors, dtypes: Sequence[torch.dtype]) -> _Reduce:
    """Return what adds blocks, each with its factor.

    Args:
        factors: the factors.
        dtypes: of the blocks.
    """
    largest = sum(map(abs, factors.weights))
    exact = _LONG.isdisjoint(dtypes) and largest * 2**32 <= _EXACT
    return _in_float64(factors) if exact else _in_pairs(factors)


def _in_float64(factors: _Factors) -> _Reduce:
    def reduce(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros_like(blocks[0], dtype=torch.float64)
        for block, weight in zip(blocks, factors.weights, strict=True):
            total.add_(block, alpha=weight)
        if factors.shared != 1:
            total.mul_(factors.shared)
        if factors.divisor != 1:
            total.div_(factors.divisor)
        return total

    return reduce


def _in_pairs(factors: _Factors) -> _Reduce:
    def reduce(blocks: Sequence[torch.Tensor]) -> _Made:
        unit = pairs.units(blocks)
        made = (
            pairs.total(blocks, factors.weights, unit)
            .over(factors.divisor)
            .times(factors.shared)
        )
        return made if unit is None else made.rounded() * unit

    return reduce


def _elementwise(kind: Combining | None, scales: Sequence[float]) -> _Reduce:
    """Return what combines blocks, each scaled, in a way that is no sum."""
    if kind is None:
        raise InternalError("contributions are combined in no known way")
    return ELEMENTWISE[kind.name](kind, scales)


def _trimmed(kind: Combining, scales: Sequence[float]) -> _Reduce:
    """Return what leaves out so many at each end, and takes the mean of the rest.

    Source: Yin et al. 2018, arXiv 1803.01498, definition 2.
    """
    trim = kind.trim
    left = len(scales) - 2 * trim
    mean = _in_pairs(_factors([Fraction(1, left)] * left, [1.0] * left))

    def reduce(blocks: Sequence[torch.Tensor]) -> _Made:
        scaled = [b.double() * s for b, s in zip(blocks, scales, strict=True)]
        ordered = torch.stack(scaled).sort(dim=0).values
        return mean(ordered[trim : len(scales) - trim].unbind())

    return reduce


ELEMENTWISE: Mapping[str, Callable[[Combining, Sequence[float]], _Reduce]] = {
    "trimmed_mean": _trimmed,
}
"""How blocks, each with what it is scaled by, are combined, by the name of the way."""


def _finite(block: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return a block with 0 for what is not finite, and whether all was finite."""
    if not block.is_floating_point():
        return block, True
    # A sum is finite only if all is; one that overflows is looked at closely.
    if math.isfinite(block.sum(dtype=torch.float64).item()):
        return block, True
    clean = torch.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
    return clean, bool(torch.isfinite(block).all())


def _clip(
    contribution: Contribution,
    clip_norm: float | None,
    passed: Callable[[torch.Tensor], None],
) -> float:
    """Return what a contribution is scaled by to keep to the clip norm."""
    if clip_norm is None or not contribution.owner:
        return 1.0
    squares = 0.0
    flat = _flat(contribution.tensor)
    for start in range(0, len(flat), BLOCK):
        block = _finite(flat[start : start + BLOCK])[0].to(torch.float64)
        squares += float(block.dot(block))
        passed(flat[start : start + BLOCK])
    norm = math.sqrt(squares)
    return clip_norm / norm if norm > clip_norm else 1.0


class _Factors(NamedTuple):
    """What contributions are multiplied by.

    Attributes:
        weights: for each, without a common factor.
        shared: for the sum of these.
        divisor: what that is divided by.
    """

    weights: Sequence[float]
    shared: float
    divisor: float


def _factors(coefficients: Sequence[Fraction], scales: Sequence[float]) -> _Factors:
    """Return what contributions are multiplied by, beside what each is scaled by.

    Whole numbers over a common denominator, where float64 has them exactly: a mean
    is then a sum that is divided once, as one would write it.
    """
    common = math.lcm(*(f.denominator for f in coefficients))
    whole = [int(f * common) for f in coefficients]
    shared = math.gcd(*whole) or 1
    first = [n // shared for n in whole]
    # What weights are rounded to, if they are, is the same for all multiples.
    largest = max((abs(n) for n in first), default=1)
    unit = 1 if largest <= _EXACT else largest
    weights = [float(Fraction(n, unit)) for n in first]
    if max(common, shared * unit) <= _EXACT:
        times, divisor = float(shared * unit), float(common)
    else:
        times, divisor = float(Fraction(shared * unit, common)), 1.0
    scaled = [n * s for n, s in zip(weights, scales, strict=True)]
    return _Factors(scaled, times, divisor)
