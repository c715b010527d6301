"""Clients' turns in as many portions as there are actors, of about as many rows.

::

    portions = dealt(turns, rows, 2)         # by place in the order of addition
    portions[0].singly()                     # after a loss: one turn each

Rule: portions depend on the turns, the rows and the number alone, not on who computes
first, so that sums are the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from obhut.worker.tasks import Turn


@dataclass(frozen=True, slots=True)
class Portion:
    """Turns that one actor gets in one call.

    Attributes:
        place: where its sums come, among all.
        turns: in the order in which they are taken.
        losses: how many actors were lost that had them.
        spared: whether one was lost besides that can not have begun them.
    """

    place: tuple[int, int]
    turns: tuple[Turn, ...]
    losses: int = 0
    spared: bool = False

    def singly(self) -> Iterator[Portion]:
        """Yield a portion for each turn, after an actor was lost that had all.

        If another one is, it shows whose turn it was.
        """
        first, second = self.place
        for number, turn in enumerate(self.turns):
            yield Portion((first, second + number), (turn,), self.losses + 1)


def dealt(turns: Sequence[Turn], rows: Sequence[int], count: int) -> list[Portion]:
    """Return portions: the largest turns first, each to who has the fewest rows.

    Args:
        turns: one a client.
        rows: of each.
        count: portions at most.
    """
    loads = [0] * min(count, len(turns))
    dealt: list[list[int]] = [[] for _ in loads]
    for number in sorted(range(len(turns)), key=lambda number: -rows[number]):
        least = loads.index(min(loads))
        loads[least] += max(rows[number], 1)
        dealt[least].append(number)
    return [
        Portion((place, 0), tuple(turns[number] for number in sorted(numbers)))
        for place, numbers in enumerate(dealt)
    ]
