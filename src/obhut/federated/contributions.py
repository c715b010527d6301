"""What owners deliver to an aggregator, and their sums, which come back.

Rules:

- All that an owner delivers moves at once, straight to the aggregator, which adds it
  with the same coefficient for each owner: weights are multiplied by at the owners.
- A weight that only the owner knows, how many rows it has, is delivered as well: then
  all owners ask for the same computation, and the sums are divided here.
- A product with a weight has more digits than what is multiplied. It is delivered in
  float64, and what float64 rounds off beside it, so that owners who deliver the same
  have that as their mean, whatever they weigh.
- Each owner also tells the aggregator whether all it delivers is finite. How many did
  not is one number over all owners, and comes here first: if it isn't 0, nothing else
  does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import nn

from obhut.client.aggregators import elementwise, weighted_sum
from obhut.client.functions import get, move, send
from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.client.remote_tensor import RemoteTensor
from obhut.errors import CallError, LocationError, NonFiniteError
from obhut.guard.coefficients import apportioned
from obhut.guard.kinds import Combining
from obhut.protocol.limits import HIDDEN_ROWS

from .averaging import to_whole

OnNonFinite: TypeAlias = Literal["raise", "skip"]
"""What to do if what an owner delivers is NaN or infinite, or failed."""

_DIGITS = {
    torch.bool: 1,
    torch.uint8: 8,
    torch.int8: 8,
    torch.bfloat16: 8,
    torch.float16: 11,
    torch.int16: 16,
    torch.float32: 24,
    torch.complex64: 24,
    torch.int32: 32,
}
"""Binary digits of a dtype's numbers; any other has as many as float64, or more."""

_FLOAT64 = 53
"""Digits of float64."""

_SHORT = 2**30
"""Weights that sum to no more make a coefficient that an audit can take, even twice: of
a product and of what it rounds off."""

MARK = 2.0**-40
"""What an owner delivers for yes, and 0 for no. No clip norm is as small."""


def weights_of(
    owners: Sequence[RemoteDataset], weights: Sequence[float] | None
) -> list[int] | Counts:
    """Return what owners' values weigh: as given, or as many rows as each has.

    Args:
        owners: the rows of each.
        weights: one an owner; None for their rows, which owners then count themselves,
            unless all are known to have as many.

    Raises:
        CallError: if there is no owner, or the weights do not fit.
    """
    if weights is not None:
        return to_whole(weights, len(owners))
    if any(isinstance(owner, HiddenDataset) for owner in owners):
        return Counts([owner.count() for owner in owners], HIDDEN_ROWS)
    rows = [len(owner) for owner in owners]
    if len(set(rows)) > 1:
        return Counts([owner.count() for owner in owners], max(rows))
    return to_whole(rows, len(owners))


def check_choice(on_non_finite: str) -> None:
    """Check what is to be done if values are not finite.

    Raises:
        CallError: if it is none of the choices.
    """
    choices = get_args(OnNonFinite)
    if on_non_finite not in choices:
        raise CallError(
            f"expected on_non_finite to be one of {', '.join(choices)}, got "
            f"{on_non_finite!r}"
        )


def at_owner(value: torch.Tensor | float, data: RemoteDataset) -> torch.Tensor:
    """Return a number as a tensor where an owner's rows are, float64."""
    if isinstance(value, RemoteTensor):
        return value if value.dtype is torch.float64 else value.to(torch.float64)
    return send(torch.as_tensor(value, dtype=torch.float64), data.location)


def collected(
    parts: Sequence[Sequence[torch.Tensor]],
    aggregator: Place | str,
    dtypes: Sequence[torch.dtype],
    weights: Sequence[int] | Counts | None = None,
    advice: str = "",
    *,
    sums: Sequence[Sequence[torch.Tensor]] = (),
    rounding: Mapping[int, Rounding] | None = None,
) -> list[torch.Tensor]:
    """Return the sum or the weighted mean over owners of each of their tensors.

    Leak: the sums come to this process, and how many owners had values that are not
    finite; each owner's own goes to the aggregator.

    Args:
        parts: for each owner its tensors, which are there. They are moved away.
        aggregator: where they are added, itself or by id.
        dtypes: the results', one for each of an owner's tensors.
        weights: for a mean: whole numbers, one an owner, or what the owners count.
            None for a sum.
        advice: what the error says after how many owners there were.
        sums: for each owner tensors that are there and are summed beside a mean.
        rounding: what makes another dtype of what is delivered, by a tensor's place.

    Returns:
        For each of an owner's tensors one over all owners, here; then the sums,
        float64.

    Raises:
        NonFiniteError: if some values are not finite; no sum was fetched then.
    """
    scaling: _Scaling | _Counting
    if isinstance(weights, Counts):
        scaling = _Counting(weights)
    else:
        scaling = _Scaling([1] * len(parts) if weights is None else weights)
    added, rounding = sums or [()] * len(parts), rounding or {}
    packed = [
        [
            *scaling.counted(owner),
            *(
                scaling.products(tensor, owner, rounding.get(place))
                for place, tensor in enumerate(tensors)
            ),
        ]
        for owner, tensors in enumerate(parts)
    ]
    parcels = [
        _parcel(
            [
                _spoilt([*tensors, *more]),
                *(one for products in mine for one in products),
                *(one.detach() for one in more),
            ]
        )
        for tensors, mine, more in zip(parts, packed, added, strict=True)
    ]
    for parcel in parcels:
        move(parcel, aggregator)
    flags, *columns = zip(*(parcel.buffers() for parcel in parcels), strict=True)
    session = WORKERS.find(aggregator).session
    with session.counting() as counts:
        spoilt = get(weighted_sum(flags)).item() / MARK
        count = max(round(spoilt), *counts, 0)
        if not count:
            mean = weights is not None
            rest = iter(columns)
            totals = [
                one
                for products, dtype in zip(
                    packed[0],
                    [*[torch.float64] * (len(packed[0]) - len(dtypes)), *dtypes],
                    strict=True,
                )
                for one in scaling.totals([next(rest) for _ in products], dtype, mean)
            ]
            own = len(totals)
            totals += [weighted_sum(column, dtype=torch.float64) for column in rest]
            found = list(get(_parcel(totals)).buffers())
            values = [*scaling.values(found[:own], dtypes), *found[own:]]
            count = max(counts, default=0)
    if count:
        raise NonFiniteError(count, len(parts), advice)
    return values


