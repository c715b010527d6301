"""Tables of text, for a terminal and for a notebook.

::

    table = Table(("column", "unit"), [("age", "years")], notes=("569 rows",))
    str(table)
    table.html()

Rules:

- Cells may be a peer's words: in a terminal each is one line that moves no cursor, in a
  notebook it is no markup.
- No colour is set, so that a notebook's own are used, on light and on dark.
- A column that is empty throughout is left out.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from .wording import printable


@dataclass(frozen=True, slots=True)
class Table:
    """Lines of as many cells as the head has.

    Attributes:
        head: what stands above the columns.
        lines: the lines.
        notes: sentences below it.
        title: a line above it.
        right: whether all columns but the first end at the right, as numbers do.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    title: str = ""
    right: bool = False

    @property
    def _shown(self) -> list[list[str]]:
        """The head and the lines, without columns that are empty."""
        used = [
            place
            for place in range(len(self.head))
            if any(line[place] for line in self.lines) or not self.lines
        ]
        return [[line[place] for place in used] for line in (self.head, *self.lines)]

    def __str__(self) -> str:
        lines = [[printable(cell) for cell in line] for line in self._shown]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.rjust(width) if place and self.right else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        title = [printable(self.title)] * bool(self.title)
        return "\n".join([*title, *table, *map(printable, self.notes)])

    def html(self) -> str:
        """Return what a notebook shows."""
        head, *lines = self._shown
        title = f"<b>{html.escape(self.title)}</b>" if self.title else ""
        body = "".join(_row(line, "td", self.right) for line in lines)
        notes = "".join(f"<p>{html.escape(one)}</p>" for one in self.notes)
        return (
            f"{title}<table><thead>{_row(head, 'th', self.right)}</thead>"
            f"<tbody>{body}</tbody></table>{notes}"
        )


class Tabular:
    """Something that prints as a table."""

    __slots__ = ()

    @property
    def _table(self) -> Table:
        raise NotImplementedError

    def __repr__(self) -> str:
        return str(self._table)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self._table.html()


def _row(cells: Sequence[str], kind: str, right: bool) -> str:
    style = " style='text-align:right'" if right else ""
    inner = "".join(
        f"<{kind}{style if place else ''}>{html.escape(one)}</{kind}>"
        for place, one in enumerate(cells)
    )
    return f"<tr>{inner}</tr>"


def several(names: Sequence[str], most: int = 8) -> str:
    """Return names in a row, the first of them if there are many."""
    shown = ", ".join(names[:most])
    more = len(names) - most
    return f"{shown}, … {len(names):,} in all" if more > 0 else shown
