"""Holds a draft of a whole training to each of its recordings, and fits its numbers.

::

    blocks, results, sites = unrolled(draft, traces, inputs)

Rules:

- Unrolled, the draft is each recording, line by line, number by number.
- What is carried may end otherwise in recordings of fewer batches: that is learnt from
  them, and all are gone through again.
- A number follows from the rows of the batch, or from the rows and batches that loops
  go through. It is the same in all batches of as many rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

from obhut.errors import ProgramError
from obhut.protocol.messages import Ref

from .fitting import fit_atom
from .folding import (
    Batch,
    Draft,
    DraftLoop,
    Entry,
    Epoch,
    FoldError,
    How,
    Slot,
    Trace,
    pairs,
    same,
)
from .program import Atom, Input, Line, Loop, Part, Result, Tally


class Unrolled(NamedTuple):
    """A whole training.

    Attributes:
        blocks: of a program, likewise the results.
        results: likewise.
        sites: the user's line of each line.
    """

    blocks: tuple[Line | Loop, ...]
    results: tuple[Result, ...]
    sites: tuple[object, ...]


def unrolled(
    draft: Draft, traces: Sequence[Trace], inputs: Sequence[Input]
) -> Unrolled:
    """Return the program that all recordings are of.

    Args:
        draft: of the first recording. What is learnt of what is carried stays in it.
        traces: the recordings.
        inputs: the program's.

    Raises:
        FoldError: if there is none, by the line that is why.
    """
    while True:
        samples = _Samples()
        learnt = [_Walk(draft, trace, samples).learnt for trace in traces]
        if not any(learnt):
            break
    return _Writer(draft, samples, len(inputs)).written


def check_trace(draft: Draft, trace: Trace, made: Unrolled) -> bool:
    """Tell whether a program is a recording's too, of batches of another size."""
    samples = _Samples()
    try:
        if _Walk(draft, trace, samples).learnt:
            return False
    except FoldError:
        return False
    lines = [
        line
        for block in made.blocks
        for line in (block.lines if isinstance(block, Loop) else (block,))
    ]
    keys: list[object] = [*_entries(draft), *(one.name for one in made.results)]
    atoms = [list(line.atoms) for line in lines]
    atoms += [[one.denominator] for one in made.results]
    names = _names(draft)
    return all(
        _is_sample(mine, sample, names)
        for key, mine in zip(keys, atoms, strict=True)
        for sample in samples.of(key)
    )


def _is_sample(
    atoms: Sequence[Atom], sample: _Sample, names: Mapping[How, int]
) -> bool:
    """Tell whether arguments are what was found in a recording."""
    counts = _counted(sample.counts or {}, names)
    line = Line("", tuple(atoms)).at(sample.rows or 0, counts)
    return all(
        isinstance(theirs, Ref) or same(mine, theirs)
        for mine, theirs in zip(line.atoms, sample.atoms, strict=True)
    )


# --- one recording ----------------------------------------------------------------


class _Sample(NamedTuple):
    """What a line's arguments were.

    Attributes:
        rows: of the batch; None outside of loops.
        counts: of each loop; None if they are not what they are in other epochs.
        atoms: the arguments.
    """

    rows: int | None
    counts: Mapping[How, tuple[int, int]] | None
    atoms: tuple[Atom, ...]


class _Samples:
    """Arguments of each line, once for each recording and size."""

    def __init__(self) -> None:
        self._found: dict[object, dict[object, _Sample]] = {}

    def of(self, key: object) -> list[_Sample]:
        """Return what is known of a line."""
        return list(self._found.get(key, {}).values())

    def add(self, key: object, sample: _Sample, site: object) -> None:
        """Take in a line's arguments.

        Raises:
            FoldError: if they differ from those in another batch of the same size.
        """
        counts = tuple(sample.counts.items()) if sample.counts else None
        known = self._found.setdefault(key, {}).setdefault(
            (sample.rows, counts), sample
        )
        for mine, theirs in zip(known.atoms, sample.atoms, strict=True):
            if not isinstance(mine, Ref) and not same(mine, theirs):
                raise FoldError(
                    site,
                    "a number changes from batch to batch, and a program has one for "
                    "all: count in a tensor, or outside of the loop",
                )


