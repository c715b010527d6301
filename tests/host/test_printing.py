"""Tables for a terminal and for a notebook."""

from __future__ import annotations

from obhut.host.printing import Table, several


def test_a_table_is_aligned_and_leaves_out_what_is_empty():
    """Numbers end at the right, text begins at the left."""
    lines = [("age", "", "7"), ("weight", "", "1,024")]
    left = Table(("column", "unit", "rows"), lines, ("a note",), "a title")
    assert str(left).splitlines() == [
        "a title",
        "column  rows",
        "age     7",
        "weight  1,024",
        "a note",
    ]
    right = Table(("column", "unit", "rows"), lines, right=True)
    assert str(right).splitlines()[1] == "age         7"
    assert str(Table(("a", "b"), [])) == "a  b"


def test_what_a_peer_wrote_is_text():
    """It moves no cursor and begins no line; in a notebook it is no markup."""
    table = Table(("<i>",), [("\x1b[2J\n<b>x</b>",)], ("<p>",), "<u>")
    assert str(table).splitlines()[2] == "\\x1b[2J\\n<b>x</b>"
    html = table.html()
    assert not {"<i>", "<b>x", "<u>"} & {html[i : i + 4] for i in range(len(html))}
    assert "&lt;b&gt;x&lt;/b&gt;" in html
    assert "color" not in html


def test_many_names_are_cut():
    """The first are shown, and how many there are."""
    assert several(["a", "b"]) == "a, b"
    assert several([str(n) for n in range(1_000)], 2) == "0, 1, … 1,000 in all"
