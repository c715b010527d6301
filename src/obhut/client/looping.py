"""Records a whole training, which loops over the rows itself, as a program.

::

    recorded = record_training(train, {"model": model}, rows)

Rules:

- The function runs as it is, on copies, as a step does. What it gets as ``data`` yields
  a few batches without values, in loops of several lengths, of several sizes.
- What it does must be the same program in all of these recordings. A branch on the
  number of a batch shows if it is one of the first 134.
- Optimizers that it makes begin anew with each run. Their hyperparameters may change
  from epoch to epoch, and are the same for all batches of one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import torch
from torch.optim import Optimizer

from obhut.errors import ProgramError
from obhut.programs.folding import (
    Batch,
    Draft,
    Entry,
    Epoch,
    FoldError,
    How,
    Trace,
    fold,
)
from obhut.programs.program import WRITE_GRAD, Input, Kind, Line, Program, Size
from obhut.programs.unrolling import Unrolled, check_trace, unrolled
from obhut.protocol.messages import AnyRequest, Ref
from obhut.worker.shapes import dense
from obhut.worker.tensors import DTYPE_NAMES

from .call_site import CallSite, current_call_site
from .ratio import Ratio
from .recording import (
    Given,
    Recorded,
    Recorder,
    Rows,
    check_parts,
    dtypes_of,
    id_of,
    parts_of,
    ratios,
    settings_of,
)
from .remote_tensor import RemoteTensor
from .taps import Mark, at

# Any below: what the recorded function takes and returns.


class _Sizes(NamedTuple):
    """Of one recording, what loops go through.

    Attributes:
        rows: of a batch. Another loop's batches have the next.
        batches: of an epoch, likewise.
        first: how many more batches the first epoch has.
    """

    rows: tuple[int, ...]
    batches: tuple[int, ...]
    first: int = 0


_FITTED = (
    _Sizes((31, 43, 53), (5, 4, 7)),
    _Sizes((37, 41, 59), (7, 5, 4)),
    _Sizes((64, 67, 71), (6, 7, 5)),
    _Sizes((47, 61, 73), (2, 3, 1)),
    _Sizes((17, 19, 23), (3, 1, 2)),
    _Sizes((16, 16, 16), (1, 1, 1)),
)
_MAIN = {
    # periods: what is recorded to find them
    (1,): _Sizes((29, 43, 47), (4, 6, 5)),
    (2, 3, 4): _Sizes((29, 43, 47), (9, 11, 10)),
}
_LONGER = tuple(_Sizes((29, 43, 47), (n, n + 1, n + 2)) for n in (10, 11, 12))
_LONG = _Sizes((29, 43, 47), (4, 6, 5), 130)
_SMALL = tuple(_Sizes((n, n, n), (1, 1, 1)) for n in (8, 4, 2, 1))


def record_training(
    function: Callable[..., Any], given: Given, rows: Sequence[Rows]
) -> Recorded:
    """Return the program of a whole training.

    Args:
        function: takes all that is given, by name, and ``data``.
        given: the arguments.
        rows: what the rows of each tensor look like.

    Raises:
        ProgramError: if it can not be recorded, with the user's line.
    """

    def run(sizes: _Sizes) -> _Training:
        return _Training(function, given, rows, sizes)

    main, draft, made = _found(run)
    least = _LEAST
    with contextlib.suppress(ProgramError, RuntimeError, ValueError):
        # A normalization takes no single row, and few can't be divided by many.
        for sizes in _SMALL:
            if not check_trace(draft, run(sizes).trace, made):
                break
            least = min(sizes.rows)
    inputs, optimizers = main.inputs, main.optimizers
    program = Program(inputs, optimizers, made.blocks, made.results, least)
    return main.recorded(
        program,
        made.sites,  # type: ignore[arg-type] # as they were given
        [one for one in given.values() if isinstance(one, Optimizer)],
        [main.settings.get(number, {}) for number in range(len(optimizers))],
    )


def _found(run: Callable[[_Sizes], _Training]) -> tuple[_Training, Draft, Unrolled]:
    """Return the main recording, and what all recordings are of."""
    errors: list[FoldError] = []
    for periods, sizes in _MAIN.items():
        main = run(sizes)
        try:
            draft = fold(main.trace, periods)
            longer = _LONGER if len(periods) > 1 else ()
            others = [run(one) for one in (*_FITTED, *longer, _LONG)]
            for other in others:
                other.check_settings(main)
            traces = [one.trace for one in (main, *others)]
            return main, draft, unrolled(draft, traces, main.inputs)
        except FoldError as error:
            errors.append(error)
    site: Any = errors[0].site
    raise at(site, str(errors[0]))


class Data:
    """What a function gets as ``data`` while it is recorded."""

    def __init__(self, training: _Training) -> None:
        self._training = training

    def batches(
        self,
        size: int | None = None,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterator[Any]:
        """Go through a few batches, as a data set's ``batches`` does."""
        site = current_call_site()
        if generator is not None:
            raise at(site, "a worker draws the order from the seed of the run")
        if size is not None and (not isinstance(size, int) or size < 1):
            raise at(site, f"expected a batch size of 1 or more, got {size}")
        how = (size or 0, bool(shuffle), bool(drop_last))
        return self._training.epoch(how, site)

    def __len__(self) -> NoReturn:
        raise at(
            current_call_site(),
            "how many rows there are is not known here: count len(x) in a loop",
        )

    def __getattr__(self, name: str) -> NoReturn:
        raise at(
            current_call_site(),
            f"a program's data have no {name}: go through data.batches(32)",
        )