class _Walk:
    """Goes through a draft and a recording together.

    Attributes:
        learnt: whether something was learnt of what is carried.

    Raises:
        FoldError: if the recording is another program's.
    """

    def __init__(self, draft: Draft, trace: Trace, samples: _Samples) -> None:
        self.learnt = False
        self._samples = samples
        self._counts = trace.counts if trace.counted else None
        self._env = {id: id for id in range(1, trace.own + 1)}
        self._rows = draft.rows
        self._slots: dict[int, tuple[Slot, dict[int, tuple[int | None, int]]]] = {}
        place = 0
        for block in draft.blocks:
            if isinstance(block, DraftLoop):
                place = self._loop(block, trace.blocks, place)
                continue
            there = trace.blocks[place] if place < len(trace.blocks) else None
            if not isinstance(there, list):
                raise FoldError(None, _OTHERWISE)
            end = trace.blocks[place + 1 :]
            none = _none_at(end)
            self._lines(block, there, none, None)
            place += 1
        if place < len(trace.blocks):
            raise FoldError(None, _OTHERWISE)
        for mine, theirs in zip(draft.results, trace.results, strict=True):
            if mine[0] != theirs[0]:
                raise FoldError(None, _OTHERWISE)
            self._ref(mine[1], theirs[1], None)
            if isinstance(mine[2], Ref) and isinstance(theirs[2], Ref):
                self._ref(mine[2], theirs[2], None)
            samples.add(mine[0], _Sample(None, self._counts, (theirs[2],)), None)

    def _loop(
        self, loop: DraftLoop, blocks: Sequence[list[Entry] | Epoch], place: int
    ) -> int:
        """Go through all epochs of a loop; return the place after them."""
        origins: dict[int, tuple[int | None, int]] = {}
        for slot in loop.slots:
            self._slots[slot.id] = slot, origins
        if loop.first is None:
            self._begin(loop)
        for number in range(loop.epochs):
            if number:
                if blocks[place] != []:
                    raise FoldError(_site_of(blocks[place]), _OTHERWISE)
                place += 1
            epoch = blocks[place] if place < len(blocks) else None
            if not isinstance(epoch, Epoch) or epoch.how != loop.how:
                raise FoldError(None, _OTHERWISE)
            for turn, batch in enumerate(epoch.batches):
                self._env.update(zip(self._rows, batch.rows, strict=True))
                if loop.first is not None and not (number or turn):
                    self._batch(loop.first, batch, epoch.size, None, origins)
                    self._begin(loop)
                    continue
                part = turn % len(loop.parts)
                self._batch(loop.parts[part], batch, epoch.size, part, origins)
                now = {
                    slot.id: self._env[slot.nexts[part]]
                    for slot in loop.slots
                    if part in slot.nexts
                }
                self._env.update(now)
            place += 1
        return place

    def _begin(self, loop: DraftLoop) -> None:
        for slot in loop.slots:
            self._env.pop(slot.id, None)
            if slot.initial is not None:
                self._env[slot.id] = self._env[slot.initial]

    def _batch(
        self,
        model: Sequence[Entry],
        batch: Batch,
        size: int,
        part: int | None,
        origins: dict[int, tuple[int | None, int]],
    ) -> None:
        self._lines(model, batch.entries, batch.none, size)
        for entry in model:
            for id in entry.line.makes:
                origins[self._env[id]] = part, id

    def _lines(
        self,
        model: Sequence[Entry],
        entries: Sequence[Entry],
        none: frozenset[int],
        rows: int | None,
    ) -> None:
        for _, one, other in pairs(model, entries, none, _OTHERWISE):
            atoms = tuple(other.line.atoms)
            for mine, theirs in zip(one.line.atoms, atoms, strict=True):
                if isinstance(mine, Ref) and isinstance(theirs, Ref):
                    self._ref(mine, theirs, other.site)
            sample = _Sample(rows, self._counts, atoms)
            self._samples.add(one, sample, other.site)
            makes = zip(one.line.makes, other.line.makes, strict=True)
            self._env.update(makes)

    def _ref(self, mine: Ref, theirs: Ref, site: object) -> None:
        """Hold what is read against what was read."""
        if self._env.get(mine.id) == theirs.id:
            return
        slot, origins = self._slots.get(mine.id, (None, {}))
        part, id = origins.get(theirs.id, (None, 0))
        if slot is not None and part is not None and part not in slot.nexts:
            slot.nexts[part] = id
        elif slot is not None and id and part is None and slot.initial is None:
            slot.initial = id
        else:
            raise FoldError(site, _OTHERWISE)
        self.learnt = True
        self._env[mine.id] = theirs.id


