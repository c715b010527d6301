from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

from obhut.cli.outputs import Outputs


class Shown:
    """What is shown, by stream."""

    def __init__(self) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()


@pytest.fixture
def shown() -> Shown:
    """What the outputs show."""
    return Shown()


@pytest.fixture
def outputs(tmp_path: Path, shown: Shown) -> Outputs:
    """Of the cell 3, with a folder for pictures that is not there yet."""
    outputs = Outputs(shown.out, shown.err, tmp_path / "plots")
    outputs.begin(3)
    return outputs


def test_streams_are_shown_and_kept_in_order(outputs: Outputs, shown: Shown) -> None:
    """What one stream gets in a row is one output, in lines."""
    print("a", "b", file=outputs.stdout)
    print("c", end="", file=outputs.stdout)
    print("d", file=outputs.stderr)
    outputs.stdout.write("")
    outputs.stdout.writelines(["e\n"])
    assert [(kept["name"], kept["text"]) for kept in outputs.take()] == [
        ("stdout", ["a b\n", "c"]),
        ("stderr", ["d\n"]),
        ("stdout", ["e\n"]),
    ]
    assert (shown.out.getvalue(), shown.err.getvalue()) == ("a b\nce\n", "d\n")
    assert not outputs.stdout.isatty()


def test_of_several_looks_the_text_is_shown(outputs: Outputs, shown: Shown) -> None:
    """A value and what is displayed are kept with all their looks."""
    looks = {"text/plain": "7", "text/html": "<b>7</b>"}
    outputs.result(looks, {})
    outputs.display(looks, {"text/html": {"isolated": True}})
    outputs.display({"text/html": "<i>8</i>"}, {})
    assert shown.out.getvalue() == "7\n7\n"
    result, display, silent = outputs.take()
    assert result == {
        "output_type": "execute_result",
        "execution_count": 3,
        "data": looks,
        "metadata": {},
    }
    assert display["metadata"] == {"text/html": {"isolated": True}}
    assert silent["data"] == {"text/html": "<i>8</i>"}


def test_pictures_become_files(outputs: Outputs, tmp_path: Path, shown: Shown) -> None:
    """Each has the cell's number and its own; bytes are kept as base64."""
    picture = b"\x89PNG"
    outputs.display({"image/png": base64.b64encode(picture).decode()}, {})
    outputs.display({"image/jpeg": picture}, {})
    outputs.begin(4)
    outputs.display({"image/svg+xml": "<svg/>"}, {})
    folder = tmp_path / "plots"
    assert (folder / "cell-3-1.png").read_bytes() == picture
    assert (folder / "cell-3-2.jpg").read_bytes() == picture
    assert (folder / "cell-4-1.svg").read_text() == "<svg/>"
    assert f"wrote {folder / 'cell-4-1.svg'}\n" in shown.err.getvalue()


def test_pictures_are_no_files_unasked(shown: Shown) -> None:
    """Without a folder they are kept only."""
    outputs = Outputs(shown.out, shown.err)
    outputs.begin(1)
    outputs.display({"image/png": b"\x89PNG"}, {})
    assert outputs.take()[0]["data"] == {"image/png": "iVBORw=="}


def test_what_is_displayed_can_be_changed(outputs: Outputs) -> None:
    """An update by id changes what was kept, in earlier cells too."""
    outputs.display({"text/plain": "old"}, {}, id="it")
    kept = outputs.take()
    outputs.begin(4)
    outputs.display({"text/plain": "new"}, {"a": 1}, id="it", update=True)
    assert kept[0]["data"] == {"text/plain": "new"}
    assert kept[0]["metadata"] == {"a": 1}
    assert outputs.take() == []


def test_what_was_put_out_can_be_cleared(outputs: Outputs) -> None:
    """At once, or when there is something new."""
    print("a", file=outputs.stdout)
    outputs.clear(wait=False)
    assert outputs.take() == []
    print("b", file=outputs.stdout)
    outputs.clear(wait=True)
    assert len(outputs.take()) == 1
    print("c", file=outputs.stdout)
    print("d", file=outputs.stdout)
    assert [kept["text"] for kept in outputs.take()] == [["c\n", "d\n"]]


def test_an_error_is_shown_and_kept(outputs: Outputs, shown: Shown) -> None:
    """Its name, its words and the lines of its traceback."""
    outputs.error(ValueError("bad"), "Traceback\n  a line\nValueError: bad\n")
    assert shown.err.getvalue().endswith("ValueError: bad\n")
    assert outputs.take() == [
        {
            "output_type": "error",
            "ename": "ValueError",
            "evalue": "bad",
            "traceback": ["Traceback", "  a line", "ValueError: bad"],
        }
    ]
