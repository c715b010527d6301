"""What many workers are asked alike, and the sums of what comes of it.

::

    task = Task(batch, averaged=(Averaged(7, "float32", (10,), frame=0),), weight=9)
    sums = run([task], [Turn("ann"), Turn("bob")], frames, rows)
    total = sums.added(more)                     # of other workers, elsewhere
    means = total.means(task, [model])

It is for simulated clients, whose shell is their requester's own: nobody else sees what
one of them has.

Rules:

- Each worker carries out the batch anew, and knows nothing of another's turn.
- What is averaged is added up as its change from what was sent: a sum of small numbers
  loses little in float32. Everything else is added in float64.
- Programs write to no rows, which may be others', too. Where a task holds rows as
  tensors, a worker has copies.
- Turns are added in the order in which they are given.
- What is not finite is told by name, and so is a request that failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from obhut.protocol.codec import Frame
from obhut.protocol.messages import Batch, Failed, Load, TensorData

from .repeated import Repeated
from .tensors import DTYPES, to_frame

DATASET = "data"
"""What the data of a simulated client is called."""

_CHUNK = 1 << 17
"""Elements that stay in a core's cache between two operators."""


@dataclass(frozen=True, slots=True)
class Averaged:
    """A tensor of which a weighted mean over all workers is made.

    Attributes:
        id: its id in the batch.
        dtype: its element type's name.
        shape: its sizes.
        frame: which of the frames that all get its change is taken from, of the same
            look; None if it is averaged itself.
    """

    id: int
    dtype: str
    shape: tuple[int, ...]
    frame: int | None = None

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def is_narrow(self) -> bool:
        """Whether its change is added in float32."""
        kind = DTYPES[self.dtype]
        return self.frame is not None and kind.is_floating_point and kind.itemsize <= 4

    @property
    def width(self) -> int:
        """How many real numbers it has."""
        return self.numel * (2 if DTYPES[self.dtype].is_complex else 1)


@dataclass(frozen=True, slots=True)
class Summed:
    """A tensor that is summed over all workers.

    Attributes:
        id: its id in the batch.
        shape: its sizes.
    """

    id: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Task:
    """A batch for many workers, and what is made of what it leaves there.

    Attributes:
        batch: whatever session it names. Its frames are those of the turn, and after
            them those that all get.
        averaged: what is averaged.
        summed: what is summed.
        own: the ids of what is returned for each worker.
        weight: the id of a scalar, what the worker weighs, unless the turn says it;
            None for 1.
        by_rows: whether it weighs as much as its data has rows instead.
    """

    batch: Batch
    averaged: tuple[Averaged, ...] = ()
    summed: tuple[Summed, ...] = ()
    own: tuple[int, ...] = ()
    weight: int | None = None
    by_rows: bool = False


class Turn(NamedTuple):
    """One worker's part.

    Attributes:
        client: its name.
        task: which of the tasks is its.
        weight: what it weighs; None for what the task says.
        own: frames that only it gets.
    """

    client: str
    task: int = 0
    weight: float | None = None
    own: tuple[Frame, ...] = ()


class Failure(NamedTuple):
    """Why a worker's turn came to nothing.

    Attributes:
        client: its name.
        task: which of the tasks it had.
        failed: what went wrong, and with which request.
    """

    client: str
    task: int
    failed: Failed