@dataclass(frozen=True, slots=True)
class _Begin(Mark):
    """An epoch begins."""

    how: How
    size: int


@dataclass(frozen=True, slots=True)
class _Next(Mark):
    """A batch begins."""

    rows: tuple[int, ...]


class _End(Mark):
    """An epoch is over."""


class _Training(Recorder):
    """One recording of a whole training.

    Attributes:
        trace: what was done.
        settings: of each optimizer its hyperparameters, by stage.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        given: Given,
        rows: Sequence[Rows],
        sizes: _Sizes,
    ) -> None:
        super().__init__()
        self.settings: dict[int, dict[int, Any]] = {}
        self._sizes, self._looks = sizes, rows
        self._hows: list[How] = []
        self._stage = 0
        self._ended: CallSite | None = None
        with torch.enable_grad():
            arguments = self.arguments(given)
            self.tap.watched = list(self._names)
            own = len(self._inputs)
            for place, one in enumerate(rows):
                shape: tuple[int | Size, ...] = (Size(1), *one.shape)
                dtype = DTYPE_NAMES[one.dtype]
                self._inputs.append(Input(f"data.{place}", Kind.ROWS, dtype, shape))
            results: dict[str, Ratio] = {}
            self.dtypes: tuple[torch.dtype, ...] = ()
            before = parts_of(arguments)
            with self.running():
                self.tap.log.clear()
                returned = function(**arguments, data=Data(self))
                self._check_whole()
                if returned is not None:
                    results = ratios(returned)
                    self.dtypes = dtypes_of(returned)
            check_parts(arguments, before)
        self.shapes = tuple(tuple(one.numerator.shape) for one in results.values())
        self._rows = tuple(range(own + 1, len(self._inputs) + 1))
        self.trace = self._traced(results)

    def check_settings(self, other: _Training) -> None:
        """Check that optimizers have the hyperparameters of another recording.

        Raises:
            FoldError: if not.
        """
        if any(
            options != other.settings.get(number, {}).get(stage, options)
            for number, settings in self.settings.items()
            for stage, options in settings.items()
        ):
            raise FoldError(
                None,
                "hyperparameters of an optimizer depend on how many rows or batches "
                "there are: let a schedule step once an epoch",
            )

    def epoch(self, how: How, site: CallSite | None) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        self._check_whole()
        if self._stage % 2:
            raise at(site, "a loop over the rows is inside of another: let it follow")
        if how not in self._hows:
            self._hows.append(how)
        more, place = divmod(self._hows.index(how), len(self._sizes.rows))
        size = self._sizes.rows[place] + 7 * more * (self._sizes.rows[0] > _LEAST)
        number = self._sizes.batches[place] + self._sizes.first * (not self._stage)
        self._stage += 1
        self.tap.log.append((_Begin(how, size), site))
        try:
            for _ in range(number):
                batch = [
                    self.tensor(dense((size, *one.shape), one.dtype))
                    for one in self._looks
                ]
                self.tap.log.append((_Next(tuple(map(id_of, batch))), site))
                yield batch[0] if len(batch) == 1 else tuple(batch)
        except GeneratorExit:
            self._ended = current_call_site() or site
            raise
        self._stage += 1
        self.tap.log.append((_End(), site))

    def _check_whole(self) -> None:
        if self._ended is not None:
            raise at(
                self._ended,
                "a loop ends here before its rows do: let it go through all batches",
            )

    def took_step(self, optimizer: Optimizer, number: int) -> None:
        """Write down a step, and the hyperparameters that it has.

        Raises:
            ProgramError: if they are not those of the epoch's other steps.
        """
        super().took_step(optimizer, number)
        found = settings_of(optimizer)
        known = self.settings.setdefault(number, {}).setdefault(self._stage, found)
        if known != found:
            raise at(
                current_call_site(),
                f"hyperparameters of {type(optimizer).__name__} change from batch to "
                "batch: let a schedule step once an epoch",
            )

    def _traced(self, results: Mapping[str, Ratio]) -> Trace:
        wanted = {
            id_of(one)
            for ratio in results.values()
            for one in ratio
            if isinstance(one, RemoteTensor)
        }
        used = self.used(wanted)
        blocks: list[list[Entry] | Epoch] = [[]]
        entries: list[Entry] = []
        blocks[0] = entries
        bare = frozenset(self._names.values())
        batch: Batch | None = None
        for index, (entry, site) in enumerate(self.tap.log):
            if isinstance(entry, Mark):
                if batch is not None:
                    batch.none = bare
                batch = None
                if isinstance(entry, _Begin):
                    epoch = Epoch(entry.how, entry.size)
                    blocks.append(epoch)
                elif isinstance(entry, _Next):
                    batch = Batch(tuple(id + _AFTER for id in entry.rows))
                    epoch.batches.append(batch)
                    entries = batch.entries
                else:
                    entries = []
                    blocks.append(entries)
                continue
            if index not in used:
                continue
            line = entry if isinstance(entry, Line) else self._line(entry, site)
            entries.append(Entry(line, site, bare))
            if index in self.tap.bare:
                bare = frozenset(self._names[id] for id in self.tap.bare[index])
            elif line.name == WRITE_GRAD:
                written = {next(line.reads)}
                bare = bare | written if line.args[1] is None else bare - written
        returned = [
            (name, self._ref(id_of(one.numerator)), self._below(one.denominator))
            for name, one in results.items()
        ]
        own = len(self._inputs)
        return Trace(blocks, returned, self._rows, own, not self._sizes.first)

    def _line(self, request: AnyRequest, site: CallSite | None) -> Line:
        self.tap.now = site
        line = self.line(request, self._ref)
        return replace(line, out=line.out + _AFTER) if line.count else line

    def _ref(self, id: int) -> Ref:
        """Return what an id is called: inputs have their numbers."""
        return Ref(self._names.get(id, id + _AFTER))

    def _below(self, below: Any) -> Ref | int | float:
        number: int | float = below
        return self._ref(id_of(below)) if isinstance(below, RemoteTensor) else number


_AFTER = 1 << 32
"""What is added to ids, so that none is an input's number."""

_LEAST = 16
"""Rows of a batch with which a program must be one in any case."""
