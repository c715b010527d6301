"""The loaders of docs/loaders.md, run as they stand there."""

from __future__ import annotations

import re
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from obhut.host.data.datasets import load_one
from obhut.host.data.declaration import DatasetDeclaration
from obhut.transports.pipe.loading import Loading

PAGE = Path(__file__).parents[2] / "docs" / "loaders.md"
EXAMPLES = {
    match[1]: match[0]
    for match in re.finditer(r"# (\w+)\.py:.*?(?=```)", PAGE.read_text(), re.DOTALL)
}

# Stand-ins for libraries that tests do not need: they read NumPy's files.
PYDICOM = """
import numpy as np
class Scan:
    pass
def dcmread(file):
    scan = Scan()
    with np.load(file) as data:
        scan.pixel_array, scan.PatientAge = data["pixels"], str(data["age"])
    return scan
"""
H5PY = """
import numpy as np
class File:
    def __init__(self, file, mode):
        assert mode == "r"
        self._data = np.load(file)
    def __getitem__(self, name):
        return self._data[name]
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self._data.close()
"""


@pytest.fixture
def load(tmp_path):
    """Return what runs one example on a path."""

    def load(name, path, **fakes):
        (tmp_path / f"{name}.py").write_text(EXAMPLES[name])
        for module, text in fakes.items():
            (tmp_path / f"{module}.py").write_text(text)
        declaration = DatasetDeclaration(
            name="d", loader=tmp_path / f"{name}:load", path=tmp_path / path
        )
        tensors = load_one(declaration, run=Loading()).tensors
        return {
            name: np.frombuffer(one.data, one.dtype).reshape(one.shape)
            for name, one in tensors.items()
        }

    return load


def test_dicom(load, tmp_path):
    """An image a file, with its number beside it."""
    (tmp_path / "scans").mkdir()
    for i in range(3):
        with (tmp_path / "scans" / f"{i}.dcm").open("wb") as file:
            np.savez(file, pixels=np.full((4, 5), i, np.uint16), age=f"0{i}0Y")
    found = load("dicom", "scans", pydicom=PYDICOM)
    assert found["image"].shape == (3, 1, 4, 5)
    assert found["image"].dtype == np.float32
    assert found["image"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert found["age"].tolist() == [0, 10, 20]


def test_hdf5(load, tmp_path):
    """Rows in pieces."""
    signals = np.arange(50_000, dtype=np.float32).reshape(25_000, 2)
    with (tmp_path / "signals.h5").open("wb") as file:
        np.savez(file, signals=signals, labels=np.arange(25_000))
    found = load("signals", "signals.h5", h5py=H5PY)
    assert np.array_equal(found["features"], signals)
    assert np.array_equal(found["target"], np.arange(25_000))


def test_wav(load, tmp_path):
    """Sounds of several lengths, cut and filled up."""
    for word, size in (("no", 8_000), ("yes", 20_000)):
        (tmp_path / "sounds" / word).mkdir(parents=True)
        with wave.open(str(tmp_path / "sounds" / word / "1.wav"), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(16_000)
            sound.writeframes(np.full(size, 2**14, "<i2").tobytes())
    found = load("sounds", "sounds")
    assert found["features"].shape == (2, 16_000)
    assert found["features"].sum(axis=1).tolist() == [4_000, 8_000]
    assert found["target"].tolist() == [0, 1]


def test_pt(load, tmp_path):
    """What torch.save wrote."""
    torch.save({"x": torch.eye(3), "y": torch.arange(3)}, tmp_path / "train.pt")
    found = load("saved", "train.pt")
    assert np.array_equal(found["x"], np.eye(3))
    assert found["y"].tolist() == [0, 1, 2]


def test_every_example_is_one_that_compiles():
    """Also the one that needs a server."""
    assert {*EXAMPLES} == {"dicom", "signals", "sounds", "saved", "ward"}
    for name, text in EXAMPLES.items():
        compile(text, name, "exec")
