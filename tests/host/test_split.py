"""Rows drawn into several data sets."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obhut.errors import ConfigurationError, DatasetError
from obhut.host.data.datasets import load
from obhut.host.data.split import draw

from .conftest import HEAD
from .test_tables import read

TABLE = '[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = ["a"]\ntarget = "b"\n'


@given(
    st.integers(1, 2_000),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(0, 2**40),
)
def test_every_row_is_in_one_share(rows, weights, seed):
    """If the shares are 1 together, however they are rounded."""
    shares = {str(k): one / sum(weights) for k, one in enumerate(weights)}
    drawn = dict(draw(rows, {**shares, "seed": seed}))
    assert sorted(np.concatenate([*drawn.values()]).tolist()) == [*range(rows)]
    for name, places in drawn.items():
        assert abs(len(places) - shares[name] * rows) <= 1
        assert (np.diff(places) > 0).all()
    again = dict(draw(rows, {**shares, "seed": seed}))
    assert all((again[name] == places).all() for name, places in drawn.items())


def test_a_share_may_be_left(configure, tmp_path):
    """Each is a data set, with the rows of features and target together."""
    (tmp_path / "d.csv").write_text(
        "a,b\n" + "".join(f"{k},{k * 2}\n" for k in range(100))
    )
    text = HEAD + TABLE + "split = { train = 0.6, test = 0.2, seed = 3 }\n"
    loaded = load(configure(text).datasets)
    assert [*loaded] == ["d-train", "d-test"]
    seen = []
    for one, rows in zip(loaded.values(), (60, 20), strict=True):
        features, target = (read(one.tensors[n]) for n in ("features", "target"))
        assert features.shape == (rows, 1)
        assert (features[:, 0] * 2 == target).all()
        seen += target.tolist()
        # The other rows are not in the memory that a session sees.
        for array in one.tensors.values():
            assert os.fstat(array.fd).st_size == len(array.data)
    assert len({*seen}) == 80
    other = load(configure(text.replace("seed = 3", "seed = 4")).datasets)
    first = [read(one["d-test"].tensors["target"]).tolist() for one in (loaded, other)]
    assert first[0] != first[1]
    with pytest.raises(DatasetError, match="there is one"):
        load(configure(text + TABLE.replace('"d"', '"d-test"')).datasets)
    (tmp_path / "d.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DatasetError, match='no row for "test" of split'):
        load(configure(text).datasets)


@pytest.mark.parametrize(
    "split",
    [
        "{ train = 0.8, test = 0.3 }",
        "{ train = 0.0 }",
        "{ train = -0.1 }",
        "{ train = nan }",
        "{ seed = 1 }",
        "{ train = 0.5, seed = 1.5 }",
        "{ train = 0.5, seed = -1 }",
    ],
)
def test_shares_that_can_not_be_meant_are_refused(configure, split):
    """Before a file is opened."""
    with pytest.raises(ConfigurationError, match="split"):
        configure(f"{HEAD}{TABLE}split = {split}\n")
