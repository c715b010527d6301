"""One whole training of recordings whose loops went through other numbers of batches.

::

    draft = fold(trace)                          # loops, of batches that do the same
    program_of(draft, traces, inputs, ...)       # in ``unrolling``

A recording is one list of lines, in which it is marked where a batch begins. Batches of
one loop do the same, in other names: what they read is made by the same batch, by the
one before, or outside of the loop. The first may do something else.

Rules:

- A program is right if, unrolled, it is each of the recordings, line by line: whatever
  was guessed is held to that.
- Epochs one after the other are one loop, if they do the same.
- Where batches differ in turn, as with a step every four batches, a loop has as many
  parts. What a batch reads may be as old as that, and no older.
- To clear a gradient that is not there is nothing: a first batch does without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeAlias

from obhut.errors import ProgramError
from obhut.protocol.messages import Ref

from .program import WRITE_GRAD, Atom, Line

How: TypeAlias = tuple[int, bool, bool]
"""Rows of a batch (0 for all), shuffle, and drop_last."""


class FoldError(ProgramError):
    """A recording is no program.

    Attributes:
        site: the user's line that is why; None if it is unknown.
    """

    def __init__(self, site: object, text: str) -> None:
        self.site = site
        super().__init__(text)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A line of a recording, or of a draft.

    Attributes:
        line: the line. Ids of inputs are their numbers, and any others the recording's.
        site: the user's line.
        none: the ids of inputs that have no gradient before it.
    """

    line: Line
    site: object
    none: frozenset[int] = frozenset()


@dataclass(slots=True)
class Batch:
    """What was done to a batch.

    Attributes:
        rows: the ids of its rows.
        entries: what was done.
        none: the ids of inputs that have no gradient after it.
    """

    rows: tuple[int, ...]
    entries: list[Entry] = field(default_factory=list)
    none: frozenset[int] = frozenset()

    @property
    def made(self) -> list[int]:
        """The ids that it made, in order."""
        return [id for entry in self.entries for id in entry.line.makes]


@dataclass(slots=True)
class Epoch:
    """One time that a recording went through the rows.

    Attributes:
        how: in which batches.
        size: how many rows they had in this recording.
        batches: the batches.
    """

    how: How
    size: int
    batches: list[Batch] = field(default_factory=list)


Returned: TypeAlias = tuple[str, Ref, Ref | int | float]
"""Of a result the name, the numerator and the denominator."""


@dataclass(slots=True)
class Trace:
    """One recording.

    Attributes:
        blocks: lines, an epoch, lines, and so on; it begins and ends with lines.
        results: what was returned.
        rows: numbers of the inputs that are rows.
        own: how many inputs there are.
        counted: whether all epochs in the same batches had as many.
    """

    blocks: list[list[Entry] | Epoch]
    results: list[Returned]
    rows: tuple[int, ...]
    own: int
    counted: bool = True

    @property
    def counts(self) -> dict[How, tuple[int, int]]:
        """Of each loop, the rows and batches of an epoch."""
        return {
            one.how: (one.size * len(one.batches), len(one.batches))
            for one in self.blocks
            if isinstance(one, Epoch)
        }


@dataclass(slots=True, eq=False)
class Slot:
    """What is carried from batch to batch.

    Attributes:
        id: its name.
        initial: what it is at first.
        nexts: by part, what it becomes; else it stays.
    """

    id: int
    initial: int | None
    nexts: dict[int, int]


@dataclass(slots=True, eq=False)
class DraftLoop:
    """A loop whose numbers are not fitted yet.

    Attributes:
        how: in which batches.
        epochs: how often it goes through the rows.
        first: what the first batch does, if it does something else.
        parts: what the batches do in turn.
        slots: what is carried.
    """

    how: How
    epochs: int
    first: list[Entry] | None
    parts: list[list[Entry]]
    slots: list[Slot]


@dataclass(slots=True)
class Draft:
    """A program whose numbers are not fitted yet; its ids are those of one recording.

    Attributes:
        blocks: lines, a loop, lines, and so on.
        results: what is returned.
        rows: numbers of the inputs that are rows.
    """

    blocks: list[list[Entry] | DraftLoop]
    results: list[Returned]
    rows: tuple[int, ...]


# --- one recording ----------------------------------------------------------------


