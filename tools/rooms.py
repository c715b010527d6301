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

ROW, TOP, LEFT, WIDTH = 44, 24, 24, 190


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
    """Return the picture: an arc to the right for each room that one imports."""
    middle = {name: TOP + ROW * row + ROW // 2 for row, name in enumerate(known)}
    right, height = LEFT + WIDTH, TOP * 2 + ROW * len(known)
    reach = max(middle[b] - middle[a] for a, b in edges) // 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + reach + 40}" '
        f'height="{height}" font-family="sans-serif" font-size="14">',
        "<title>Rooms of obhut, and who imports whom</title>",
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for a, b in sorted(edges, key=lambda edge: (middle[edge[0]], middle[edge[1]])):
        start, end = middle[a] + 6, middle[b] - 6
        bend = (end - start) // 2 + 10
        lines.append(
            f'<path d="M{right} {start} C{right + bend} {start} {right + bend} {end} '
            f'{right + 5} {end}" fill="none" stroke="#457" stroke-opacity="0.55"/>'
            f'<path d="M{right + 7} {end - 4} L{right} {end} L{right + 7} {end + 4}" '
            'fill="#457"/>'
        )
    lines += [
        f'<rect x="{LEFT}" y="{middle[name] - 15}" width="{WIDTH}" height="30" rx="4" '
        f'fill="#eef3f8" stroke="#457"/><text x="{LEFT + 10}" y="{middle[name] + 5}" '
        f'fill="#123">{name.replace(".", "/")}</text>'
        for name in known
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
