"""Rounds of federated training.

In a round each owner trains a copy of the model on its rows; the copies and their
results move straight to an aggregator; averages and sums come back here.

::

    for report in train_rounds(model, owners, aggregator, training, rounds=5):
        print(report.number, report.loss)

Rules:

- From an owner's worker nothing is fetched. What comes here is an average over
  all owners: the model, and sums of what their trainings return.
- Each owner scales its own by its weight, and the aggregator adds them: so every
  sum that it releases is over all owners, with the same coefficient for each. What is
  drawn in a round is drawn from one seed at all owners.
- What a training returns are numerators and denominators, both summed: a loss is the
  mean over all rows, whatever the owners weigh.
- A round is all or nothing: if an owner fails, or delivers values that are not finite,
  an error is raised and the model stays as it was before the round.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from obhut.client.cancelling import interruptible
from obhut.client.programs import Program
from obhut.client.ratio import Ratio
from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError, NonFiniteError, ProgramError

from .clients import Clients
from .contributions import (
    OnNonFinite,
    Rounding,
    Share,
    at_owner,
    check_choice,
    collected,
    trimmed,
    weights_of,
)
from .history import Round
from .local import LocalTraining, set_training
from .parameters import (
    check_looks,
    is_finite,
    kept,
    less_constants,
    named_tensors,
    snapshot,
    taken_back,
    taking_part,
    with_constants,
)
from .staying import Apart, Own, Staying
from .strategies import Delivered, FedAvg, Strategy
from .together import EXACTLY, UNWRITTEN, How, Wanted, Written, opened
from .wire import Wire, changed

_LOG = logging.getLogger("obhut.federated")

# Any below: a training returns what it likes, which is checked.

Training: TypeAlias = LocalTraining | Callable[[nn.Module, Any], Any]
"""A ``LocalTraining``, or a function of a model and data."""


class Running:
    """Runs a training at owners, for one round.

    Args:
        training: the training.
        seed: of all that is drawn.
        number: the round's, from 1.
        keep: the names of what stays at owners.
        share: how many of all owners take part in the round.

    Attributes:
        training: as given.
        number: as given.
        share: as given.
        own: what the owner kept where it runs now.
    """

    def __init__(
        self,
        training: Training,
        seed: int,
        number: int,
        keep: Sequence[str] = (),
        share: float = 1.0,
    ) -> None:
        self.training = training
        self.own: Mapping[str, torch.Tensor] = {}
        self.share = share
        self._seed = seed
        self.number = number
        self._keep = keep

    def taking_part(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return what of a model is averaged, by name."""
        return taking_part(model, self._keep)

    def __call__(
        self,
        model: nn.Module,
        data: RemoteDataset,
        drift: nn.Module | None = None,
    ) -> dict[str, Ratio]:
        """Train a model, which is at an owner, in place; return its results.

        Args:
            model: the model.
            data: the owner's rows.
            drift: as for ``LocalTraining.results``.
        """
        if isinstance(self.training, LocalTraining):
            found = self.training.results(
                model, data, seed=self._seed, round=self.number, drift=drift
            )
            return found if drift is not None else {"loss": found["loss"]}
        set_training(model)
        program = _program(self.training)
        try:
            program.record(model=model, data=data)
        except ProgramError as error:
            program.fall_back(error, data)
            returned = self.training(model, data)
        else:
            returned = program.run(model=model, data=data, seed=self._seed)
        return _results(returned)


@functools.lru_cache(maxsize=64)
def _program(training: Callable[[nn.Module, Any], Any]) -> Program:
    """Return a training as a program, the same for the same."""
    if isinstance(training, Program):
        return training

    def train(model: nn.Module, data: Any) -> Any:
        return training(model, data)

    return Program(train)


def _results(returned: Any) -> dict[str, Ratio]:
    """Return what a training returned, by name."""
    if returned is None:
        return {}
    named = {"loss": returned} if isinstance(returned, Ratio) else returned
    if not isinstance(named, Mapping) or not all(
        isinstance(one, Ratio) for one in named.values()
    ):
        raise CallError(
            "expected a training to return ratios by name: "
            '{"loss": obhut.Ratio(total, rows)}; got '
            f"{type(returned).__name__}"
        )
    return {str(name): ratio for name, ratio in named.items()}


