"""Whether the loops of a whole training are ones that workers run.

Rules:

- Rows, and numbers that follow from the rows of a batch, are in loops only.
- What a batch makes is read by its own part only. What it hands on is carried.
"""

from __future__ import annotations

from collections.abc import Iterable

from obhut.errors import ProgramError
from obhut.protocol import limits
from obhut.protocol.messages import Ref

from .program import Atom, Line, Loop, Program, Share, Size, Tally


def check_loops(program: Program) -> None:
    """Check a whole training's loops, and what may be read where.

    Raises:
        ProgramError: if workers don't run them.
    """
    loops = program.loops
    if len(loops) > limits.LOOPS_PER_PROGRAM:
        raise ProgramError(
            f"a program has at most {limits.LOOPS_PER_PROGRAM:,} loops over its rows, "
            f"this one {len(loops):,}: do the same in each epoch"
        )
    if sum(loop.epochs for loop in loops) > limits.EPOCHS:
        raise ProgramError(f"a program has at most {limits.EPOCHS:,} epochs")
    counts = {f"{kind}{place}" for place in range(len(loops)) for kind in "NK"}
    rows = set(program.rows)
    known = set(range(1, len(program.inputs) + 1)) - rows
    for block in program.blocks:
        if isinstance(block, Line):
            known |= _check_lines((block,), counts, known, within=False)
        else:
            _check_loop(block, rows, known, counts)
    for result in program.results:
        _check_known((result.numerator, result.denominator), known)
        _check_number(result.denominator, counts, within=False)


def _check_loop(loop: Loop, rows: set[int], known: set[int], counts: set[str]) -> None:
    """Check a loop, and let what it carries be known."""
    if not 1 <= len(loop.parts) <= limits.PARTS_PER_LOOP or not loop.epochs:
        raise ProgramError(
            f"a loop does 1 to {limits.PARTS_PER_LOOP} things in turn, once or more"
        )
    known |= _check_lines(loop.first, counts, known, rows)
    _check_known((Ref(id) for _, id in loop.carried if id is not None), known)
    carried = {id for id, _ in loop.carried}
    for part in loop.parts:
        made = _check_lines(part.lines, counts, known, rows, carried)
        _check_known((Ref(id) for _, id in part.carried), made, known, carried)
        named = [id for id, _ in part.carried]
        if len({*named}) < len(named) or not carried.issuperset(named):
            raise ProgramError("a batch hands on what its loop carries, each once")
    known |= carried


def _check_lines(
    lines: Iterable[Line], counts: set[str], *known: set[int], within: bool = True
) -> set[int]:
    """Check what lines read; return what they make."""
    made: set[int] = set()
    for line in lines:
        _check_known((Ref(id) for id in line.reads), made, *known)
        for atom in line.atoms:
            _check_number(atom, counts, within=within)
        made.update(line.makes)
    return made


def _check_known(atoms: Iterable[Atom], *known: set[int]) -> None:
    for one in atoms:
        if isinstance(one, Ref) and not any(one.id in ids for ids in known):
            raise ProgramError(
                "something is read that is of another batch, and not carried, or rows "
                "are read outside of loops"
            )


def _check_number(atom: Atom, counts: set[str], *, within: bool) -> None:
    if isinstance(atom, Size | Share) and not within:
        raise ProgramError("there is no $B outside of loops")
    if isinstance(atom, Tally) and not counts.issuperset(
        name for _, name in atom.terms
    ):
        raise ProgramError("a number counts what no loop goes through")
