"""Files as owners have them: each becomes the right tensor, or its error says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.host.conftest import HEAD, Configure

from obhut.errors import ConfigurationError, DatasetError
from obhut.host.data import datasets
from obhut.host.data.arrays import Array
from obhut.transports.pipe.loading import loading
from obhut.worker.tensors import DTYPES

from .cases import Case
from .make import CASES, write


def tensor(array: Array) -> torch.Tensor:
    """Return an array's elements."""
    return torch.frombuffer(bytearray(array.data), dtype=DTYPES[array.dtype]).reshape(
        array.shape
    )


def load(case: Case, folder: Path, configure: Configure) -> dict[str, datasets.Dataset]:
    """Load a case's data sets by their configuration."""
    configuration = configure(HEAD + write(case, folder))
    return dict(datasets.load(configuration.datasets, run=loading(configuration)))


@pytest.mark.parametrize("case", [c for c in CASES if c.tensors], ids=lambda c: c.name)
def test_a_file_becomes_the_right_tensors(
    case: Case, tmp_path: Path, configure: Configure
) -> None:
    """Each element, type and shape is what the file says, and there is nothing more."""
    loaded = load(case, tmp_path, configure)
    found = {
        f"{name}/{part}": tensor(array)
        for name, one in loaded.items()
        for part, array in one.tensors.items()
    }
    assert found.keys() == case.tensors.keys()
    for name, values in case.tensors.items():
        dtype = DTYPES[case.dtypes.get(name.split("/")[1], "float32")]
        right = torch.tensor(values, dtype=dtype)
        assert found[name].dtype == dtype
        assert found[name].shape == right.shape
        assert torch.equal(found[name].isnan(), right.isnan())
        assert torch.equal(found[name].nan_to_num(), right.nan_to_num())
    said = " ".join(
        [note for one in loaded.values() for note in one.report.notes]
        + [column.note for one in loaded.values() for column in one.report.columns]
    )
    for part in case.noted:
        assert part in said


@pytest.mark.parametrize("case", [c for c in CASES if c.refused], ids=lambda c: c.name)
def test_a_file_that_would_change_is_refused(
    case: Case, tmp_path: Path, configure: Configure
) -> None:
    """The first line of the error names the place, and the choice."""
    with pytest.raises((DatasetError, ConfigurationError)) as caught:
        load(case, tmp_path, configure)
    first = str(caught.value).splitlines()[0].replace(str(tmp_path) + "/", "")
    assert case.refused in first


def test_there_are_many_files() -> None:
    """One hundred and fifty, and no two of one name."""
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