@dataclass(slots=True)
class Sums:
    """What workers' turns sum to.

    Attributes:
        weight: of all workers.
        narrow: (changes,) float32: what is averaged and comes in frames, in order.
        wide: (numbers,) float64: what else is averaged, and then what is summed.
        own: what each worker has for its next turn, as bytes.
        spoilt: who delivered what is not finite.
        failures: why there are no sums.
    """

    weight: float
    narrow: torch.Tensor
    wide: torch.Tensor
    own: dict[str, tuple[Frame, ...]] = field(default_factory=dict)
    spoilt: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    def added(self, other: Sums) -> Sums:
        """Return the sums of both."""
        return Sums(
            self.weight + other.weight,
            self.narrow + other.narrow,
            self.wide + other.wide,
            self.own | other.own,
            self.spoilt + other.spoilt,
            self.failures + other.failures,
        )

    def means(
        self, task: Task, bases: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor]:
        """Return the weighted mean of each tensor that is averaged, in its own dtype.

        Args:
            task: any of the tasks; they average the same.
            bases: of each tensor what is in its frame, if it has one.
        """
        found: list[torch.Tensor] = []
        share = 1 / self.weight if self.weight else math.nan  # of no rows
        spans, _ = _spans(task)
        for one, base, span in zip(task.averaged, bases, spans, strict=True):
            kind = DTYPES[one.dtype]
            if one.is_narrow and base is not None:
                change = self.narrow[span].view(one.shape)
                mean = torch.add(base.detach(), change, alpha=share)
            else:
                mean = self.wide[span] / self.weight
                if kind.is_complex:
                    mean = torch.view_as_complex(mean.view(-1, 2))
                mean = mean.view(one.shape)
                mean = mean if base is None else mean + base.detach()
            whole = not (kind.is_floating_point or kind.is_complex)
            found.append((mean.round() if whole else mean).to(kind))
        return found

    def sums(self, task: Task) -> list[torch.Tensor]:
        """Return the sum of each tensor that is summed, float64.

        Args:
            task: any of the tasks; they sum the same.
        """
        _, spans = _spans(task)
        return [
            self.wide[span].view(one.shape)
            for one, span in zip(task.summed, spans, strict=True)
        ]


def holds_rows(tasks: Sequence[Task]) -> bool:
    """Tell whether rows are held as tensors, which a request may write to."""
    each = (one for task in tasks for one in task.batch.requests)
    return any(isinstance(one, Load) for one in each)


def nothing(task: Task, device: torch.device | str = "cpu") -> Sums:
    """Return the sums of no worker.

    Args:
        task: any of the tasks.
        device: where they are.
    """
    narrow = sum(one.numel for one in task.averaged if one.is_narrow)
    wide = sum(one.width for one in task.averaged if not one.is_narrow)
    wide += sum(one.numel for one in task.summed)
    return Sums(
        0.0,
        torch.zeros(narrow, dtype=torch.float32, device=device),
        torch.zeros(wide, dtype=torch.float64, device=device),
    )


def run(
    tasks: Sequence[Task],
    turns: Sequence[Turn],
    frames: Sequence[Frame],
    rows: Callable[[str], Mapping[str, torch.Tensor]],
    device: torch.device | str = "cpu",
    *,
    exact: bool = True,
) -> Sums:
    """Let workers take their turns, one after the other, and return the sums.

    It ends with the first turn that fails.

    Args:
        tasks: they average and sum the same.
        turns: one a worker.
        frames: those that all workers get.
        rows: returns a worker's data by its name, which is not written to.
        device: where they compute.
        exact: whether programs do what their lines do, digit for digit. If not, a step
            that is a multiple of a gradient may be added without the gradient between:
            sooner, and 1e-8 off after an epoch.

    Raises:
        Exception: whatever ``rows`` raises.
    """
    sums = nothing(tasks[0], device)
    sides = [_Side(task, frames, sums, exact) for task in tasks]
    for turn in turns:
        failed = sides[turn.task].take(turn, rows(turn.client))
        if failed is not None:
            sums.failures = (Failure(turn.client, turn.task, failed),)
            return sums
    if not _is_finite(sums):
        sums.spoilt = tuple(_spoilt(tasks, turns, frames, rows, device))
    sums.narrow, sums.wide = sums.narrow.cpu(), sums.wide.cpu()
    return sums