def fold(trace: Trace, periods: Sequence[int] = (1,)) -> Draft:
    """Return a draft whose loops a recording went through.

    Args:
        trace: the recording.
        periods: of how many parts loops may be, in the order to try. Of a loop twice as
            many batches must have been recorded, and one.

    Raises:
        FoldError: if there is none, by the line that is why.
    """
    return _Folder(trace, periods).draft


class _Folder:
    def __init__(self, trace: Trace, periods: Sequence[int]) -> None:
        self._trace, self._periods = trace, periods
        self.numbers = count(-1, -1)
        self.rows = trace.rows
        self._top = set(range(1, trace.own + 1)) - set(trace.rows)
        self._inner: dict[int, tuple[DraftLoop, int, int, bool]] = {}
        self._gone: set[int] = set()  # rows of batches
        blocks: list[list[Entry] | DraftLoop] = []
        place = 0
        while place < len(trace.blocks):
            block = trace.blocks[place]
            if isinstance(block, list):
                blocks.append([self._straight(one) for one in block])
                place += 1
                continue
            epochs = list(self._same(place))
            loop, taken = self._loop(epochs)
            blocks.append(loop)
            place += 2 * taken - 1
        results = [
            (name, self._outer(above, None), self._below(below))
            for name, above, below in trace.results
        ]
        self.draft = Draft(blocks, results, trace.rows)

    def _same(self, place: int) -> Iterator[Epoch]:
        """Yield an epoch and the ones that follow it at once, in the same batches."""
        blocks = self._trace.blocks
        first = blocks[place]
        while isinstance(epoch := blocks[place], Epoch) and isinstance(first, Epoch):
            if epoch.how != first.how:
                return
            yield epoch
            if blocks[place + 1] or place + 2 >= len(blocks):
                return
            place += 2

    def _loop(self, epochs: list[Epoch]) -> tuple[DraftLoop, int]:
        """Return a loop of all epochs or of the first, and of how many it is."""
        error: FoldError | None = None
        for length in dict.fromkeys((len(epochs), 1)):
            for period in self._periods:
                for peeled in (False, True):
                    try:
                        found = _Matcher(self, epochs[:length], period, peeled)
                    except FoldError as problem:
                        if error is None or (length == 1 and period == 1):
                            error = problem
                        continue
                    self._take(found, epochs[:length])
                    return found.loop, length
        raise error or FoldError(None, "a loop has no batches")

    def _take(self, found: _Matcher, epochs: Sequence[Epoch]) -> None:
        """Let later lines read what a loop has made."""
        batches = found.batches
        parts = len(found.loop.parts)
        for number, batch in enumerate(batches):
            self._gone.update(batch.rows)
            if found.loop.first is not None and not number:
                self._top.update(batch.made)
                continue
            part = found.part_of[number]
            names = batches[found.last[part]].made
            recent = number >= len(batches) - parts
            for id, name in zip(batch.made, names, strict=True):
                self._inner[id] = (found.loop, part, name, recent)

    def _straight(self, entry: Entry) -> Entry:
        self._top.update(entry.line.makes)

        def atom(one: Atom) -> Atom:
            return self._outer(one, entry.site) if isinstance(one, Ref) else one

        return replace(entry, line=entry.line.mapped(atom))

    def _below(self, below: Ref | int | float) -> Ref | int | float:
        return self._outer(below, None) if isinstance(below, Ref) else below

    def outer(self, id: int, site: object) -> int:
        """Return what is called in the draft what a loop takes from outside.

        Raises:
            FoldError: if it is not there any more.
        """
        if id in self._top:
            return id
        if id in self._gone:
            raise FoldError(site, "rows of an earlier batch are used; copy the value")
        loop, part, name, recent = self._inner[id]
        if not recent:
            raise FoldError(
                site,
                "something of an earlier batch is used after its loop: add it up in "
                "the loop, or keep it in a tensor that is there before",
            )
        for slot in loop.slots:
            if slot.nexts.get(part) == name:
                return slot.id
        loop.slots.append(Slot(next(self.numbers), None, {part: name}))
        return loop.slots[-1].id

    def _outer(self, one: Ref, site: object) -> Ref:
        return Ref(self.outer(one.id, site))


@dataclass(slots=True, eq=False)
class _Read:
    """A place of a part at which it reads something of an earlier batch.

    Attributes:
        nexts: by the part of that batch, what it is.
        initial: what it is at first.
    """

    nexts: dict[int, int] = field(default_factory=dict)
    initial: int | None = None


