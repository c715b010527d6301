"""Text files as they come: encodings, archives, quotes, comments, headers."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from obhut.errors import DatasetError
from obhut.host.data import text_blocks
from obhut.host.data.header import decide

from .test_tables import SETTINGS, read

CSV = "a,b,t\n1,2,x\n3,4,y\n"


def features(loaded):
    """Return the features as lists."""
    return read(loaded.tensors["features"]).tolist()


def zipped(**members):
    """Return an archive of these files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return file.getvalue()


def zstd(data):
    """Return data compressed by pyarrow."""
    return pa.compress(data, "zstd", asbytes=True)


@pytest.mark.parametrize(
    ("suffix", "data"),
    [
        (".gz", gzip.compress(CSV.encode())),
        (".gz", gzip.compress(b"a,b,t\n1,2,x\n") + gzip.compress(b"3,4,y\n")),
        (".bz2", bz2.compress(CSV.encode())),
        (".xz", lzma.compress(CSV.encode())),
        (".zst", zstd(CSV.encode())),
        (".zip", zipped(**{"d.csv": CSV, "__MACOSX/d.csv": "x", "folder/": ""})),
    ],
    ids=["gz", "two", "bz2", "xz", "zst", "zip"],
)
def test_compressed_files_are_read(load_data, suffix, data):
    """The end of the name says how."""
    loaded = load_data(f"d.csv{suffix}", data, features=["a", "b"])
    assert features(loaded) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("d.csv.gz", gzip.compress(CSV.encode())[:-12], "is not a .gz file"),
        ("d.csv.gz", CSV.encode(), "is not a .gz file"),
        ("d.csv.bz2", CSV.encode(), "is not a .bz2 file"),
        ("d.csv.xz", lzma.compress(CSV.encode())[:-20], "is not a .xz file"),
        ("d.csv.zst", b"(\xb5/\xfd" + b"\0" * 9, "is not a .zst file"),
        ("d.csv.zip", b"PK", "is not a .zip file"),
        ("d.csv.zip", zipped(a="1", b="2"), "one file in the archive, got 2"),
    ],
    ids=["cut", "no gz", "no bz2", "no xz", "no zst", "no zip", "two"],
)
def test_damaged_archives_are_named(load_data, name, data, words):
    """Whatever a library makes of them."""
    with pytest.raises(DatasetError, match=words):
        load_data(name, data, features=["a", "b"])


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8-sig", {}),
        ("utf-16", {}),
        ("utf-32", {}),
        ("latin-1", {"encoding": "latin-1"}),
        ("cp1252", {"encoding": "cp1252"}),
        ("utf-16-le", {"encoding": "utf-16-le"}),
        ("shift-jis", {"encoding": "shift-jis"}),
        # A mark at the beginning says more than a declaration.
        ("utf-8-sig", {"encoding": "cp1252"}),
    ],
)
def test_encodings(load_data, encoding, declared):
    """Marks at the beginning are obeyed, else what is declared."""
    name = "Größe" if encoding not in ("shift-jis",) else "大きさ"
    data = f"{name},t\r\n1.5,{name}\r\n".encode(encoding)
    loaded = load_data(
        "d.csv",
        data,
        features=[name],
        target="t",
        classes=[name],
        **declared,
    )
    assert features(loaded) == [[1.5]]


def test_bytes_of_another_encoding_are_named(load_data):
    """By their line, with what to write."""
    data = "a,t\n1,x\n2,Größe\n".encode("cp1252")
    with pytest.raises(DatasetError, match=r'line 3: is not UTF-8; .*"cp1252"'):
        load_data("d.csv", data, features="a", target="t", classes=["x"])
    with pytest.raises(DatasetError, match="line 3: is not ascii"):
        load_data("d.csv", data, features="a", encoding="ascii")
    bad = "a\n1\n".encode("utf-16-le") + b"\x00\xd8\x00\xd8"
    with pytest.raises(DatasetError, match="line 3: is not utf-16-le"):
        load_data("d.csv", bad, features="a", encoding="utf-16-le")
    with pytest.raises(DatasetError, match='"utf-16"'):
        load_data("d.csv", "a\n1\n".encode("utf-16-le"), features="a")
    # A column that is not used may hold what it likes.
    assert features(load_data("d.csv", data, features="a")) == [1, 2]