def trimmed(
    parts: Sequence[Sequence[torch.Tensor]],
    aggregator: Place | str,
    dtypes: Sequence[torch.dtype],
    trim: int,
    advice: str = "",
) -> list[torch.Tensor]:
    """Return each element's mean over owners, without its extremes.

    An aggregator under a policy releases nothing else of what owners deliver, neither
    sums nor how many are not finite, but for what it counts in the means themselves.

    Args:
        parts: for each owner its tensors, which are there. They are moved away.
        aggregator: where the means are made, itself or by id.
        dtypes: the results', one for each of an owner's tensors.
        trim: how many are left out at each end.
        advice: what the error says after how many owners there were.

    Returns:
        For each of an owner's tensors one over all owners, here.

    Raises:
        NonFiniteError: if some values are not finite.
    """
    parcels = [
        _parcel(
            [
                one.detach() if one.is_floating_point() else one.to(torch.float64)
                for one in tensors
            ]
        )
        for tensors in parts
    ]
    for parcel in parcels:
        move(parcel, aggregator)
    kind = Combining("trimmed_mean", trim)
    columns = zip(*(parcel.buffers() for parcel in parcels), strict=True)
    session = WORKERS.find(aggregator).session
    with session.counting() as counts:
        found = get(_parcel([elementwise(column, kind) for column in columns]))
    count = max(counts, default=0)
    if count:
        raise NonFiniteError(count, len(parts), advice)
    return [
        (one if dtype.is_floating_point else one.round()).to(dtype)
        for one, dtype in zip(found.buffers(), dtypes, strict=True)
    ]


Share: TypeAlias = torch.Tensor | float | None
"""What an owner multiplies by; None for 1."""

Rounding: TypeAlias = Callable[[torch.Tensor, int, Share], torch.Tensor]
"""Returns, at an owner of such a number, what is delivered of a product."""


class Counts(NamedTuple):
    """How many rows each owner has, which only the owner need know.

    Attributes:
        rows: one an owner, there: a scalar, float64.
        most: what none of them has more than.
    """

    rows: Sequence[torch.Tensor]
    most: int


class _Counting:
    """How owners multiply by their rows, and what is divided by here.

    Args:
        counts: how many there are.
    """

    def __init__(self, counts: Counts) -> None:
        # Products are as large as what is multiplied, or smaller: none overflows.
        self._shares = [
            one / 2 ** (counts.most - 1).bit_length() for one in counts.rows
        ]
        self._digits = counts.most.bit_length()
        self._exact: list[bool] = []  # of each tensor, whether one product is enough
        self._rounded: list[bool] = []  # and whether it was rounded

    def counted(self, owner: int) -> list[list[torch.Tensor]]:
        """Return, at an owner, its rows, which are summed first."""
        return [[self._shares[owner]]]

    def products(
        self, x: torch.Tensor, owner: int, rounding: Rounding | None = None
    ) -> list[torch.Tensor]:
        """Return, at an owner, what sums to a tensor times its rows.

        It is exact, unless it is rounded.
        """
        dtype = torch.complex128 if x.is_complex() else torch.float64
        share = self._shares[owner]
        exact = self._digits + _DIGITS.get(x.dtype, _FLOAT64) <= _FLOAT64
        if not owner:
            self._exact.append(exact)
            self._rounded.append(rounding is not None)
        if rounding is not None:
            return [rounding(x.detach(), owner, share.to(x.dtype))]
        wide = x.detach().to(dtype)
        if exact:
            return [wide * share]
        high, low = _halves(wide)
        return [high * share, low * share]

    def totals(
        self,
        columns: Sequence[Sequence[torch.Tensor]],
        dtype: torch.dtype,
        mean: bool,
    ) -> list[torch.Tensor]:
        """Return, at the aggregator, the sums of all owners' products."""
        # Of what was rounded a sum has as many digits as the result.
        short = columns[0][0].itemsize < dtype.itemsize
        return [weighted_sum(one, dtype=dtype if short else None) for one in columns]

    def values(
        self, sums: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]
    ) -> list[torch.Tensor]:
        """Return the means, here."""
        rows, *others = sums
        rest = iter(others)
        return [
            next(rest).div_(rows)
            if rounded
            else _quotient(
                next(rest), torch.zeros(()) if exact else next(rest), rows, dtype
            )
            for dtype, exact, rounded in zip(
                dtypes, self._exact, self._rounded, strict=True
            )
        ]


