"""Which loops leave gradients and graphs to nobody, and need none of before.

::

    keeps_to_itself(program)                     # of each loop, True or False
    detached(program)                            # ids whose graph nobody needs

A batch of such a loop may run as a graph, inside of which its gradients are. A step is
one loop.

Rule: where it can't be told, a loop does not keep to itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from .program import (
    BACKWARD,
    READ_GRAD,
    REQUIRES_GRAD,
    STEP,
    WRITE_DATA,
    WRITE_GRAD,
    Kind,
    Line,
    Loop,
    Program,
)


def keeps_to_itself(program: Program) -> tuple[bool, ...]:
    """Return of each loop whether no gradient goes into a batch of it, or out."""
    loops = program.loops
    own = {id for id, one in enumerate(program.inputs, 1) if one.kind is Kind.PARAMETER}
    if not loops:
        needed, cleared = _flow(program.lines, program)
        return (all(cleared.get(id, False) for id in needed),)
    wanted: set[int] = set()  # by what comes later
    later: list[set[int]] = []
    for block in reversed(program.blocks):
        if isinstance(block, Loop):
            later.insert(0, set(wanted))
        flows = [_flow(lines, program) for lines in _straight(block)]
        settled = set.intersection(*(set(cleared) for _, cleared in flows))
        wanted = (wanted - settled).union(*(needed for needed, _ in flows))
    none = own
    found: list[bool] = []
    for block in program.blocks:
        if not isinstance(block, Loop):
            none = _none(none, (block,))
            continue
        (needed, cleared), *more = [_flow(part.lines, program) for part in block.parts]
        none = _none(none, block.first)
        left = later[len(found)]
        found.append(
            not more
            and not _marks(block)
            and needed <= none
            and all(cleared.get(id, False) for id in needed | left)
        )
        for part in block.parts:
            none &= _none(none, part.lines)
    return tuple(found)


def detached(program: Program) -> set[int]:
    """Return what is carried and read for its values only, not for its graph."""
    carried = {id for loop in program.loops for id, _ in loop.carried}
    read = {
        id
        for line in program.lines
        if line.name != "aten.detach.default"
        for id in line.reads
    }
    for loop in program.loops:
        read.update(id for _, id in loop.carried if id is not None)
        read.update(id for part in loop.parts for _, id in part.carried)
    return carried - read


def _marks(loop: Loop) -> bool:
    """Tell whether a loop changes for later what a graph takes as it is."""
    return any(
        line.name in (REQUIRES_GRAD, WRITE_DATA) and next(line.reads) not in loop.made
        for line in loop.lines
    )


def _straight(block: Line | Loop) -> list[tuple[Line, ...]]:
    """Return what may be the whole of a block."""
    if isinstance(block, Line):
        return [(block,)]
    return [part.lines for part in block.parts] + [block.first] * bool(block.first)


def _flow(lines: Iterable[Line], program: Program) -> tuple[set[int], dict[int, bool]]:
    """Return whose gradients of before lines need, and of which they wrote those.

    Of the latter it tells whether no gradient came since they were cleared.
    """
    needed: set[int] = set()
    cleared: dict[int, bool] = {}
    for line in lines:
        if line.name == WRITE_GRAD:
            cleared[next(line.reads)] = line.args[1] is None
        elif line.name == BACKWARD:
            cleared = dict.fromkeys(cleared, False)
        elif line.name == READ_GRAD:
            needed.update(id for id in line.reads if id not in cleared)
        elif line.name == STEP:
            groups = program.optimizers[line.args[0]].groups  # type: ignore[index] # checked
            needed.update(id for group in groups for id in group if id not in cleared)
    return needed, cleared


def _none(none: set[int], lines: Iterable[Line]) -> set[int]:
    """Return which have no gradient after lines, of those that had none before."""
    none = set(none)
    for line in lines:
        if line.name == BACKWARD:
            none.clear()
        elif line.name == WRITE_GRAD:
            (none.add if line.args[1] is None else none.discard)(next(line.reads))
    return none