_OTHERWISE = (
    "what is done depends on how many rows or batches there are, or on which batch it "
    "is: do the same whatever the size"
)


def _none_at(blocks: Sequence[list[Entry] | Epoch]) -> frozenset[int]:
    """Return which inputs have no gradient where lines end, as far as it is known."""
    for block in blocks:
        entries = block
        if isinstance(block, Epoch):
            entries = [entry for batch in block.batches for entry in batch.entries]
        for entry in entries:  # type: ignore[union-attr] # a list
            return frozenset(entry.none)
    return frozenset()


def _site_of(block: list[Entry] | Epoch) -> object:
    return block[0].site if isinstance(block, list) and block else None


# --- all of them ------------------------------------------------------------------


def _entries(draft: Draft) -> Iterator[Entry]:
    for block in draft.blocks:
        if isinstance(block, DraftLoop):
            for entries in (block.first or [], *block.parts):
                yield from entries
        else:
            yield from block


def _names(draft: Draft) -> dict[How, int]:
    """Return of all that a loop is its number."""
    loops = [one.how for one in draft.blocks if isinstance(one, DraftLoop)]
    return {how: loops.index(how) for how in loops}


def _counted(
    counts: Mapping[How, tuple[int, int]], names: Mapping[How, int]
) -> dict[str, int]:
    return {
        f"{kind}{names[how]}": number
        for how, both in counts.items()
        for kind, number in zip("NK", both, strict=True)
    }