def _quotient(
    high: torch.Tensor, low: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return a sum of two parts, divided by the rows and rounded once."""
    mean = (high + low) / rows
    # What the quotient rounds off.
    above, below = _halves(mean)
    mean = mean + ((high - above * rows) + (low - below * rows)) / rows
    if dtype.is_floating_point or dtype.is_complex:
        return mean.to(dtype)
    return mean.round().to(dtype)


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors of half the digits, which sum to a float64 one.

    Source: Dekker 1971, Numerische Mathematik 18, 224 to 242.
    """
    if x.is_complex():
        high, low = _halves(torch.view_as_real(x))
        return torch.view_as_complex(high), torch.view_as_complex(low)
    large = x * (2.0**27 + 1)
    high = large - (large - x)
    return high, x - high


class _Scaling:
    """How owners multiply, and what the aggregator divides by.

    Args:
        weights: whole numbers, one an owner, not all 0.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._equal = len(set(weights)) == 1
        if sum(weights) > _SHORT:
            # In these units they sum to 1: then nothing is left to divide by.
            weights = apportioned(weights, 2**_FLOAT64)
        self._weights = weights
        self._sum = sum(weights)
        # Products are as large as what is multiplied, or smaller: none overflows.
        self._power = 2 ** (self._sum - 1).bit_length()
        self._digits = max(weight.bit_length() for weight in weights)

    def counted(self, owner: int) -> list[list[torch.Tensor]]:
        """Return nothing: the weights are known here."""
        return []

    def products(
        self, x: torch.Tensor, owner: int, rounding: Rounding | None = None
    ) -> list[torch.Tensor]:
        """Return, at an owner, what sums to a tensor times its weight.

        It is exact, unless it is rounded.
        """
        if self._equal:
            x = x.detach()
            return [x if rounding is None else rounding(x, owner, None)]
        dtype = torch.complex128 if x.is_complex() else torch.float64
        weight, power = self._weights[owner], self._power
        if rounding is not None:
            return [rounding(x.detach(), owner, weight / power)]
        product = weighted_sum([x], [weight], power, dtype)
        if self._digits + _DIGITS.get(x.dtype, _FLOAT64) <= _FLOAT64:
            return [product]
        return [product, weighted_sum([x, product], [weight, -power], power, dtype)]

    def values(
        self, sums: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype]
    ) -> list[torch.Tensor]:
        """Return what was divided already."""
        return list(sums)

    def totals(
        self,
        columns: Sequence[Sequence[torch.Tensor]],
        dtype: torch.dtype,
        mean: bool,
    ) -> list[torch.Tensor]:
        """Return, at the aggregator, the sum of all owners' products.

        Args:
            columns: the first product of each owner, and so on.
            dtype: the result's.
            mean: whether it is divided by the sum of the weights.
        """
        parts = [part for column in columns for part in column]
        power = 1 if self._equal else self._power
        divisor = len(columns[0]) if self._equal else self._sum
        shared = math.gcd(power, divisor)
        summed = weighted_sum(
            parts,
            [power // shared] * len(parts) if mean else None,
            divisor // shared if mean else 1,
            dtype,
        )
        return [summed]


def _spoilt(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return, at an owner, 0 if all of its tensors are finite, () float64."""
    sums = []
    for tensor in tensors:
        x = tensor.detach()
        x = torch.view_as_real(x) if x.is_complex() else x
        if x.is_floating_point() and x.itemsize in (1, 8):
            # No sum of finite numbers overflows.
            x = x.to(torch.float64) * 2.0**-64
        sums.append(x.sum(dtype=torch.float64))
    finite = torch.stack(sums).isfinite().all()
    return finite.logical_not().to(torch.float64) * MARK


def _parcel(tensors: Sequence[torch.Tensor]) -> nn.Module:
    """Return tensors as a module, which travels at once."""
    parcel = nn.Module()
    for number, tensor in enumerate(tensors):
        if not isinstance(tensor, RemoteTensor):
            raise LocationError(
                "a contribution", ["this process"], "return what was computed there"
            )
        parcel.register_buffer(str(number), tensor)
    return parcel
