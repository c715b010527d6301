"""What an owner's worker does in a round: train a model on the rows there.

::

    training = LocalTraining(partial(optim.SGD, lr=0.1), F.cross_entropy, batch_size=32)
    training(model, obhut.LocalDataset(x, y))    # here, an ordinary loop
    ratio = training.run(model, data)            # at an owner: one message

Rules:

- It is an ordinary PyTorch loop. At an owner what it does to a batch is a program; line
  by line it comes to the same, digit for digit.
- What a round begins with anew is the optimizer and what it keeps. A schedule goes on.
- What is wrong whatever the rows are is told before anything is sent.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from obhut.client.data import tensor_at
from obhut.client.functions import copy
from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.modules import send_copy
from obhut.client.programs import Program, check_times
from obhut.client.ratio import Ratio
from obhut.client.recording import Recorded
from obhut.client.remote_dataset import RemoteDataset
from obhut.client.remote_tensor import RemoteTensor
from obhut.errors import CallError, ObhutError, ProgramError

from .data_parts import whole
from .losses import Loss, check_loss, travelling
from .row_means import sums_over_rows

# Any below: what factories take, and data sets of several kinds.

Scheduler: TypeAlias = Callable[[Any], LRScheduler]
"""Makes a scheduler of an optimizer."""


class Batches(Protocol):
    """Rows in batches: a data set's, here or at a worker."""

    def batches(
        self,
        size: int | None = None,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Any]:
        """Go through the rows once."""


