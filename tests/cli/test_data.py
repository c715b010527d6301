"""``obhut data describe``: what a file holds, and a table that serves it."""

from __future__ import annotations

import sqlite3
import tomllib
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.host.conftest import HEAD, Configure, configure
from tests.host.files.make import CASES

from obhut.host.data import datasets
from obhut.transports.pipe.loading import loading

from .conftest import Invoke

__all__ = ["configure"]

EXPORT = next(case for case in CASES if case.name == "a clinic's export")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """The clinic's export."""
    (content,) = EXPORT.files.values()
    assert isinstance(content, bytes)
    file = tmp_path / "export.csv"
    file.write_bytes(content)
    return file


def test_a_spreadsheets_export_is_served_after_one_edit(
    export: Path, invoke: Invoke, configure: Configure
) -> None:
    """Semicolons, decimal commas, k.A., words and dates: only the target is missing."""
    result = invoke("data", "describe", export, "--toml")
    assert result.exit_code == 0, result.stderr
    table = tomllib.loads(result.stdout)["dataset"][0]
    assert table["encoding"] == "cp1252"
    assert (table["delimiter"], table["decimal"]) == (";", ",")
    assert table["missing_values"] == ["k.A."]
    assert table["exclude"] == ["Patient"]
    assert table["encode"] == {
        "Geschlecht": ["m", "w"],
        "Aufnahme": {"days": "%d.%m.%Y"},
        "Raucher": "boolean",
        "Befund": ["benigne", "maligne"],
    }
    edited = result.stdout.replace('# target = "…"', 'target = "Befund"')
    assert edited != result.stdout
    (dataset,) = datasets.load(configure(HEAD + edited).datasets).values()
    assert dataset.tensors["features"].shape == (3, 5)
    target = dataset.tensors["target"]
    assert (target.dtype, target.shape) == ("int64", (3,))


def test_a_file_is_described_by_column(export: Path, invoke: Invoke) -> None:
    """What each column becomes, what is missing in it, and how far it goes."""
    result = invoke("data", "describe", export)
    assert result.exit_code == 0, result.stderr
    lines = [line.strip() for line in result.stdout.splitlines()]
    (age,) = (line for line in lines if line.startswith("Alter"))
    assert age.split()[-3:] == ["1", "54", "61"]
    (sex,) = (line for line in lines if line.startswith("Geschlecht"))
    assert "m 1" in sex
    assert "w 2" in sex
    assert "[[dataset]]" in lines


@pytest.mark.parametrize(
    "kind", ["parquet", "npz", "sqlite", "duckdb", "images", "parts"]
)
def test_what_is_suggested_loads(
    tmp_path: Path, invoke: Invoke, configure: Configure, kind: str
) -> None:
    """Of each kind of file, as it is suggested."""
    frame = pd.DataFrame({"a": [1.5, 2.5], "g": ["x", "y"], "i": [1, 2]})
    frame = pd.concat([frame] * 3, ignore_index=True)
    match kind:
        case "parquet":
            path = tmp_path / "d.parquet"
            frame.to_parquet(path)
        case "npz":
            path = tmp_path / "d.npz"
            np.savez(path, features=np.ones((2, 3)), target=np.ones(2))
        case "sqlite":
            path = tmp_path / "d.sqlite"
            with sqlite3.connect(path) as base:
                frame.to_sql("t", base, index=False)
        case "duckdb":
            path = tmp_path / "d.duckdb"
            with duckdb.connect(str(path)) as base:
                base.sql("CREATE TABLE t AS SELECT * FROM frame")
        case "images":
            path = tmp_path / "scans"
            for name in ("benign", "malignant"):
                (path / name).mkdir(parents=True)
                Image.new("L", (8, 8)).save(path / name / "1.png")
        case "parts":
            path = tmp_path / "parts"
            path.mkdir()
            for number in range(3):
                frame.to_csv(path / f"{number}.csv", index=False)
    result = invoke("data", "describe", path, "--toml")
    assert result.exit_code == 0, result.stderr
    configuration = configure(HEAD + result.stdout)
    (dataset,) = datasets.load(
        configuration.datasets, run=loading(configuration)
    ).values()
    assert dataset.tensors["features"].shape[0] in (2, 6, 18)


