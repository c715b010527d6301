"""Draw the rooms of the package, and who imports whom, into ``docs/layers/rooms.svg``.

::

    .venv/bin/python tools/rooms.py            # draws it
    .venv/bin/python tools/rooms.py --check    # fails if it is not what stands there
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "layers" / "rooms.svg"

INNER = {
    "transports": ("transports.serving", "transports.relay", "transports.grpc",
                   "transports.pipe", "transports.local"),
}  # fmt: skip
"""Rooms within a layer, from the top."""

CELL, LEFT, TOP = 26, 180, 150
"""Pixels of a cell, and before the first one."""


def rooms() -> list[str]:
    """Return the rooms from the top, in the order that import-linter holds them to."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    layers = next(one for one in contracts if one["type"] == "layers")["layers"]
    found: list[str] = []
    for layer in layers:
        name = layer.strip("()").removeprefix("obhut.")
        found += INNER.get(name, (name,))
    return found


def room_of(module: str, known: Iterable[str]) -> str | None:
    """Return the room that a module is in, or None for the package's front door."""
    path = module.removeprefix("obhut.")
    fits = [one for one in known if path == one or path.startswith(f"{one}.")]
    return max(fits, key=len) if fits else None


def imports(known: list[str]) -> set[tuple[str, str]]:
    """Return which room imports which."""
    graph = grimp.build_graph(
        "obhut", exclude_type_checking_imports=True, cache_dir=None
    )
    found: set[tuple[str, str]] = set()
    for module in graph.modules:
        here = room_of(module, known)
        for imported in graph.find_modules_directly_imported_by(module):
            there = room_of(imported, known)
            if here and there and here != there:
                found.add((here, there))
    return found


def draw(known: list[str], edges: set[tuple[str, str]]) -> str:
    """Return the picture: a dot where the room of a row imports that of a column."""
    place = {name: number for number, name in enumerate(known)}
    size = CELL * len(known)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + size + 60}" '
        f'height="{TOP + size + 20}" font-family="sans-serif" font-size="14">',
        "<title>Rooms of obhut, and who imports whom</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for name, number in place.items():
        said, at = name.replace(".", "/"), CELL * number
        if number % 2:
            lines.append(
                f'<rect x="10" y="{TOP + at}" width="{LEFT + size - 10}" '
                f'height="{CELL}" fill="#f1f5f9"/>'
            )
        middle = at + CELL // 2
        lines += [
            f'<text x="{LEFT - 12}" y="{TOP + middle + 5}" text-anchor="end" '
            f'fill="#123">{said}</text>',
            f'<text transform="translate({LEFT + middle + 4} {TOP - 10}) rotate(-55)" '
            f'fill="#123">{said}</text>',
            f'<rect x="{LEFT + at}" y="{TOP + at}" width="{CELL}" height="{CELL}" '
            'fill="#cbd8e4"/>',
        ]
    lines += [
        f'<circle cx="{LEFT + CELL * place[there] + CELL // 2}" '
        f'cy="{TOP + CELL * place[here] + CELL // 2}" r="6" fill="#356"/>'
        for here, there in sorted(edges, key=lambda e: (place[e[0]], place[e[1]]))
    ]
    return "\n".join([*lines, "</svg>", ""])


def main() -> int:
    """Draw the picture, or check that it is drawn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    asked = parser.parse_args()
    known = rooms()
    edges = imports(known)
    place = {name: row for row, name in enumerate(known)}
    up = sorted(edge for edge in edges if place[edge[0]] > place[edge[1]])
    print(f"{len(known)} rooms, {len(edges)} imports, {len(up)} of them upwards: {up}")
    picture = draw(known, {edge for edge in edges if edge not in up})
    if asked.check:
        if PICTURE.read_text(encoding="utf-8") != picture:
            print(f"{PICTURE.name} is out of date: python tools/rooms.py")
            return 1
        return 0
    PICTURE.write_text(picture, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
