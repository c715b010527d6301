"""What the page says is refused is what the conformance tests find refused."""

import re
import tomllib
from pathlib import Path

from obhut.ops.table import ROWS, Flag, Kind

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "works.md"
REFUSED = ROOT / "tests" / "conformance" / "refused.toml"
SECTIONS = {
    "operators": "operators",
    "modules": "modules",
    "operators, with out=": "out",
    "optimizers": "optimizers",
}
"""Each kind of row on the page, and its table in the file."""


def rows(header: str) -> list[list[str]]:
    """Return the cells of the page's table that begins with a header."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(header)
    lines = rest.split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_names_all_that_is_refused() -> None:
    """Each name stands with its error and reason, and there is no other."""
    said = {
        (SECTIONS[kind], name, error.strip("`"), why)
        for kind, names, error, why in rows("| of the | which |")
        for name in re.findall(r"`([^`]+)`", names)
    }
    found = {
        (section, name, entry.get("error", "nothing to compare"), entry["reason"])
        for section, table in tomllib.loads(REFUSED.read_text("utf-8")).items()
        for name, entry in table.items()
    }
    assert said == found


def test_the_page_counts_what_is_equal() -> None:
    """What the databases hold, less what is refused, is what the page says is equal."""
    refused = tomllib.loads(REFUSED.read_text("utf-8"))
    counts = {kind: (int(all_), int(eq)) for kind, all_, eq in rows("| | in the")}
    for kind, (everything, equal) in counts.items():
        assert everything - len(refused[kind.split()[0]]) == equal
    assert [everything for everything, _ in counts.values()] == [677, 114, 15]


def guard_refused() -> set[tuple[str, str]]:
    """Return what the op table admits on open workers only, with the reason.

    An operator is named without its overloads if it is so for all that workers run.
    """
    runs: dict[str, set[str]] = {}
    refused: dict[tuple[str, str], set[str]] = {}
    for row in ROWS.values():
        if row.kind is not Kind.REFUSED:
            operator = row.name.split(".")[1]
            runs.setdefault(operator, set()).add(row.name)
            if Flag.GUARD_REFUSED in row.flags:
                key = operator, row.guard_reason
                refused.setdefault(key, set()).add(row.name)
    return {
        (name, why)
        for (operator, why), overloads in refused.items()
        for name in (
            [operator]
            if overloads == runs[operator]
            else [one.removeprefix("aten.") for one in overloads]
        )
    }


def test_the_page_names_all_that_a_policy_refuses() -> None:
    """Each operator that runs on open workers only stands with its reason."""
    said = {
        (name, why)
        for names, why in rows("| not behind a policy | why |")
        for name in re.findall(r"`([^`]+)`", names)
    }
    assert said == guard_refused()