_ADVICE = (
    "the model is as it was before the round. Look for empty cells in their rows, "
    'train with a lower learning rate, or skip such rounds: on_non_finite="skip"'
)


@interruptible
def play(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    running: Running,
    strategy: Strategy,
    *,
    weights: Sequence[float] | None = None,
    staying: Staying | None = None,
    keep: Sequence[str] = (),
    wire: Wire | None = None,
    store: Callable[[Mapping[int, Own]], None] | None = None,
    as_it_was: nn.Module | None = None,
    places: Sequence[int] | None = None,
    how: How = EXACTLY,
) -> dict[str, torch.Tensor]:
    """Play one round; the model changes in place.

    Args:
        model: here.
        owners: the rows of each.
        aggregator: where the copies are averaged, itself or by id.
        running: the training.
        strategy: what is sent, done and made of it.
        weights: one an owner; by default how many rows it has.
        staying: what stays at owners, which is changed.
        keep: the names of what never leaves them.
        wire: rounds what travels.
        store: called with what each owner keeps, by its number, before the model
            changes.
        as_it_was: a snapshot of the model, if the caller has one.
        places: the owners' numbers among all; by default these are all.
        how: simulated clients are computed.

    Returns:
        What the training returned, over all owners' rows, by name.

    Raises:
        CallError: if there is no owner, or the weights do not fit.
        NonFiniteError: if what an owner delivers is NaN or infinite, or failed.
    """
    staying = staying or Staying()
    as_it_was = snapshot(model) if as_it_was is None else as_it_was
    made = strategy.sent(model)
    before = as_it_was if made is model else snapshot(made)
    came: _Came | None = None
    if isinstance(owners, Clients):
        is_plain = wire is None and not strategy.trim and not staying.own
        if is_plain and _all_finite(before):
            came = _together(
                owners, before, running, strategy, weights, staying, keep, how
            )
        if came is None:
            opened(owners, staying)
        places = owners.places
    if came is None:
        came = _one_by_one(
            before,
            owners,
            aggregator,
            running,
            strategy,
            weights,
            staying,
            keep,
            wire,
            range(len(owners)) if places is None else places,
        )
    if store is not None:
        store({**staying.own, **came.own})
    with taken_back(named_tensors(model), named_tensors(as_it_was)):
        strategy.update(model, came.mean)
    if wire is not None:
        wire.commit()
    staying.own |= came.own
    staying.apart |= came.apart
    return came.values


class _Came(NamedTuple):
    """What came of a round.

    Attributes:
        mean: over the owners, by the names of what each delivered.
        values: what the training returned, over all rows, by name.
        own: what each keeps, by its number.
        apart: what simulated clients keep, likewise.
    """

    mean: dict[str, torch.Tensor]
    values: dict[str, torch.Tensor]
    own: Mapping[int, Own] = MappingProxyType({})
    apart: Mapping[int, Apart] = MappingProxyType({})


def _all_finite(model: nn.Module) -> bool:
    """Tell whether a model is finite; what is not takes no part in a sum of changes."""
    return all(is_finite(one) for one in named_tensors(model).values())


def _together(
    clients: Clients,
    before: nn.Module,
    running: Running,
    strategy: Strategy,
    weights: Sequence[float] | None,
    staying: Staying,
    keep: Sequence[str],
    how: How,
) -> _Came | None:
    """Play a round at all simulated clients at once; None if that can't be."""
    names: list[str] = []
    first = named_tensors(before)

    def local(data: RemoteDataset, own: Own) -> Wanted:
        mine = Staying({0: own})
        there = mine.sent(before, data, 0, keep)
        sent = named_tensors(there)
        running.own = own.more
        delivered = strategy.local(running, there, data)
        check_looks(there, before)
        names[:] = delivered.results
        return Wanted(
            dict(delivered.averaged),
            sent,
            first,
            [
                at_owner(part, data)
                for one in delivered.results.values()
                for part in one
            ],
            Own(kept(there, keep), delivered.own),
            data.count() if weights is None and clients.only is not None else None,
            by_rows=clients.only is None,
        )

    try:
        written = Written(clients, local, staying)
    except UNWRITTEN as error:
        _LOG.debug("clients are asked one by one: %s", error)
        return None
    found = written.played(weights, _ADVICE, how)
    sums = iter(found.sums)
    values = {name: next(sums) / next(sums) for name in names}
    return _Came(found.means, values, apart=found.own)