@pytest.mark.parametrize("end", ["sqlite", "duckdb"])
def test_a_damaged_database_is_told(tmp_path: Path, invoke: Invoke, end: str) -> None:
    """As by a worker that is to serve it, without a traceback."""
    (tmp_path / f"d.{end}").write_bytes(b"no database" * 100)
    result = invoke("data", "describe", tmp_path / f"d.{end}")
    assert result.exit_code == 1
    assert "is not a" in result.stderr
    assert "Traceback" not in result.output


ROWS = range(1, 31)


def lines(head: str, row: Callable[[int], str], *end: str) -> str:
    """Return a text file of thirty rows."""
    return "\n".join((head, *map(row, ROWS), *end, ""))


@pytest.mark.parametrize(
    ("text", "told", "shape"),
    [
        (
            lines("t,x", lambda i: f"{i},{i}", "#N/A,3", "#DIV/0!,4"),
            {"missing_values": ["#N/A", "#DIV/0!"], "missing": "nan"},
            (32, 2),
        ),
        (
            lines("t,x", lambda i: f"{i},{i}", r"\N,3"),
            {"missing_values": [r"\N"], "missing": "nan"},
            (31, 2),
        ),
        (lines("# made by R, 4\na,b", lambda i: f"{i},{i}"), {"comment": "#"}, (30, 2)),
        (
            lines("#id,b", lambda i: f"{'xy'[i % 2]},{i}"),
            {"encode": {"#id": ["x", "y"]}},
            (30, 2),
        ),
        (
            lines("g,age", lambda i: f"{'xy'[i % 2]},{i}", "99,99"),
            {"encode": {"g": ["99", "x", "y"]}},
            (31, 2),
        ),
        (
            lines("rh,a", lambda i: f"{'+-'[i % 2]},{i}"),
            {"encode": {"rh": ["+", "-"]}},
            (30, 2),
        ),
        (
            lines("t,x", lambda i: f"2024-01-02 12:{i:02},{i}"),
            {"exclude": ["t"]},
            (30, 1),
        ),
        (lines("t,x", lambda i: f"{1.7e9 + 0.5 + i},{i}"), {"exclude": ["t"]}, (30, 1)),
        (lines("a,a,b", lambda i: f"{i},{i},{i}"), {"exclude": ["a"]}, (30, 1)),
        (lines("2019,2020", lambda i: f"{i},{i / 2}"), {"header": True}, (30, 2)),
        (
            lines("a;b", lambda i: f"{i}\u202f234,5;{i}"),
            {"delimiter": ";", "decimal": ",", "thousands": " "},
            (30, 2),
        ),
        (
            lines("a,b", lambda i: f"{('vero', 'falso')[i % 2]},{i}"),
            {"encode": {"a": "boolean"}},
            (30, 2),
        ),
        (
            lines("t,b", lambda i: f"12:{i:02},{i}"),
            {"encode": {"t": {"days": "%H:%M"}}},
            (30, 2),
        ),
        (
            lines("a,b", lambda i: f"{i},{i}").encode("utf-16-le"),
            {"encoding": "utf-16-le"},
            (30, 2),
        ),
    ],
)
def test_a_suggested_table_says_what_there_is_and_loads(
    text: str | bytes,
    told: dict[str, object],
    shape: tuple[int, int],
    tmp_path: Path,
    invoke: Invoke,
    configure: Configure,
) -> None:
    """No row, column or cell of an odd file is lost on the way but by a key."""
    (tmp_path / "d.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = invoke("data", "describe", tmp_path / "d.csv", "--toml")
    assert result.exit_code == 0, result.stderr
    table = tomllib.loads(result.stdout)["dataset"][0]
    assert table == told | {one: table[one] for one in ("name", "path", "features")}
    (dataset,) = datasets.load(configure(HEAD + result.stdout).datasets).values()
    assert dataset.tensors["features"].shape == shape


def test_what_can_not_be_read_is_an_error(tmp_path: Path, invoke: Invoke) -> None:
    """One sentence, and no traceback."""
    file = tmp_path / "a.docx"
    file.write_bytes(b"PK")
    result = invoke("data", "describe", file)
    assert result.exit_code == 1
    assert "does not say what it is" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_text_of_the_data_writes_no_line_and_no_color(
    tmp_path: Path, invoke: Invoke
) -> None:
    """Neither in the table nor in its comments."""
    file = tmp_path / "d.csv"
    file.write_text('a,"x\n[red]\x1b[31m"\n1,2\n3,4\n', newline="")
    result = invoke("data", "describe", file)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "\n[red]" not in result.stdout
