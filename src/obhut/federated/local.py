"""What an owner's worker does in a round: train a model on the rows there.

It is an ordinary PyTorch loop, which runs there as a program: one message, whatever the
number of rows. Line by line it comes to the same, digit for digit.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.programs import Program
from obhut.client.ratio import Ratio
from obhut.client.recording import Recorded
from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError, ObhutError, ProgramError

from .row_means import mean_over_rows

Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The loss of predictions and targets, a scalar."""


@dataclass(frozen=True, slots=True, init=False)
class LocalTraining:
    """How a model is trained on one owner's rows.

    Attributes:
        optimizer: makes the optimizer of a model's parameters, for instance
            ``functools.partial(torch.optim.SGD, lr=0.1)``. Each run begins with a
            new one: momentum and the like do not last from round to round.
        loss_fn: the loss of predictions and targets, a scalar. Its old name,
            ``loss_func``, is taken with a warning.
        epochs: how often a run goes through the rows.
        batch_size: rows in a step; None for all of them.
        shuffle: whether each epoch has a new random order.
        generator: what the order comes from, by default torch's own.
        drop_last: leave out what is left after the full batches. Layers that
            normalize over a batch, such as BatchNorm, can not train on one row. An
            owner with fewer rows than a batch is an error then.
        eager: run line by line, as PyTorch's eager mode does, and not as a program:
            each operator is a request. It is slower, and comes to the same, digit for
            digit, but for what is drawn: the order of rows, or a dropout.

    Raises:
        CallError: if there would be no epoch, or not one loss is given.
    """

    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
    loss_fn: Loss
    epochs: int = 1
    batch_size: int | None = None
    shuffle: bool = False
    generator: torch.Generator | None = None
    drop_last: bool = False
    eager: bool = False

    def __init__(
        self,
        optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
        loss_fn: Loss | None = None,
        epochs: int = 1,
        batch_size: int | None = None,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
        eager: bool = False,
        *,
        loss_func: Loss | None = None,
    ) -> None:
        if (loss_fn is None) == (loss_func is None):
            raise CallError("expected one loss: loss_fn=nn.functional.mse_loss")
        if loss_func is not None:
            warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
        if epochs < 1:
            raise CallError(f"expected 1 epoch or more, got {epochs}")
        for name, value in (
            ("optimizer", optimizer),
            ("loss_fn", loss_fn or loss_func),
            ("epochs", epochs),
            ("batch_size", batch_size),
            ("shuffle", shuffle),
            ("generator", generator),
            ("drop_last", drop_last),
            ("eager", eager),
        ):
            object.__setattr__(self, name, value)

    @property
    def loss_func(self) -> Loss:
        """The old name of ``loss_fn``."""
        warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
        return self.loss_fn

    def run(
        self,
        model: nn.Module,
        dataset: RemoteDataset,
        *,
        seed: int | None = None,
        number: int = 1,
    ) -> Ratio:
        """Train a model where the rows are; it changes in place.

        It is one message, as a program (``obhut.program``), unless the training is
        ``eager``. What can't be recorded runs line by line, and a warning says so once.

        Args:
            model: at the same worker as the rows. If all of it is in evaluation mode,
                it is set to training mode; else each module keeps its own, so that a
                BatchNorm is frozen by ``norm.eval()``.
            dataset: the rows.
            seed: of all that is drawn, such as the order of rows and what a dropout
                leaves out; by default drawn from ``generator`` where it is needed.

        Returns:
            The mean loss over the rows in the last epoch, each step's before that
            step: a scalar without history, float64, still at the worker.

        Raises:
            CallError: if the model can not train on a last batch of one row, or
                ``drop_last`` would leave out all rows. Where how many there are is
                hidden, such a batch is left out, and what has no batch is missing;
                an eager training is refused.
            ProgramError: if what can't be recorded is to go through such rows.
        """
        if not any(module.training for module in model.modules()):
            model.train()
        optimizer = self.optimizer(model.parameters())
        if self.eager:
            return self._line_by_line(model, optimizer, dataset)
        program = _program(self.loss_fn)
        given = {"model": model, "optimizer": optimizer}
        try:
            recorded = program.record(data=dataset, **given)
        except ProgramError as error:
            program.fall_back(error, dataset)
            return self._line_by_line(model, optimizer, dataset)
        try:
            ratio: Ratio = program.run(
                data=dataset,
                batch_size=self.batch_size,
                epochs=self.epochs,
                shuffle=self.shuffle,
                drop_last=self.drop_last,
                seed=self.seed(recorded) if seed is None else seed,
                **given,
            )
        except ProgramError:  # batches are too small: the model's own error says more
            if isinstance(dataset, HiddenDataset):
                raise
            return self._line_by_line(model, optimizer, dataset)
        return Ratio(ratio.numerator[-1], ratio.denominator[-1])  # type: ignore[index] # a tensor

    def seed(self, recorded: Recorded) -> int:
        """Return a seed for a program: drawn if anything is drawn, else 0."""
        if not (self.shuffle or recorded.program.draws):
            return 0
        return int(torch.randint(2**62, (), generator=self.generator))

    def _line_by_line(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        dataset: RemoteDataset,
    ) -> Ratio:
        losses: list[torch.Tensor] = []
        rows: list[int] = []
        for _ in range(self.epochs):
            losses, rows = [], []
            for features, targets in dataset.batches(
                self.batch_size,
                shuffle=self.shuffle,
                generator=self.generator,
                drop_last=self.drop_last,
            ):
                optimizer.zero_grad()
                with self._naming_drop_last(len(targets), dataset):
                    loss = self.loss_fn(model(features), targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
                rows.append(len(targets))
        count = dataset.count()
        return Ratio(mean_over_rows(losses, rows, dataset) * count, count)

    @contextlib.contextmanager
    def _naming_drop_last(self, rows: int, dataset: RemoteDataset) -> Iterator[None]:
        """Let an error in a last batch of one row say what to write."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            alone = rows == 1 < min(len(dataset), self.batch_size or len(dataset))
            if not alone or isinstance(error, ObhutError):
                raise
            raise CallError(
                f"{error}: the last batch at {dataset.location.id} has 1 row, of "
                f"{len(dataset)} in batches of {self.batch_size}; leave it out with "
                "drop_last=True, or choose another batch_size"
            ) from error


_RENAMED = "LocalTraining's loss_func is now called loss_fn, as in PyTorch"


@functools.lru_cache(maxsize=64)
def _program(loss_fn: Loss) -> Program:
    """Return a step of training by a loss as a program, the same for the same."""

    def step(
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        features: torch.Tensor,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model(features), targets)
        loss.backward()
        optimizer.step()
        return loss

    return Program(step)