class _Matcher:
    """Holds the batches of some epochs against each other.

    Attributes:
        loop: the loop.
        batches: of all epochs.
        part_of: the part of each batch.
        last: of each part, the last batch, whose names it has.

    Raises:
        FoldError: if they do not the same.
    """

    def __init__(
        self, folder: _Folder, epochs: Sequence[Epoch], period: int, peeled: bool
    ) -> None:
        self.batches = [batch for epoch in epochs for batch in epoch.batches]
        if any(len(one.batches) < 2 * period + 1 for one in epochs):
            raise FoldError(None, "a loop has too few batches")
        self._folder, self._peeled = folder, peeled
        self.part_of = [n % period for one in epochs for n in range(len(one.batches))]
        self.last = {part: number for number, part in enumerate(self.part_of)}
        self._period = period
        self._made = {
            id: (number, place)
            for number, batch in enumerate(self.batches)
            for place, id in enumerate(batch.made)
        }
        self._rows = {id for batch in self.batches for id in batch.rows}
        for number in self.last.values():
            for entry in self.batches[number].entries:
                for id in entry.line.reads:
                    self._is_read(number, id, entry.site)
        reads: dict[tuple[int, int, int], _Read] = {}
        for number, batch in enumerate(self.batches):
            if number or not peeled:
                self._match(number, batch, reads)
        slots: list[Slot] = []
        for one in reads.values():
            if not any(_is(slot, one) for slot in slots):
                slots.append(Slot(next(folder.numbers), one.initial, one.nexts))
        parts = [self._part(part, reads, slots) for part in range(period)]
        first = self._first() if peeled else None
        self.loop = DraftLoop(epochs[0].how, len(epochs), first, parts, slots)

    def _first(self) -> list[Entry]:
        batch = self.batches[0]
        rows = dict(zip(batch.rows, self._folder.rows, strict=True))
        made = set(batch.made)

        def change(entry: Entry) -> Entry:
            def atom(one: Atom) -> Atom:
                if not isinstance(one, Ref) or one.id in made:
                    return one
                if one.id in rows:
                    return Ref(rows[one.id])
                return Ref(self._folder.outer(one.id, entry.site))

            return replace(entry, line=entry.line.mapped(atom))

        return [change(entry) for entry in batch.entries]

    def _part(
        self,
        part: int,
        reads: Mapping[tuple[int, int, int], _Read],
        slots: Sequence[Slot],
    ) -> list[Entry]:
        """Return what a part does, in the names of its last batch."""
        number = self.last[part]
        rows = dict(zip(self.batches[number].rows, self._folder.rows, strict=True))
        entries: list[Entry] = []
        for index, entry in enumerate(self.batches[number].entries):
            places = count()

            def atom(
                one: Atom,
                index: int = index,
                entry: Entry = entry,
                places: Iterator[int] = places,
            ) -> Atom:
                place = next(places)
                if not isinstance(one, Ref):
                    return one
                if (read := reads.get((part, index, place))) is not None:
                    return Ref(next(slot.id for slot in slots if _is(slot, read)))
                if one.id in rows:
                    return Ref(rows[one.id])
                if one.id in self._made:
                    return one  # of this batch, or of a first one
                return Ref(self._folder.outer(one.id, entry.site))

            entries.append(replace(entry, line=entry.line.mapped(atom)))
        return entries

    def _match(
        self, number: int, batch: Batch, reads: dict[tuple[int, int, int], _Read]
    ) -> None:
        """Hold a batch against the last one of its part."""
        part = self.part_of[number]
        model = self.batches[self.last[part]]
        for index, one, other in pairs(
            model.entries, batch.entries, batch.none, _DIFFERS
        ):
            for place, (mine, theirs) in enumerate(
                zip(one.line.atoms, other.line.atoms, strict=True)
            ):
                if not isinstance(mine, Ref) or not isinstance(theirs, Ref):
                    if not same(mine, theirs):
                        raise FoldError(other.site, _CHANGES)
                    continue
                key = (part, index, place)
                if self._is_read(self.last[part], mine.id, other.site):
                    read = reads.setdefault(key, _Read())
                    self._read(number, theirs.id, read, other.site)
                elif not self._is_same(number, batch, model, mine.id, theirs.id):
                    raise FoldError(other.site, _DIFFERS)

    def _is_read(self, number: int, id: int, site: object) -> bool:
        """Tell whether what the last batch of a part reads is of a batch before it."""
        if id in self._rows and id not in self.batches[number].rows:
            raise FoldError(site, "rows of an earlier batch are used; copy the value")
        then, _ = self._made.get(id, (number, 0))
        if then == number:
            return False
        if number - then <= self._period:
            return True
        if then or not self._peeled:
            raise FoldError(site, _OLDER)
        return False

    def _is_same(
        self, number: int, batch: Batch, model: Batch, mine: int, theirs: int
    ) -> bool:
        """Tell whether two batches read the same there."""
        if mine in model.rows:
            return theirs in batch.rows and batch.rows.index(
                theirs
            ) == model.rows.index(mine)
        then, place = self._made.get(mine, (0, 0))
        if mine in self._made and self.batches[then] is model:
            return self._made.get(theirs) == (number, place)
        return mine == theirs

    def _read(self, number: int, id: int, read: _Read, site: object) -> None:
        """Take in what a batch reads where others read of the batch before."""
        then, place = self._made.get(id, (-1, 0))
        if id in self._rows or then == number:
            raise FoldError(site, _DIFFERS)
        if then > 0 or (then == 0 and not self._peeled):
            part = self.part_of[then]
            made = self.batches[self.last[part]].made
            name = made[place] if place < len(made) else -1
            if read.nexts.setdefault(part, name) != name:
                raise FoldError(site, _OLDER)
            return
        initial = id if then == 0 else self._folder.outer(id, site)
        if read.initial is None:
            read.initial = initial
        if read.initial != initial:
            raise FoldError(site, _DIFFERS)