def test_skip_comment_and_ends_of_lines(load_data):
    """Lines stay counted; a mark within quotes is text."""
    text = 'made by X\r\n"Y\r\n# c\r\na,b # names\r\n1,"#2" # "\r\n\r\n#x\r\n3,4\r\n'
    declared = {"skip": 2, "comment": "#", "features": ["a", "b"]}
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", text, **declared)
    assert (caught.value.row, caught.value.line) == (1, 5)
    text = text.replace('"#2"', '"2"')
    loaded = load_data("d.csv", text, **declared)
    assert features(loaded) == [[1, 2], [3, 4]]
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", text.replace("3,4", "3,x"), **declared)
    assert (caught.value.row, caught.value.line) == (2, 8)
    assert features(load_data("d.csv", "a,b\r1,2\r3,4\r", features=["b"])) == [[2], [4]]


def test_blocks_are_cut_between_rows(load_data, monkeypatch):
    """However small they are: quotes, breaks and long cells stay whole."""
    rows = [[k, f'x "{k}"\n,' * (k % 5), "y" * (k % 97), k * 0.5] for k in range(300)]
    text = io.StringIO()
    csv.writer(text).writerows([["a", "t", "u", "b"], *rows])
    for size in (1, 7, 64, 1_000):
        monkeypatch.setattr(text_blocks, "BLOCK", size)
        loaded = load_data("d.csv", text.getvalue(), features=["a", "b"])
        assert features(loaded) == [[k, k * 0.5] for k in range(300)]
    bad = text.getvalue().replace("\r\n299,", "\r\nx,")
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", bad, features=["a"])
    at = bad[: bad.index("\r\nx,")]
    lines = at.count("\n") + 2
    assert (caught.value.row, caught.value.line) == (300, lines)


def test_quotes_within_a_cell_are_text(load_data):
    """An inch is no quotation; but a cell that begins with a quote ends with one."""
    loaded = load_data("d.csv", 'a,t\n1,5" pipe\n2,"6"" pipe"\n3,7"\n', features="a")
    assert features(loaded) == [1, 2, 3]
    for text, line in (
        ('a,t\n1,"x"y\n', 2),
        ('a,t\n1,x\n2,"y\n3,z\n', 3),
        ('a,t\n1,5" pipe\n2,"x"y\n', 3),
    ):
        with pytest.raises(DatasetError, match=f"line {line}: .* without another"):
            load_data("d.csv", text, features="a")


def test_ragged_rows_are_refused(load_data):
    """With row and line, in any block, also in columns that are not used."""
    good = "1,2\n" * 70_000
    for cells in ("3", "3,4,5", '"3,4",,'):
        with pytest.raises(DatasetError) as caught:
            load_data("d.csv", f"a,b\n{good}\n{cells}\n{good}", features="a")
        assert (caught.value.row, caught.value.line) == (70_001, 70_003)


def test_empty_ends(load_data):
    """Rows and columns that a spreadsheet leaves behind are none."""
    loaded = load_data("d.csv", "a,b,,\n1,2,,\n3,,,\n,,,\n , ,,\n", features="a")
    assert features(loaded) == [1, 3]
    assert "empty rows at the end, left out: 2" in loaded.report.notes
    loaded = load_data("d.csv", "a,b,,\n1,2,,\n3,4,,\n,,,\n", features="*")
    assert features(loaded) == [[1, 2], [3, 4]]
    notes = [one.note for one in loaded.report.columns]
    assert notes == ["", "", *["left out: has no name and no values"] * 2]
    # A row that has something in another column is one.
    with pytest.raises(DatasetError, match="row 2"):
        load_data("d.csv", "a,b\n1,2\n,4\n,\n", features="a")