class _Writer:
    """Gives a draft its numbers, and names in order."""

    def __init__(self, draft: Draft, samples: _Samples, inputs: int) -> None:
        self._samples = samples
        self._loops = _names(draft)
        self._names = {id: id for id in range(1, inputs + 1)}
        self._last = inputs
        self._sites: list[object] = []
        used = {id for entry in _entries(draft) for id in entry.line.reads}
        used |= {
            one.id for _, *both in draft.results for one in both if isinstance(one, Ref)
        }
        blocks: list[Line | Loop] = []
        for block in draft.blocks:
            if isinstance(block, DraftLoop):
                blocks.append(self._loop(block, used))
            else:
                blocks += map(self._line, block)
        results: list[Result] = []
        for name, above, below in draft.results:
            found: Atom
            if isinstance(below, Ref):
                found = self._name(below)
            else:
                found = self._fit(samples.of(name), 0, None)
            results.append(Result(name, self._name(above), found))  # type: ignore[arg-type] # a number
        self.written = Unrolled(tuple(blocks), tuple(results), tuple(self._sites))

    def _name(self, one: Ref) -> Ref:
        return Ref(self._names[one.id])

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _loop(self, loop: DraftLoop, used: set[int]) -> Loop:
        first = tuple(map(self._line, loop.first or ()))
        slots: list[Slot] = []
        carried: list[tuple[int, int | None]] = []
        for slot in loop.slots:
            if slot.id not in used:
                continue
            twin = next((one for one in slots if _is_twin(one, slot)), None)
            if twin is not None:
                self._names[slot.id] = self._names[twin.id]
                continue
            slots.append(slot)
            initial = None if slot.initial is None else self._names[slot.initial]
            self._names[slot.id] = self._next()
            carried.append((self._names[slot.id], initial))
        parts: list[Part] = []
        for place, entries in enumerate(loop.parts):
            lines = tuple(map(self._line, entries))
            nexts = tuple(
                (self._names[slot.id], self._names[slot.nexts[place]])
                for slot in slots
                if place in slot.nexts
            )
            parts.append(Part(lines, nexts))
        return Loop(*loop.how, loop.epochs, first, tuple(carried), tuple(parts))

    def _line(self, entry: Entry) -> Line:
        samples = self._samples.of(entry)
        places = itertools.count()

        def atom(one: Atom) -> Atom:
            place = next(places)
            if isinstance(one, Ref):
                return self._name(one)
            return self._fit(samples, place, entry.site)

        line = entry.line.mapped(atom)
        out = self._last + 1 if line.count else line.out
        for id in entry.line.makes:
            self._names[id] = self._next()
        self._sites.append(entry.site)
        return replace(line, out=out)

    def _fit(self, samples: Sequence[_Sample], place: int, site: object) -> Atom:
        """Return what a number follows from."""
        values = [one.atoms[place] for one in samples]
        if all(same(one, values[0]) for one in values):
            return values[0]
        try:
            by_rows: dict[int, Atom] = {}
            for one, value in zip(samples, values, strict=True):
                if one.rows is None or not same(
                    by_rows.setdefault(one.rows, value), value
                ):
                    raise ProgramError("")
            return fit_atom(tuple(by_rows), tuple(by_rows.values()))
        except ProgramError:
            found = _tally(
                [
                    (_counted(one.counts, self._loops), value)
                    for one, value in zip(samples, values, strict=True)
                    if one.counts is not None
                ]
            )
        if found is None:
            raise FoldError(
                site,
                "a number depends on the rows or batches in another way than n, or a "
                "part of a batch",
            )
        return found


def _is_twin(one: Slot, other: Slot) -> bool:
    return one.initial == other.initial and one.nexts == other.nexts


def _tally(values: Sequence[tuple[Mapping[str, int], Atom]]) -> Tally | None:
    """Return a number as a sum of multiples of counts."""
    if any(type(value) is not int for _, value in values) or not values:
        return None
    names = sorted(values[0][0])
    for many in (1, 2):
        for chosen in itertools.combinations(names, many):
            rows = [
                ([Fraction(counts[name]) for name in chosen] + [Fraction(1)], value)
                for counts, value in values
            ]
            found = _solved(rows, many + 1)
            if found is not None and all(one.denominator == 1 for one in found):
                *factors, fixed = map(int, found)
                terms = tuple(zip(factors, chosen, strict=True))
                return Tally(terms, fixed)
    return None


def _solved(
    rows: Sequence[tuple[list[Fraction], Atom]], unknown: int
) -> list[Fraction] | None:
    """Return the one solution of linear equations, if there is one."""
    table = [[*left, Fraction(right)] for left, right in rows]  # type: ignore[arg-type] # whole numbers
    for column in range(unknown):
        pivot = next((r for r in range(column, len(table)) if table[r][column]), None)
        if pivot is None:
            return None
        table[column], table[pivot] = table[pivot], table[column]
        top = [one / table[column][column] for one in table[column]]
        table[column] = top
        for place, row in enumerate(table):
            if place != column and row[column]:
                factor = row[column]
                table[place] = [a - factor * b for a, b in zip(row, top, strict=True)]
    if any(row[-1] for row in table[unknown:]):
        return None
    return [row[-1] for row in table[:unknown]]
