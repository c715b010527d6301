"""A worker's configuration as text: what the demo writes, and the tests.

Rule: texts and lists of texts are written as in JSON, which TOML reads alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def configuration(
    name: str,
    *tables: str,
    at: Mapping[str, str],
    sessions: Sequence[str] = (),
    deliver: Sequence[str] = (),
    attach: Sequence[str] = (),
) -> str:
    """Return a worker's configuration, for a worker that has the file's folder.

    Args:
        name: the worker's.
        tables: all but ``[access]``, as ``table`` writes them.
        at: where it listens, or what it attaches to.
        sessions: who may open sessions.
        deliver: who may deliver into them.
        attach: who may dial in to be reached through it.
    """
    access = table("[access]", sessions=sessions, deliver=deliver, attach=attach)
    return "\n".join((table("", id=name, **at, folder="."), access, *tables))


def table(header: str, **values: str | Sequence[str]) -> str:
    """Return a table of texts and lists of texts."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in values.items()]
    return "".join([header + "\n" if header else "", *lines])