def test_an_index_of_pandas_is_put_aside(load_data):
    """As to_csv writes it; other values without a name are refused."""
    frame = pd.DataFrame({"x": [1.5, 2.5, 3.5], "y": [1, 2, 3]})
    loaded = load_data("d.csv", frame.to_csv(), features="*", target="y")
    assert features(loaded) == [[1.5], [2.5], [3.5]]
    assert (
        loaded.report.columns[0].note == "left out: counts the rows, as an index does"
    )
    again = pd.read_csv(io.StringIO(frame.to_csv())).to_csv(index=False)
    assert features(load_data("d.csv", again, features="*", target="y")) == [
        [1.5],
        [2.5],
        [3.5],
    ]
    for text in (",x\n5,1\n6,2\n", ",x\n0,1\n2,2\n", ",x\n0,1\n,2\n1,3\n"):
        with pytest.raises(DatasetError, match=r'exclude = \[""\]'):
            load_data("d.csv", text, features="*")
        assert load_data("d.csv", text, features="*", exclude=[""])
    loaded = load_data("d.csv", again, features=["Unnamed: 0", "x"])
    assert features(loaded) == [[0, 1.5], [1, 2.5], [2, 3.5]]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("x,y\n1,2\n3,4\n", True),
        ("1,2\n3,4\n", None),
        ("0,1,2\n1.5,2.5,3.5\n", None),
        ("2019,2020\n1.5,2.5\n7,9\n", None),
        ("10,20\n1.5,2.5\n", None),
        ("1.5,2\n3,4\n", False),
        ("5,3\n1,2\n", False),
        ("id,2019,2020\nx,1,2\ny,3,4\n", None),
        ("id,2019,2020\n7,1,2\n8,3,4\n", True),
        ("m,young\nf,old\nm,old\nf,young\n", False),
        ("m,young\nf,old\nm,older\n", None),
        ("sex,age group\nf,old\nm,older\n", True),
        ("?,5,3\n1,2,9\n4,7,3\n", None),
        ("when,x\n2024-01-05,1\n", True),
        ("2024-01-04,7\n2024-01-05,1\n", False),
        ("0\n1\n0\n", None),
        ("7\n1\n0\n", False),
    ],
)
def test_a_first_row_is_a_header_if_it_is_one(load_data, text, header):
    """By the types below it; what may be either is refused, and can be declared."""
    rows = [line.split(",") for line in text.splitlines()]
    found = decide(rows[0], [*zip(*rows[1:], strict=True)], [])
    assert found.doubt == (header is None)
    if header is not None:
        assert found.header == header
    width = len(rows[0])
    declared = {
        "features": [*rows[0]] if header else [str(k + 1) for k in range(width)],
        "where": "`%s` is missing" % (rows[0][0] if header else "1"),
    }
    with pytest.raises(DatasetError) as caught:
        load_data("d.csv", text, **declared)
    if header is None:
        assert "write header = true, or header = false" in str(caught.value)
        with pytest.raises(DatasetError, match="none is used"):
            load_data("d.csv", text, **declared, header=False)
    else:
        assert "none is used" in str(caught.value)


def test_a_declared_name_makes_a_header(load_data):
    """Also over texts that come again; and a header may be declared away."""
    text = "sex,x\nsex,1\nm,2\n"
    codes = {"encode": {"sex": ["sex", "m"]}}
    assert features(load_data("d.csv", text, features="sex", **codes)) == [0, 1]
    loaded = load_data("d.csv", "1,2\n3,4\n", features=["2", "1"], header=False)
    assert features(loaded) == [[2, 1], [4, 3]]
    assert loaded.report.notes == ()
    loaded = load_data("d.csv", "1,2\n3,4\n", features=["2", "1"], header=True)
    assert features(loaded) == [[4, 3]]
    # A number is no name, or the first row would be lost in silence.
    with pytest.raises(DatasetError, match="may have names or data"):
        load_data("d.csv", "1,2\n3,4\n", features=["2", "1"])


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@SETTINGS
@given(
    st.lists(st.tuples(st.floats(width=32, allow_nan=False), CELL, CELL), min_size=1),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 60),
)
def test_what_a_writer_writes_is_read(load_data, rows, delimiter, quoting, end, block):
    """Numbers beside any texts come back, and texts as they were."""
    # Python's writer does not quote it, if it ends no line with it.
    assume(
        end == "\r\n"
        or quoting == csv.QUOTE_ALL
        or all("\r" not in one + other for _, one, other in rows)
    )
    rows = [row for row in rows if np.isfinite(row[0])] or [(1.0, "", "")]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerow(["number", "one", "other"])
    writer.writerows([(repr(number), *texts) for number, *texts in rows])
    texts = list(dict.fromkeys(one.strip() for _, one, _ in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK", block)
        whole = all(number == int(number) for number, *_ in rows)
        large = any(abs(number) > 2**24 for number, *_ in rows)
        loaded = load_data(
            "d.csv",
            text.getvalue(),
            features="number",
            target="one",
            classes=texts,
            delimiter=delimiter,
            dtype="float64" if whole and large else "float32",
        )
    numbers = np.array([number for number, *_ in rows])
    numbers = numbers.astype(loaded.tensors["features"].dtype)
    assert read(loaded.tensors["features"]).tobytes() == numbers.tobytes()
    codes = [texts.index(one.strip()) for _, one, _ in rows]
    assert read(loaded.tensors["target"]).tolist() == codes
