"""Rounds of federated averaging.

In a round each owner trains a copy of the model on its rows; the copies and their
losses move straight to an aggregator; the averages come back here.

Rules:

- From an owner's worker nothing is fetched. What comes here is an average over
  all owners: the model, and one loss.
- Each owner scales its own by its weight, and the aggregator adds them: so every
  sum that it releases is over all owners, with the same coefficient for each. What is
  drawn in a round is drawn from one seed at all owners.
- What requires gradients, and buffers, come back, each once, also those that a state
  dictionary leaves out. A frozen parameter goes to the owners and stays as it is here,
  whatever became of it there. Extra state of modules is the caller's and stays, too.
- A value that isn't finite in the model, as in a mask of -inf, stays as it is, unless
  it becomes finite at all owners, as the range of an observer: so their mean would. An
  owner where it becomes another one that isn't finite has spoilt the round.
- A round is all or nothing: if an owner fails, or delivers values that are not finite,
  an error is raised and the model stays as it was before the round.

Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1 (FederatedAveraging).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from obhut.client.cancelling import interruptible
from obhut.client.functions import copy, send
from obhut.client.modules import send_copy
from obhut.client.registry import Place
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError, NonFiniteError

from .contributions import MARK, OnNonFinite, check_choice, collected, weights_of
from .local import LocalTraining


@dataclass(frozen=True, slots=True)
class Round:
    """What is known of a round when it is over.

    Attributes:
        number: which it was, from 1.
        loss: the owners' training losses, averaged at the aggregator with the
            weights that the models were averaged with; NaN if the round was skipped.
        non_finite: how many owners delivered what can not be used: it is NaN or
            infinite, or failed. If any did, the round was skipped and the model is as
            it was.
    """

    number: int
    loss: float
    non_finite: int = 0


def train_round(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    training: LocalTraining,
    weights: Sequence[float] | None = None,
    *,
    on_non_finite: OnNonFinite = "raise",
) -> float:
    """Train a model for one round; it changes in place.

    Leak: the average over the owners of their models, and of their losses, comes
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
        The owners' losses, averaged like the models; NaN if the round was skipped.

    Raises:
        CallError: if there is no owner, or the weights do not fit.
        NonFiniteError: if an owner's model or loss is NaN or infinite, or failed.
        ObhutError: what went wrong at an owner or the aggregator.
    """
    check_choice(on_non_finite)
    try:
        return _round(model, owners, aggregator, training, weights)
    except NonFiniteError:
        if on_non_finite == "raise":
            raise
        return math.nan


@interruptible
def _round(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    training: LocalTraining,
    weights: Sequence[float] | None,
) -> float:
    weighing = weights_of(owners, weights)
    named = _trainable(model)
    before = copy(model)
    models = [send_copy(before, owner.location) for owner in owners]
    seed = int(torch.randint(2**62, (), generator=training.generator))
    sums = [training.run(m, o, seed=seed) for m, o in zip(models, owners, strict=True)]
    losses = [one.numerator / one.denominator for one in sums]
    constant = [name for name, first in named.items() if not _all_finite(first)]
    loss, *values = collected(
        [
            [loss, *_trained(m, before, constant)]
            for m, loss in zip(models, losses, strict=True)
        ],
        aggregator,
        [
            torch.float64,
            *(tensor.dtype for tensor in named.values()),
            *(torch.float64 for _ in constant),
        ],
        weighing,
        "the model is as it was before the round. Look for empty cells in their rows, "
        'train with a lower learning rate, or skip such rounds: on_non_finite="skip"',
    )
    became = dict(
        zip(constant, (mark == MARK for mark in values[len(named) :]), strict=True)
    )
    _write(named, _trainable(before), values[: len(named)], became)
    return loss.item()


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return each parameter and buffer once, by its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a round may change: what is not frozen."""
    frozen = {name for name, one in model.named_parameters() if not one.requires_grad}
    return {name: one for name, one in _named(model).items() if name not in frozen}


