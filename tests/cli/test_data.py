"""``obhut data describe``: what a file holds, and a table that serves it."""

from __future__ import annotations

import sqlite3
import tomllib
from pathlib import Path

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


@pytest.mark.parametrize("kind", ["parquet", "npz", "sqlite", "images", "parts"])
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
