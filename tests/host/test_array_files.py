"""NumPy's and safetensors' files, against the libraries that write them."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from obhut.errors import DatasetError
from obhut.host.data.stored import Stored, TensorMaker

from .test_tables import SETTINGS, read

DTYPES = [
    "?",
    "u1",
    "i1",
    "u2",
    "i2",
    "u4",
    "i4",
    "u8",
    "i8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
]
SHAPES = [(5,), (3, 4), (2, 3, 4), (4, 1, 3, 2), (1,), ()]


def npy(array):
    """Return the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(compressed=False, **arrays):
    """Return the bytes of an .npz file."""
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def header(text, data=b"", version=(1, 0), magic=b"\x93NUMPY"):
    """Return an .npy file with this header."""
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return magic + bytes(version) + size + text.encode() + data


def entries(table, data=b""):
    """Return a safetensors file with this header."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def some(dtype, shape):
    """Return an array of this type and shape, of various numbers."""
    return np.asarray(np.arange(math.prod(shape)) * 7 % 5, dtype).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_npy_file_is_what_numpy_saved(load_data, dtype, shape):
    """Every type, in either order of bytes, comes as it is, under ``features``."""
    array = some(dtype, shape)
    for order in "<>":
        data = npy(array.astype(array.dtype.newbyteorder(order)))
        loaded = load_data("d.npy", data).tensors["features"]
        assert loaded.dtype == str(array.dtype)
        assert loaded.shape == shape
        assert loaded.data.tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", [*SHAPES[:4], (70_000, 5), (3, 70_000)])
@pytest.mark.parametrize("dtype", ["u1", ">i2", "f4", ">f8", "c8", "c16"])
def test_the_order_of_axes_does_not_matter(load_data, dtype, shape):
    """An array saved in Fortran's order is read in C's."""
    array = some(dtype, shape)
    loaded = load_data("d.npy", npy(np.asfortranarray(array))).tensors["features"]
    native = array.astype(array.dtype.newbyteorder("="))
    assert loaded.data.tobytes() == native.tobytes()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header(load_data, version):
    """All three that NumPy writes are read."""
    file = io.BytesIO()
    np.lib.format.write_array(file, some("f4", (2, 3)), version)
    assert load_data("d.npy", file.getvalue()).tensors["features"].shape == (2, 3)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_file_is_what_numpy_saved(load_data, compressed):
    """All arrays by name, or the two that are named."""
    x, y, z = some("f4", (4, 2)), some("i8", (4,)), some("f8", (9,))
    data = npz(compressed, x=x, y=y, z=z)
    loaded = load_data("d.npz", data)
    assert sorted(loaded.tensors) == ["x", "y", "z"]
    assert read(loaded.tensors["z"]).tolist() == z.tolist()
    loaded = load_data("d.npz", data, features="x", target="y", dtype="float64")
    assert sorted(loaded.tensors) == ["features", "target"]
    assert loaded.tensors["features"].dtype == "float64"
    assert read(loaded.tensors["features"]).tolist() == x.tolist()
    assert loaded.tensors["target"].dtype == "int64"
    loaded = load_data("d.npz", data, target="y", target_dtype="int8")
    assert {n: a.dtype for n, a in loaded.tensors.items()} == {"target": "int8"}


@pytest.mark.parametrize("dtype", [one for one in DTYPES if one != "c16"])
def test_a_safetensors_file_is_what_its_library_saved(load_data, dtype):
    """Every type comes as it is."""
    arrays = {"x": some(dtype, (3, 4)), "y": some(dtype, (3,)), "s": some(dtype, ())}
    loaded = load_data("d.safetensors", save(arrays, {"made": "here"}))
    assert sorted(loaded.tensors) == ["s", "x", "y"]
    for name, array in arrays.items():
        assert loaded.tensors[name].data.tobytes() == array.tobytes()
        assert loaded.tensors[name].shape == array.shape
        assert loaded.tensors[name].dtype == str(array.dtype)


@pytest.mark.parametrize(
    ("stored", "dtype", "size"),
    [("BF16", "bfloat16", 2), ("F8_E4M3", "float8_e4m3fn", 1), ("F8_E5M2", None, 1)],
)
def test_types_that_numpy_has_not(load_data, stored, dtype, size):
    """They are carried as they are."""
    table = {"x": {"dtype": stored, "shape": [2], "data_offsets": [0, 2 * size]}}
    data = b"\x01\x02\x03\x04"[: 2 * size]
    loaded = load_data("d.safetensors", entries(table, data)).tensors["x"]
    assert loaded.dtype == (dtype or "float8_e5m2")
    assert loaded.data.tobytes() == data


def test_bfloat16_is_converted_exactly(load_data):
    """A bfloat16 is the first half of a float32."""
    values = np.array([1.5, -2.0, 0.0], np.float32)
    data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    table = {"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    loaded = load_data("d.safetensors", entries(table, data), dtype="float32")
    assert read(loaded.tensors["x"]).tolist() == values.tolist()


@pytest.mark.parametrize("source", [one for one in DTYPES if one[0] != "c"])
@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int64", "float16", "float32", "float64"]
)
def test_numbers_that_fit_are_converted(load_data, source, dtype):
    """As NumPy converts them, from either order of bytes."""
    array = np.array([[0, 1], [1, 0]]).astype(np.dtype(source).newbyteorder(">"))
    loaded = load_data("d.npy", npy(array), dtype=dtype).tensors["features"]
    assert loaded.dtype == dtype
    assert (
        read(loaded).tolist() == array.astype({"bool": "?"}.get(dtype, dtype)).tolist()
    )


@pytest.mark.parametrize(
    ("values", "source", "dtype", "problem"),
    [
        ([0, 300], "i2", "int8", "a number that int8 can hold, got 300"),
        ([0, -1], "i2", "uint8", "a number that uint8 can hold, got -1"),
        ([0, 2], "i2", "bool", "expected 0 or 1, got 2"),
        ([0, 0.5], "f4", "int8", "expected a whole number, got 0.5"),
        ([0, 1e39], "f8", "float32", "a number that float32 can hold, got 1e+39"),
        ([0, math.nan], "f4", "int8", "expected a finite number, got NaN"),
        ([0, -math.inf], "f2", "int64", "expected a finite number, got infinity"),
        ([0, 2**63], "f4", "int64", "a number that int64 can hold, got 9.22337203685"),
        ([0, 2**64 - 1], "u8", "int64", "can hold, got 18446744073709551615"),
        ([0, 2**63 - 1], "i8", "float16", "holds exactly, got 9223372036854775807"),
        ([0, 65536], "i8", "float16", "a number that float16 can hold, got 65536"),
        ([0, 3.4e38], "f8", "bfloat16", "a number that bfloat16 can hold, got 3.4e+38"),
        ([0, math.nan], "f4", "float64", "expected a finite number, got NaN"),
        ([0, math.nan], "f4", None, "expected a finite number, got NaN"),
        ([0, math.nan], "f2", None, "expected a finite number, got NaN"),
        ([0, math.inf], "f4", None, "expected a finite number, got infinity"),
        ([0, -math.inf], "f4", "float64", "expected a finite number, got infinity"),
        ([0, math.inf], ">f8", None, "expected a finite number, got infinity"),
        ([0, complex(0, math.inf)], "c8", None, "expected a finite number"),
        ([0, complex(0, math.nan)], ">c16", None, "expected a finite number, got NaN"),
    ],
)
def test_an_element_that_does_not_fit_is_named(
    load_data, values, source, dtype, problem
):
    """The error has the row, and where there are columns the column."""
    flat = npy(np.array(values, source))
    with pytest.raises(DatasetError) as caught:
        load_data("d.npy", flat, dtype=dtype)
    assert (caught.value.row, caught.value.column) == (2, "")
    assert problem in caught.value.problem
    two = npz(x=np.array([[0, *values]], source))
    with pytest.raises(DatasetError) as caught:
        load_data("d.npz", two, dtype=dtype)
    assert (caught.value.row, caught.value.column) == (1, "x[:, 2]")


def test_nan_is_let_in_by_declaration_and_infinity_never(load_data):
    """``missing = "nan"`` is about NaN."""
    for dtype in (None, "float64"):
        data = npy(np.array([1, math.nan], np.float32))
        loaded = load_data("d.npy", data, missing="nan", dtype=dtype)
        assert np.isnan(read(loaded.tensors["features"])[1])
        data = npy(np.array([math.nan, math.inf], np.float32))
        with pytest.raises(DatasetError, match=r"row 2: .*inf"):
            load_data("d.npy", data, missing="nan", dtype=dtype)


def test_large_numbers_are_not_taken_for_infinite(load_data):
    """What is only near to the end of its type is let in."""
    for values in ([3.4e38, -3.4e38], [1.7e308, 1.7e308]):
        dtype = np.float32 if values[0] < 1e39 else np.float64
        data = npy(np.array(values, dtype))
        loaded = load_data("d.npy", data).tensors["features"]
        assert read(loaded).tolist() == np.array(values, dtype).tolist()


@pytest.mark.parametrize(
    ("dtype", "finite", "nan", "infinite"),
    [
        ("F8_E4M3", 0x7E, 0x7F, None),
        ("F8_E5M2", 0x7B, 0x7D, 0xFC),
    ],
)
def test_eight_bits_have_nan_too(load_data, dtype, finite, nan, infinite):
    """NaN and infinity are known in every type."""
    table = {"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}

    def load(byte, **declared):
        return load_data("d.safetensors", entries(table, bytes([0, byte])), **declared)

    load(finite)
    load(nan, missing="nan")
    with pytest.raises(DatasetError, match=r"row 2, column .x.: .*NaN or infinity"):
        load(nan)
    if infinite is not None:
        with pytest.raises(DatasetError, match="infinity"):
            load(infinite, missing="nan")
    with pytest.raises(DatasetError, match="is not converted to float32"):
        load(finite, dtype="float32")


def test_a_boolean_is_zero_or_one(load_data):
    """Another byte is refused: operators may do anything with it."""
    data = header("{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }", b"\1\2")
    with pytest.raises(DatasetError, match="row 2: expected 0 or 1, got 2"):
        load_data("d.npy", data)


def test_a_file_that_ends_while_it_is_read():
    """What was promised and does not come is an error, not a shorter array."""
    for stored in (
        Stored("x", "float32", (2,)),
        Stored("x", "float32", (2, 2), fortran=True),
    ):
        with pytest.raises(DatasetError, match='f, column "x": ends too early'):
            TensorMaker(None, nan=False).append(stored, io.BytesIO(b"1234"), "f")


def test_single_bytes_have_no_order(load_data):
    """Whatever the header says of it."""
    text = "{'descr': '>i1', 'fortran_order': False, 'shape': (2,), }"
    loaded = load_data("d.npy", header(text, b"\1\2")).tensors["features"]
    assert read(loaded).tolist() == [1, 2]


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin as"),
        (header(GOOD, b"1234", magic=b"\x93NUMPZ"), "does not begin as"),
        (header(GOOD, b"1234", version=(4, 0)), "1.0, 2.0 or 3.0, got 4.0"),
        (header(GOOD, b"123"), "expected 4 bytes for its shape, got 3"),
        (header(GOOD, b"12345"), "expected 4 bytes for its shape, got 5"),
        (header(GOOD[:-1], b"1234"), "a header that can not be read"),
        (header(GOOD.replace("(1,)", "(-1,)"), b"1234"), "a header that can not be"),
        (header(GOOD.replace("(1,)", "(1 1,)"), b"1234"), "a shape that is none"),
        (header(GOOD.replace("(1,)", "(,1)"), b"1234"), "a shape that is none"),
        (header(GOOD.replace("1", "1," * 65), b""), "a shape that is none"),
        (header(GOOD.replace("1", "9" * 19 + ",0")), "larger than a tensor can be"),
        (header(GOOD.replace("1", "9" * 20)), "a shape that is none"),
        (header(GOOD.replace("1", "0")), "has no elements"),
        (header(GOOD, version=(2, 0))[:8] + b"\xff\xff\xff\xff", "a header of at most"),
        (npy(np.array([{}, None])), "got Python objects, which are pickled programs"),
        (npy(np.array(["a"])), "got text"),
        (npy(np.array([b"a"])), "got bytes of text"),
        (npy(np.array(["2020-01-01"], "M8[D]")), "got dates"),
        (npy(np.zeros(2, [("a", "f4"), ("b", "i4")])), "got records"),
        (header(GOOD.replace("<f4", "<f3"), b"1234"), 'elements of type "<f3"'),
        (header(GOOD.replace("<f4", ""), b"1234"), "elements of type"),
    ],
)
def test_what_is_no_npy_file_is_refused(load_data, data, words):
    """Cut, damaged, pickled or made of something else: never an array."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.npy", data)
    assert words in str(caught.value)