@dataclass(frozen=True, slots=True, init=False)
class LocalTraining:
    """How a model is trained on one owner's rows.

    Called with a model and a data set (``obhut.LocalDataset``, or one at a worker) it
    is a plain loop, and returns ``{"loss": Ratio}``: sums over the rows of the last
    epoch, or of all steps.

    Attributes:
        optimizer: makes the optimizer of a model's parameters, for instance
            ``functools.partial(torch.optim.SGD, lr=0.1)``. Each run begins with a
            new one: momentum and the like do not last from round to round.
        loss_fn: the loss of predictions and targets, a scalar: a function, a
            ``functools.partial`` of one, or a module such as
            ``nn.CrossEntropyLoss(weight=w)``. What tensors the latter two have go to
            the owner. Its old name, ``loss_func``, is taken with a warning.
        batch_size: rows in a step; None for all of them.
        epochs: how often a run goes through the rows; by default once.
        steps: or how many batches it goes through, over and over again. So owners of
            few rows and of many take as many steps.
        shuffle: whether each epoch has a new random order.
        drop_last: leave out what is left after the full batches. Layers that
            normalize over a batch, such as BatchNorm, can not train on one row. An
            owner with fewer rows than a batch is an error then.
        clip_grad_norm: the largest norm of all gradients of a step.
        clip_grad_value: the largest value of a gradient, either way.
        accumulate: into how many parts a batch is divided, one after the other, before
            a step: every so-manyth row is one. Their losses are weighed by rows, so
            that the gradients of a mean over rows are those of the whole batch.
            A batch has as many rows or more.
        scheduler: makes a scheduler of the optimizer, for instance
            ``partial(torch.optim.lr_scheduler.StepLR, step_size=10)``. It steps after
            each epoch, or once a run of ``steps``, and counts on from round to round.
        proximal: mu of FedProx: to the loss comes mu/2 times the squared distance from
            the parameters that the round began with. What is reported is the loss
            without it.
        eager: run line by line, as PyTorch's eager mode does, and not as a program:
            each operator is a request. It is slower, and comes to the same, digit for
            digit, but for what is drawn: the order of rows, or a dropout.
        generator: what the order comes from, by default torch's own.

    Raises:
        CallError: if one of these is none that can be, or not one loss is given.

    Source: Li et al. 2020, arXiv 1812.06127, algorithm 2 (FedProx).
    """

    optimizer: Callable[[Any], Optimizer]
    loss_fn: Loss
    batch_size: int | None
    epochs: int | None
    steps: int | None
    shuffle: bool
    drop_last: bool
    clip_grad_norm: float | None
    clip_grad_value: float | None
    accumulate: int
    scheduler: Scheduler | None
    proximal: float
    eager: bool
    generator: torch.Generator | None

    def __init__(
        self,
        optimizer: Callable[[Any], Optimizer],
        loss_fn: Loss | None = None,
        *,
        batch_size: int | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        accumulate: int = 1,
        scheduler: Scheduler | None = None,
        proximal: float = 0.0,
        eager: bool = False,
        generator: torch.Generator | None = None,
        loss_func: Loss | None = None,
    ) -> None:
        if (loss_fn is None) == (loss_func is None):
            raise CallError("expected one loss: loss_fn=nn.functional.mse_loss")
        if loss_func is not None:
            warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
        for name, value in (
            ("optimizer", optimizer),
            ("loss_fn", loss_fn or loss_func),
            ("batch_size", batch_size),
            ("epochs", epochs),
            ("steps", steps),
            ("shuffle", shuffle),
            ("drop_last", drop_last),
            ("clip_grad_norm", clip_grad_norm),
            ("clip_grad_value", clip_grad_value),
            ("accumulate", accumulate),
            ("scheduler", scheduler),
            ("proximal", proximal),
            ("eager", eager),
            ("generator", generator),
        ):
            object.__setattr__(self, name, value)
        _check(self)

    @property
    def loss_func(self) -> Loss:
        """The old name of ``loss_fn``."""
        warnings.warn(_RENAMED, FutureWarning, stacklevel=2)
        return self.loss_fn

    def __call__(self, model: nn.Module, data: Batches) -> dict[str, Ratio]:
        """Train a model on rows, in a plain loop; it changes in place.

        Args:
            model: where the rows are. If all of it is in evaluation mode, it is set to
                training mode; else each module keeps its own.
            data: the rows, in batches of features and targets.

        Returns:
            Under ``"loss"`` the sum of losses over the rows, float64, and their number:
            of the last epoch, or of all steps, each batch's before its step.
        """
        total: torch.Tensor | float = 0.0
        rows = before = 0
        for epoch, loss, size in self._batches(model, data, 1):
            if epoch != before:
                total, rows, before = 0.0, 0, epoch
            total = total + loss.to(torch.float64) * size
            rows += size
        return {"loss": Ratio(torch.as_tensor(total, dtype=torch.float64), rows)}

    def run(
        self,
        model: nn.Module,
        dataset: RemoteDataset,
        *,
        seed: int | None = None,
        round: int = 1,
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
            round: which it is, from 1: a scheduler has stepped in those before.

        Returns:
            The sum of losses over the rows and their number, in the last epoch or over
            all steps, each batch's before its step: two scalars without history,
            float64, still at the worker. A batch's loss is weighed by its rows, also
            where classes have weights. Both are 0 if a part of the rows has none.

        Raises:
            CallError: if the model can not train on a last batch of one row, or
                ``drop_last`` would leave out all rows. Where how many there are is
                hidden, such a batch is left out, and what has no batch is missing;
                an eager training is refused.
            ProgramError: if what can't be recorded is to go through such rows.
        """
        return self.results(model, dataset, seed=seed, round=round)["loss"]

    def results(
        self,
        model: nn.Module,
        dataset: RemoteDataset,
        *,
        seed: int | None = None,
        round: int = 1,
        drift: nn.Module | None = None,
    ) -> dict[str, Ratio]:
        """Train as ``run`` does, also against a drift.

        Args:
            model: as for ``run``, likewise the next three.
            dataset: the rows.
            seed: of all that is drawn.
            round: which it is.
            drift: buffers that are there, in the order of the parameters that require
                gradients: each is added to its gradient in every step.

        Returns:
            Under ``"loss"`` what ``run`` returns; with a drift, under ``"steps"`` how
            many there were, as a numerator.

        Raises:
            CallError, ProgramError: as ``run``.
        """
        if self.eager:
            return self._line_by_line(model, dataset, round, drift)
        set_training(model)
        loss_fn = travelling(self.loss_fn)
        program = _program(
            type(loss_fn) if isinstance(loss_fn, nn.Module) else loss_fn,  # type: ignore[arg-type] # functions are
            drift is not None,
        )
        optimizer, schedulers = self._made(model, round)
        given: dict[str, Any] = {
            "model": model,
            "optimizer": optimizer,
            "loss_fn": _sent(loss_fn, dataset),
            "start": self._start(model),
            "drift": drift,
            "how": self._how,
        }
        try:
            recorded = program.record(data=dataset, **given)
        except ProgramError as error:
            program.fall_back(error, dataset)
            return self._line_by_line(model, dataset, round, drift)
        try:
            found = program.run(
                data=dataset,
                batch_size=self.batch_size,
                epochs=self.epochs,
                steps=self.steps,
                shuffle=self.shuffle,
                drop_last=self.drop_last,
                seed=self.seed(recorded) if seed is None else seed,
                schedulers=schedulers,
                **given,
            )
        except ProgramError:  # batches are too small: the model's own error says more
            if isinstance(dataset, HiddenDataset):
                raise
            return self._line_by_line(model, dataset, round, drift)
        if drift is None:
            return {"loss": Ratio(*(one[-1] for one in found))}
        loss, steps = found["loss"], found["steps"].numerator.sum()
        return {"loss": Ratio(*(one[-1] for one in loss)), "steps": Ratio(steps, 1)}

    def seed(self, recorded: Recorded) -> int:
        """Return a seed for a program: drawn if anything is drawn, else 0."""
        if not (self.shuffle or recorded.program.draws):
            return 0
        return int(torch.randint(2**62, (), generator=self.generator))

    @property
    def _how(self) -> _How:
        return _How(
            self.clip_grad_norm, self.clip_grad_value, self.accumulate, self.proximal
        )

    def _made(
        self, model: nn.Module, round: int
    ) -> tuple[Optimizer, Sequence[LRScheduler]]:
        """Return an optimizer, and its scheduler if there is one.

        Raises:
            CallError: if a factory makes something else.
        """
        optimizer = self.optimizer(model.parameters())
        if not isinstance(optimizer, Optimizer):
            raise CallError(
                f"expected an optimizer of the model's parameters, got {optimizer!r}: "
                "partial(torch.optim.SGD, lr=0.1)"
            )
        try:
            inspect.signature(optimizer.step).bind()
        except TypeError:
            raise CallError(
                "expected an optimizer whose step needs no closure, got "
                f"{type(optimizer).__name__}: partial(torch.optim.SGD, lr=0.1)"
            ) from None
        if self.scheduler is None:
            return optimizer, ()
        scheduler = self.scheduler(optimizer)
        if not isinstance(scheduler, LRScheduler) or isinstance(
            scheduler, ReduceLROnPlateau
        ):
            raise CallError(f"{_SCHEDULER}, got {type(scheduler).__name__}")
        optimizer._opt_called = True  # type: ignore[attr-defined] # by the rounds before
        for _ in range((round - 1) * check_times(self.epochs, self.steps)):
            scheduler.step()
        return optimizer, (scheduler,)

    def _start(self, model: nn.Module) -> nn.Module | None:
        """Return what parameters are when a run begins, if that is needed."""
        if not self.proximal:
            return None
        start = nn.Module()
        for place, one in enumerate(_trained(model)):
            start.register_buffer(str(place), copy(one).requires_grad_(False))
        return start

    def _batches(
        self,
        model: nn.Module,
        data: Batches,
        round: int,
        drift: nn.Module | None = None,
    ) -> Iterator[tuple[int, torch.Tensor, int]]:
        """Train; yield of each batch its epoch, its loss and its rows."""
        set_training(model)
        loss_fn = _sent(travelling(self.loss_fn), data)
        optimizer, schedulers = self._made(model, round)
        start, how = self._start(model), self._how
        for epoch in range(check_times(self.epochs, self.steps)):
            for features, targets in self._rows(data):
                with self._naming_drop_last(len(targets), data):
                    loss = _step(
                        model, optimizer, loss_fn, start, drift, how, features, targets
                    )
                yield epoch, loss.detach(), len(targets)
            for one in schedulers:
                one.step()

    def _rows(self, data: Batches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of an epoch, or as many as there are steps."""
        left = self.steps
        while True:
            before = left
            for batch in data.batches(
                self.batch_size,
                shuffle=self.shuffle,
                generator=self.generator,
                drop_last=self.drop_last,
            ):
                yield batch
                if left is not None:
                    left -= 1
                    if not left:
                        return
            if left == before:  # an epoch is over, or there are no rows
                return

    def _line_by_line(
        self,
        model: nn.Module,
        dataset: RemoteDataset,
        round: int,
        drift: nn.Module | None = None,
    ) -> dict[str, Ratio]:
        losses: list[torch.Tensor] = []
        rows: list[int] = []
        before = steps = 0
        for epoch, loss, size in self._batches(model, dataset, round, drift):
            steps += 1
            if epoch != before:
                losses, rows, before = [], [], epoch
            losses.append(loss)
            rows.append(size)
        return {
            "loss": sums_over_rows(losses, rows, dataset),
            "steps": Ratio(
                tensor_at(
                    RemoteTensor,
                    dataset.location.session,
                    float(steps),
                    torch.float64,
                ),
                1,
            ),
        }

    @contextlib.contextmanager
    def _naming_drop_last(self, rows: int, data: Any) -> Iterator[None]:
        """Let an error in a last batch of one row say what to write."""
        try:
            yield
        except (ValueError, RuntimeError) as error:
            alone = rows == 1 < min(len(data), self.batch_size or len(data))
            if not alone or isinstance(error, ObhutError):
                raise
            at = f" at {data.location.id}" if isinstance(data, RemoteDataset) else ""
            raise CallError(
                f"{error}: the last batch{at} has 1 row, of {len(data)} in batches of "
                f"{self.batch_size}; leave it out with drop_last=True, or choose "
                "another batch_size"
            ) from error


class _How(NamedTuple):
    """What a step does beside the loss's gradients; as ``LocalTraining`` has it."""

    clip_grad_norm: float | None
    clip_grad_value: float | None
    accumulate: int
    proximal: float


def _step(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Loss,
    start: nn.Module | None,
    drift: nn.Module | None,
    how: _How,
    features: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Train on one batch; return its loss before."""
    optimizer.zero_grad()
    loss = _backward(model, loss_fn, how.accumulate, features, targets)
    trained = _trained(model)
    if start is not None:
        for one, first in zip(trained, start.buffers(), strict=True):
            if one.grad is not None:
                one.grad.add_(one.detach() - first, alpha=how.proximal)
    if drift is not None:
        for one, correction in zip(trained, drift.buffers(), strict=True):
            if one.grad is not None:
                one.grad.add_(correction)
    if how.clip_grad_norm is not None:
        nn.utils.clip_grad_norm_(trained, how.clip_grad_norm)
    if how.clip_grad_value is not None:
        nn.utils.clip_grad_value_(trained, how.clip_grad_value)
    optimizer.step()
    return loss


@functools.wraps(_step)
def _counted_step(*given: Any, **named: Any) -> dict[str, torch.Tensor | Ratio]:
    """Train on one batch; return its loss before, and that it was a step."""
    loss = _step(*given, **named)
    one = torch.ones((), dtype=torch.float64, device=loss.device)
    return {"loss": loss, "steps": Ratio(one, 1)}


def _backward(
    model: nn.Module,
    loss_fn: Loss,
    parts: int,
    features: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Make gradients of a batch, part after part; return its loss."""
    if parts == 1:
        loss = loss_fn(model(features), targets)
        loss.backward()
        return loss
    losses: list[torch.Tensor] = []
    for place in range(parts):
        x, y = features[place::parts], targets[place::parts]
        if len(y):
            loss = loss_fn(model(x), y) * len(y) / len(targets)
            loss.backward()
            losses.append(loss.detach())
    return torch.stack(losses).sum()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [one for one in model.parameters() if one.requires_grad]


def set_training(model: nn.Module) -> None:
    """Set a model to training mode, if all of it is in evaluation mode."""
    if not any(module.training for module in model.modules()):
        model.train()


def _sent(loss_fn: Loss, data: object) -> Loss:
    """Return a loss with its tensors where the rows are."""
    if isinstance(loss_fn, nn.Module) and isinstance(data, RemoteDataset):
        return send_copy(loss_fn, data.location)
    return loss_fn


@functools.lru_cache(maxsize=64)
def _program(loss: Hashable, counts_steps: bool) -> Program:
    """Return what a step does as a program, the same for the same loss or its class."""
    return Program(_counted_step if counts_steps else _step)


def _check(training: LocalTraining) -> None:
    """Check what can be told before there are rows.

    Raises:
        CallError: if something is none that can be.
    """
    if isinstance(training.optimizer, Optimizer) or not callable(training.optimizer):
        raise CallError(
            "expected a function that makes an optimizer at each owner, got "
            f"a {type(training.optimizer).__name__}: partial(torch.optim.SGD, lr=0.1)"
        )
    check_loss(training.loss_fn)
    check_times(training.epochs, training.steps)
    made: object = training.scheduler
    if made is not None and (
        isinstance(made, LRScheduler)
        or not callable(made)
        or getattr(made, "func", made) is ReduceLROnPlateau
    ):
        what = getattr(made, "func", made)
        name = what.__name__ if isinstance(what, type) else type(made).__name__
        raise CallError(f"{_SCHEDULER}, got {name}")
    for name, least in (("batch_size", 1), ("accumulate", 1), ("proximal", 0)):
        value = getattr(training, name)
        if value is not None and not value >= least:
            raise CallError(f"expected {name} to be {least} or more, got {value}")
        if value is not None and name != "proximal" and whole(value) is None:
            raise CallError(f"expected {name} to be a whole number, got {value!r}")
    for name in ("clip_grad_norm", "clip_grad_value"):
        value = getattr(training, name)
        if value is not None and not value > 0:
            raise CallError(f"expected {name} to be above 0, got {value}")
    size = training.batch_size
    if size is not None and size < training.accumulate:
        raise CallError(
            f"expected batches of {training.accumulate} rows or more, which are "
            f"computed in as many parts, got batch_size={size}"
        )


_RENAMED = "LocalTraining's loss_func is now called loss_fn, as in PyTorch"

_SCHEDULER = (
    "expected a function that makes a scheduler which counts epochs, such as "
    "partial(torch.optim.lr_scheduler.StepLR, step_size=10)"
)
