"""Rounds of federated averaging.

In a round each owner trains a copy of the model on its rows; the copies and their
losses move straight to an aggregator; the averages come back here.

Rules:

- From an owner's worker nothing is fetched. What comes here is an average over
  all owners: the model, and one loss.
- Each owner scales its own by its weight, and the aggregator adds them: so every
  sum that it releases is over all owners, with the coefficient 1 for each.
- A round is all or nothing: if an owner fails, its error is raised and the model
  stays as it was before the round.

Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1 (FederatedAveraging).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from obhut.client.functions import copy, get, move, send
from obhut.client.registry import Place

from .averaging import scale, to_shares, total
from .datasets import RemoteDataset
from .local import LocalTraining


@dataclass(frozen=True, slots=True)
class Round:
    """What is known of a round when it is over.

    Attributes:
        number: which it was, from 1.
        loss: the owners' training losses, averaged at the aggregator with the
            weights that the models were averaged with.
    """

    number: int
    loss: float


def train_round(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    training: LocalTraining,
    weights: Sequence[float] | None = None,
) -> float:
    """Train a model for one round; it changes in place.

    Leak: the average over the owners of their models, and of their losses, comes
    to this process; each owner's own goes to the aggregator. With one owner, the
    average is that owner's own.

    Args:
        model: here. Its mode, training or not, does not change.
        owners: the rows of each.
        aggregator: where the copies are averaged, itself or by id.
        training: what each owner does.
        weights: one an owner; by default how many rows it has.

    Returns:
        The owners' losses, averaged like the models.

    Raises:
        CallError: if there is no owner, or the weights do not fit.
        ObhutError: what went wrong at an owner or the aggregator.
    """
    shares = to_shares(
        [len(o) for o in owners] if weights is None else weights, len(owners)
    )
    models = [send(copy(model), owner.location) for owner in owners]
    losses = [training.run(m, o) for m, o in zip(models, owners, strict=True)]
    parts = [scale(trained, s) for trained, s in zip(models, shares, strict=True)]
    losses = [scale(loss, s) for loss, s in zip(losses, shares, strict=True)]
    for part, loss in zip(parts, losses, strict=True):
        move(part, aggregator)
        move(loss, aggregator)
    loss = get(total(losses))
    averaged = get(total(parts)).state_dict()
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            averaged[name] = averaged[name].round().to(value.dtype)
    model.load_state_dict(averaged)
    return float(loss)


def train_rounds(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    training: LocalTraining,
    rounds: int,
    weights: Sequence[float] | None = None,
) -> Iterator[Round]:
    """Train a model for several rounds; it changes in place.

    Duty: go through what this yields, as in ``for report in train_rounds(...)``.
    A round takes place when its report is asked for, so that the model can be
    tried out between rounds.

    Args:
        model: here.
        owners: the rows of each.
        aggregator: where the copies are averaged, itself or by id.
        training: what each owner does.
        rounds: how many.
        weights: one an owner; by default how many rows it has.

    Yields:
        A report of each round, after it.
    """
    for number in range(1, rounds + 1):
        yield Round(number, train_round(model, owners, aggregator, training, weights))