def zipped(*members):
    """Return an archive with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def test_what_is_no_npz_file_is_refused(load_data):
    """Other members, no members, two of a name, damage, and missing names."""
    one = npy(some("f4", (2,)))
    for data, words in (
        (b"PK", "is not an .npz file that can be read"),
        (zipped(("readme.txt", b"hello")), 'expected arrays only, got "readme.txt"'),
        (zipped(), "has no arrays"),
        (npz(x=np.array([{}])), 'column "x": expected numbers, got Python objects'),
        (zipped(("x.npy", one[:-1])), 'column "x": expected 8 bytes for its shape'),
        (npz(x=some("f4", (64,))).replace(b"\x80?", b"\x80@"), "Bad CRC-32"),
    ):
        with pytest.raises(DatasetError) as caught:
            load_data("d.npz", data)
        assert words in str(caught.value)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zipped(("x.npy", one), ("x.npy", one))
    with pytest.raises(DatasetError, match="two arrays of one name"):
        load_data("d.npz", twice)
    with pytest.raises(DatasetError, match=r'column "xs": .*did you mean "x"'):
        load_data("d.npz", npz(x=some("f4", (2,))), features="xs")
    with pytest.raises(DatasetError, match="correct the name"):
        load_data("d.npz", npz(x=some("f4", (2,))), target="label")


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is shorter than it says"),
        (b"\xff" * 20, "is shorter than it says"),
        (entries(b"{"), "a header that can not be read"),
        (entries(b"\xff\xfe"), "a header that can not be read"),
        (entries(b"[]"), "expected a table"),
        (entries(b"[" * 100_000), "a header that can not be read"),
        (entries({}), "has no arrays"),
        (entries({"x": 1}), "a header that can not be read"),
        (entries({"x": {**F32, "more": 1}}, b"1234"), "a header that can not be read"),
        (entries({"x": {**F32, "shape": [-1]}}, b"1234"), "can not be read"),
        (entries({"x": {**F32, "shape": [1] * 65}}, b"1234"), "can not be read"),
        (entries(b'{"x": 1, "x": 2}'), "a header that can not be read"),
        (entries({"x": F32}, b"123"), "expected 4 bytes of tensors, got 3"),
        (entries({"x": F32}, b"12345"), "expected 4 bytes of tensors, got 5"),
        (entries({"x": F32, "y": F32}, b"1234"), "holes or overlaps"),
        (
            entries({"x": {**F32, "data_offsets": [1, 5]}}, b"12345"),
            "holes or overlaps",
        ),
        (entries({"x": {**F32, "data_offsets": [0, -1]}}, b""), "can not be read"),
        (entries({"x": {**F32, "shape": [2]}}, b"1234"), "expected 8 bytes for its"),
        (
            entries({"x": {**F32, "shape": [0], "data_offsets": [0, 0]}}),
            "has no elements",
        ),
        (entries({"x": {**F32, "dtype": "F4"}}, b"1234"), 'that travels, got "F4"'),
    ],
)
def test_what_is_no_safetensors_file_is_refused(load_data, data, words):
    """Cut, damaged, overlapping or made of something else."""
    with pytest.raises(DatasetError) as caught:
        load_data("d.safetensors", data)
    assert words in str(caught.value)


SAMPLES = {
    "npy": npy(np.asfortranarray(some("f4", (3, 4)))),
    "npz": npz(True, x=some("f4", (3, 4)), y=some("?", (3,))),
    "safetensors": save({"x": some("f4", (3, 4)), "y": some("?", (3,))}),
}


@SETTINGS
@given(st.sampled_from(sorted(SAMPLES)), st.binary(max_size=100))
def test_any_bytes_are_refused(load_data, kind, data):
    """Garbage is a ``DatasetError``."""
    with pytest.raises(DatasetError):
        load_data(f"d.{kind}", data)


@SETTINGS
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.data(),
    st.sampled_from([None, "int8", "float64"]),
)
def test_any_damage_loads_or_is_refused(load_data, kind, data, dtype):
    """A file with bytes changed, or cut, is a ``DatasetError`` or another data set."""
    good = SAMPLES[kind]
    bad = bytearray(good)
    places = st.integers(0, len(good) - 1)
    for place, byte in data.draw(
        st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)
    ):
        bad[place] = byte
    cut = data.draw(st.none() | places)
    try:
        load_data(f"d.{kind}", bytes(bad[:cut]), dtype=dtype)
    except DatasetError as error:
        text = str(error)
    else:
        text = ""
    assert "\n" not in text