def _one_by_one(
    before: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    running: Running,
    strategy: Strategy,
    weights: Sequence[float] | None,
    staying: Staying,
    keep: Sequence[str],
    wire: Wire | None,
    places: Sequence[int],
) -> _Came:
    """Play a round at each owner, and average at the aggregator."""
    weighing = None if strategy.trim else weights_of(owners, weights)
    first = named_tensors(before)
    sent = _send(before, owners, staying, keep, wire, places)
    delivered: list[Delivered] = []
    for place, one, owner in zip(places, sent, owners, strict=True):
        running.own = staying.own.get(place, Own()).more
        delivered.append(strategy.local(running, one.model, owner))
    for one in sent:
        check_looks(one.model, before)
    names, ratios = [*delivered[0].averaged], [*delivered[0].results]
    changes = [name for name in names if name in sent[0].began]  # all were finite
    constant = [
        name
        for name in names
        if name in first and name not in changes and not is_finite(first[name])
    ]
    parts = [
        _tensors(one, names, constant, first, there.began)
        for one, there in zip(delivered, sent, strict=True)
    ]
    dtypes = [
        *(delivered[0].averaged[name].dtype for name in names),
        *(torch.float64 for _ in constant),
    ]
    sums = [
        [at_owner(part, owner) for name in ratios for part in one.results[name]]
        for one, owner in zip(delivered, owners, strict=True)
    ]
    if strategy.trim:
        quotients = [
            [above / below for above, below in zip(one[::2], one[1::2], strict=True)]
            for one in sums
        ]
        found = trimmed(
            [[*one, *more] for one, more in zip(parts, quotients, strict=True)],
            aggregator,
            [*dtypes, *(torch.float64 for _ in ratios)],
            strategy.trim,
            _ADVICE,
        )
    else:
        found = collected(
            parts,
            aggregator,
            dtypes,
            weighing,
            _ADVICE,
            sums=sums,
            rounding={
                names.index(name): _rounding(wire, name, places)
                for name in changes
                if wire is not None
            },
        )
    rest = iter(found)
    mean = {name: next(rest) for name in names}
    for name in changes:
        mean[name].add_(first[name])
    for name in constant:
        mean[name] = with_constants(mean[name], next(rest), first[name])
    trims = bool(strategy.trim)
    values = {name: next(rest) / (1 if trims else next(rest)) for name in ratios}
    own = {
        place: Own(kept(there.model, keep), one.own)
        for place, there, one in zip(places, sent, delivered, strict=True)
    }
    return _Came(mean, values, own)


def _rounding(wire: Wire, name: str, places: Sequence[int]) -> Rounding:
    """Return what rounds what owners deliver of a tensor, by their numbers here."""

    def rounded(change: torch.Tensor, owner: int, share: Share) -> torch.Tensor:
        return wire.rounded(change, places[owner], share, name)

    return rounded


class _Sent(NamedTuple):
    """What an owner got.

    Attributes:
        model: the copy that is there.
        began: by name, what came rounded and what it was, for what training changed.
    """

    model: nn.Module
    began: Mapping[str, torch.Tensor]