class _Side:
    """One task's side of sums: where in them each of its tensors is added.

    Args:
        task: the task.
        frames: those that all workers get.
        sums: what is added to.
        exact: as of ``run``.
    """

    def __init__(
        self, task: Task, frames: Sequence[Frame], sums: Sums, exact: bool = True
    ) -> None:
        self._task, self._sums = task, sums
        device = sums.narrow.device
        self._repeated = Repeated(task.batch, frames, device, exact=exact)
        self._holds_rows = holds_rows([task])
        self._small: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._large: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._wide: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []
        spans, _ = _spans(task)
        for place, (one, span) in enumerate(zip(task.averaged, spans, strict=True)):
            base = None
            if one.frame is not None:
                data = TensorData(one.dtype, one.shape, one.frame)
                base = self._repeated.given(data)
            if not one.is_narrow or base is None:
                self._wide.append((place, sums.wide[span], base))
            elif one.numel > _CHUNK:
                flat = base.reshape(-1)
                self._large.append((place, sums.narrow[span], flat))
            else:
                into = sums.narrow[span].view(one.shape)
                self._small.append((place, into, base))
        self._summed = sums.sums(task)

    def take(self, turn: Turn, rows: Mapping[str, torch.Tensor]) -> Failed | None:
        """Let a worker take its turn, and add what comes of it.

        Returns:
            Why it failed, if it did; then nothing was added.
        """
        task, sums, held = self._task, self._sums, self._repeated.held
        if self._holds_rows:
            rows = {part: one.clone() for part, one in rows.items()}
        failed = self._repeated.turn(turn.client, {DATASET: rows}, turn.own)
        if failed is not None:
            return failed
        weight = turn.weight
        if weight is None and task.by_rows:
            weight = float(next((len(one) for one in rows.values()), 0))
        elif weight is None:
            weight = 1.0 if task.weight is None else float(*held(task.weight))
        sums.weight += weight
        if task.own:
            own = held(*task.own)
            sums.own[turn.client] = tuple(bytes(to_frame(one)) for one in own)
        with torch.no_grad():
            self._add(held(*(one.id for one in task.averaged)), weight)
            if self._summed:
                summed = held(*(one.id for one in task.summed))
                torch._foreach_add_(self._summed, summed)
        return None

    def _add(self, averaged: Sequence[torch.Tensor], weight: float) -> None:
        """Add a worker's tensors, each so many times."""
        if self._small:
            places, into, bases = zip(*self._small, strict=True)
            changes = torch._foreach_sub(
                [averaged[one].float() for one in places], bases
            )
            torch._foreach_add_(into, changes, alpha=weight)
        for place, flat, base in self._large:
            pieces = (
                one.split(_CHUNK) for one in (flat, averaged[place].reshape(-1), base)
            )
            for total, new, old in zip(*pieces, strict=True):
                total.add_(new.float().sub(old), alpha=weight)
        for place, flat, maybe in self._wide:
            value = averaged[place].detach()
            kind = torch.complex128 if value.is_complex() else torch.float64
            change = value.to(kind)
            if maybe is not None:
                change = change - maybe
            if change.is_complex():
                change = torch.view_as_real(change.resolve_conj())
            flat.add_(change.reshape(-1), alpha=weight)


def _spans(task: Task) -> tuple[list[slice], list[slice]]:
    """Return where each tensor is in its flat sum, averaged ones and summed ones."""
    ends = {True: 0, False: 0}

    def span(width: int, is_narrow: bool) -> slice:
        start = ends[is_narrow]
        ends[is_narrow] = start + width
        return slice(start, start + width)

    averaged = [span(one.width, one.is_narrow) for one in task.averaged]
    return averaged, [span(one.numel, False) for one in task.summed]


def _is_finite(sums: Sums) -> bool:
    """Tell whether all sums are finite; any other value would show in their own sum."""
    totals = sums.narrow.sum(dtype=torch.float64) + sums.wide.sum()
    if bool(totals.isfinite()):
        return True
    return bool(sums.narrow.isfinite().all()) and bool(sums.wide.isfinite().all())


def _spoilt(
    tasks: Sequence[Task],
    turns: Sequence[Turn],
    frames: Sequence[Frame],
    rows: Callable[[str], Mapping[str, torch.Tensor]],
    device: torch.device | str,
) -> Iterator[str]:
    """Yield who delivers what is not finite: they take their turns once more."""
    for turn in turns:
        alone = nothing(tasks[turn.task], device)
        _Side(tasks[turn.task], frames, alone).take(turn, rows(turn.client))
        if not _is_finite(alone):
            yield turn.client