def _is(slot: Slot, read: _Read) -> bool:
    return slot.nexts == read.nexts and slot.initial == read.initial


_CHANGES = (
    "a number changes from batch to batch, and a program has one for all: count in a "
    "tensor, or outside of the loop"
)
_DIFFERS = "not all batches do the same here"
_OLDER = (
    "something is used that is older than the batch before: let a loop hand it on, "
    "sum by sum, or keep it in a tensor that is there before"
)


# --- two lists of lines -----------------------------------------------------------


def pairs(
    model: Sequence[Entry],
    entries: Sequence[Entry],
    none: frozenset[int],
    differs: str,
) -> Iterator[tuple[int, Entry, Entry]]:
    """Yield lines that must be the same, with their place in the first list.

    Gradients that the first list clears and that are not there are left out.

    Args:
        model: what is done.
        entries: what was recorded.
        none: which inputs have no gradient after that.
        differs: what is wrong if they are not of one form.

    Raises:
        FoldError: if they are not.
    """
    place = 0
    for index, one in enumerate(model):
        other = entries[place] if place < len(entries) else None
        cleared = _clears(one.line)
        if other is None or not _alike(one.line, other.line):
            if cleared in (none if other is None else other.none):
                continue
            left_out = other is None or any(
                _alike(later.line, other.line) for later in model[index + 1 :]
            )
            raise FoldError(one.site if left_out else other.site, differs)  # type: ignore[union-attr] # else it is left out
        if cleared and cleared != _clears(other.line):
            if cleared in other.none:
                continue
            raise FoldError(other.site, differs)
        yield index, one, other
        place += 1
    if place < len(entries):
        raise FoldError(entries[place].site, differs)


def _clears(line: Line) -> int | None:
    """Return whose gradient a line clears."""
    if line.name == WRITE_GRAD and line.args[1] is None:
        return next(line.reads)
    return None


def _alike(one: Line, other: Line) -> bool:
    """Tell whether lines are of one form."""
    return _form(one) == _form(other)


def _form(line: Line) -> object:
    named = tuple(name for name, _ in line.kwargs)
    kinds = [isinstance(atom, Ref) for atom in line.atoms]
    sizes = [len(one) if isinstance(one, list) else -1 for one in line.values]
    return line.name, line.count, line.grad, named, kinds, sizes


def same(one: object, other: object) -> bool:
    """Tell whether atoms are equal, and of one type."""
    if type(one) is not type(other):
        return False
    return one == other or (one != one and other != other)  # noqa: PLR0124 # NaN