def _trained(
    model: nn.Module, before: nn.Module, constant: Sequence[str]
) -> list[torch.Tensor]:
    """Return what a trained copy delivers, in the order of the model's own tensors.

    After them come marks of what became finite.

    Args:
        model: the copy.
        before: the model.
        constant: the names of tensors that are not finite everywhere.

    Raises:
        CallError: if the training changed what there is, and not its values only.
    """
    trained, own = _named(model), _trainable(before)
    looks, looked = (
        {name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}
        for tensors in (trained, _named(before))
    )
    if looks != looked:
        different = sorted(dict(looks.items() ^ looked.items()))
        raise CallError(
            "expected a training that changes values and neither names, shapes nor "
            f"dtypes; changed were {', '.join(different)}"
        )
    marks: list[torch.Tensor] = []
    for name in constant:
        trained[name], mark = _less_constants(trained[name], own[name])
        marks.append(mark)
    return [*(trained[name] for name in own), *marks]


def _less_constants(
    x: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a trained tensor with 0 for what was not finite before and is the same.

    With it come marks of what was not finite before and has changed.
    """
    there = _wide(send(first.detach(), x.location))  # type: ignore[attr-defined] # remote
    with torch.no_grad():
        wide = _wide(x)
        same = (wide == there) | (wide.isnan() & there.isnan())
        constant = there.isfinite().logical_not()
        changed = constant & same.logical_not()
        left = wide.masked_fill(constant & same, 0).to(x.dtype)
        return left, changed.to(torch.float64) * MARK


def _all_finite(x: torch.Tensor) -> bool:
    """Tell whether a tensor is finite everywhere."""
    if not (x.is_floating_point() or x.is_complex()):
        return True
    # Any other value would show in the sum, which takes no memory.
    total = x.sum(dtype=torch.complex128 if x.is_complex() else torch.float64)
    return bool(total.isfinite()) or bool(_finite(x).all())


def _finite(x: torch.Tensor) -> torch.Tensor:
    """Return where a tensor is finite."""
    return _wide(x).isfinite()


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a dtype that PyTorch compares; floats of 8 bits it doesn't."""
    return x.float() if x.is_floating_point() and x.itemsize == 1 else x


def _write(
    named: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor],
    values: Iterable[torch.Tensor],
    became: Mapping[str, torch.Tensor],
) -> None:
    """Write values into tensors, but for constants: into all, or on an error none.

    Args:
        named: the tensors.
        before: copies of them, by the same names.
        values: one for each.
        became: of those that are not finite everywhere, where they became so.
    """
    written: list[str] = []
    try:
        with torch.no_grad():
            for (name, tensor), value in zip(named.items(), values, strict=True):
                written.append(name)
                if name in became:
                    taken = _finite(tensor) | became[name]
                    tensor.copy_(torch.where(taken, value, tensor))
                else:
                    tensor.copy_(value)
    except BaseException:
        with torch.no_grad():
            for name in written:
                # Ctrl-C may have come after the last; or it could not be written.
                with contextlib.suppress(RuntimeError):
                    named[name].copy_(before[name])
        raise


def train_rounds(
    model: nn.Module,
    owners: Sequence[RemoteDataset],
    aggregator: Place | str,
    training: LocalTraining,
    rounds: int,
    weights: Sequence[float] | None = None,
    *,
    on_non_finite: OnNonFinite = "raise",
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
        on_non_finite: as for ``train_round``; a round that is skipped has a report.

    Yields:
        A report of each round, after it.
    """
    check_choice(on_non_finite)
    for number in range(1, rounds + 1):
        try:
            loss = _round(model, owners, aggregator, training, weights)
            report = Round(number, loss)
        except NonFiniteError as error:
            if on_non_finite == "raise":
                raise
            report = Round(number, math.nan, error.owners)
        yield report