def _send(
    before: nn.Module,
    owners: Sequence[RemoteDataset],
    staying: Staying,
    keep: Sequence[str],
    wire: Wire | None,
    places: Sequence[int],
) -> list[_Sent]:
    """Send a model to all owners, but for what they have of it."""
    if wire is None:
        return [
            _Sent(staying.sent(before, owner, place, keep), {})
            for place, owner in zip(places, owners, strict=True)
        ]
    packed = wire.packed(
        {
            name: one
            for name, one in taking_part(before, keep).items()
            if wire.takes(one) and is_finite(one)
        }
    )
    sent: list[_Sent] = []
    for place, owner in zip(places, owners, strict=True):
        taken, began = wire.unpacked(packed, before, owner)
        sent.append(_Sent(staying.sent(before, owner, place, keep, taken), began))
    return sent


def _tensors(
    delivered: Delivered,
    names: Sequence[str],
    constant: Sequence[str],
    first: Mapping[str, torch.Tensor],
    began: Mapping[str, torch.Tensor],
) -> list[torch.Tensor]:
    """Return what an owner delivers, and marks of what became finite after it.

    Of what came rounded, it is what training changed.
    """
    tensors, marks = dict(delivered.averaged), []
    if [*tensors] != [*names]:
        raise CallError("expected a strategy that delivers the same of each owner")
    for name in [name for name in tensors if name in began]:
        tensors[name] = changed(tensors[name], began[name])
    for name in constant:
        tensors[name], mark = less_constants(tensors[name], first[name])
        marks.append(mark)
    return [*tensors.values(), *marks]


def loss_of(values: Mapping[str, torch.Tensor]) -> float:
    """Return a round's loss, or NaN if the training returned none."""
    return float(values["loss"]) if "loss" in values else math.nan


def train_round(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    training: Training,
    weights: Sequence[float] | None = None,
    *,
    on_non_finite: OnNonFinite = "raise",
) -> float:
    """Train a model for one round; it changes in place.

    Leak: the average over the owners of their models, and sums of their losses, come
    to this process; each owner's own goes to the aggregator. With one owner, the
    average is that owner's own.

    Args:
        model: here. Its modules' modes, training or not, do not change; a module that
            was set to ``eval()`` alone stays so at the owners.
        owners: the rows of each.
        aggregator: where the copies are averaged, itself or by id.
        training: what each owner does.
        weights: one an owner; by default how many rows it has.
        on_non_finite: if an owner delivers what is NaN or infinite, or failed,
            ``raise`` the error, or ``skip`` the round: the model stays as it was.

    Returns:
        The mean loss over all rows; NaN if the round was skipped.

    Raises:
        CallError: if there is no owner, or the weights do not fit.
        NonFiniteError: if an owner's model or loss is NaN or infinite, or failed.
        ObhutError: what went wrong at an owner or the aggregator.
    """
    (report,) = train_rounds(
        model, owners, aggregator, training, 1, weights, on_non_finite=on_non_finite
    )
    return report.loss


def train_rounds(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    training: Training,
    rounds: int,
    weights: Sequence[float] | None = None,
    *,
    on_non_finite: OnNonFinite = "raise",
) -> Iterator[Round]:
    """Train a model for several rounds; it changes in place.

    Duty: go through what this yields, as in ``for report in train_rounds(...)``.
    A round takes place when its report is asked for, so that the model can be
    tried out between rounds. ``Federation.fit`` does that, and more.

    Args:
        model: here.
        owners: the rows of each.
        aggregator: where the copies are averaged, itself or by id.
        training: what each owner does.
        rounds: how many.
        weights: one an owner; by default how many rows it has.
        on_non_finite: as for ``train_round``; a round that is skipped has a report.

    Yields:
        A report of each round, after it.
    """
    check_choice(on_non_finite)
    strategy, staying = FedAvg(), Staying()
    generator = getattr(training, "generator", None)
    for number in range(1, rounds + 1):
        seed = int(torch.randint(2**62, (), generator=generator))
        running = Running(training, seed, number)
        try:
            values = play(
                model,
                owners,
                aggregator,
                running,
                strategy,
                weights=weights,
                staying=staying,
            )
            report = Round(number, loss_of(values))
        except NonFiniteError as error:
            if on_non_finite == "raise":
                raise
            report = Round(number, math.nan, non_finite=error.owners)
        yield report
