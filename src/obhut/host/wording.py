"""How errors and logs quote what others wrote.

Rules:

- A quotation in an error is one line of at most ``QUOTED`` characters.
- A line of a log is one line, whatever a peer put into it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

QUOTED = 60
"""Characters of a quotation."""


def quote(value: object) -> str:
    """Return what was written, in double quotes if it is text, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if len(text) > QUOTED:
        text = text[: QUOTED - 1] + "…"
    if not isinstance(value, str):
        return text
    # repr escapes what would break the line or the terminal; only its quotes differ.
    return '"' + repr(text + '"')[1:-2] + '"'


def toml_key(name: str) -> str:
    """Return a name as a key of TOML."""
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else quote(name)


def printable(text: str) -> str:
    """Return a text on one line, with an escape for each character that shows none.

    Line breaks, which would let a peer begin a line of its own in a log, and what moves
    a terminal's cursor or turns its writing round are among them.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like this one, if any is."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), by_lower, 1)
    return by_lower[close[0]] if close else None


def enumerate_names(names: Sequence[str], last: str = "and") -> str:
    """Return ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"
