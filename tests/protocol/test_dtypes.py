"""The table of element types against PyTorch's own."""

import pytest
import torch

from obhut.protocol.dtypes import ITEM_BYTES


@pytest.mark.parametrize("name", ITEM_BYTES)
def test_an_element_has_the_size_that_pytorch_gives_it(name: str) -> None:
    """The table's bytes per element are PyTorch's item size."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    assert ITEM_BYTES[name] == dtype.itemsize


def test_a_name_is_pytorchs_own() -> None:
    """Each name is what the type prints, without the prefix; none is an alias."""
    for name in ITEM_BYTES:
        assert str(getattr(torch, name)) == f"torch.{name}"
