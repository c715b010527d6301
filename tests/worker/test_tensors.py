"""Tensors to bytes and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from obhut.errors import NotSendableError, RemoteProtocolError
from obhut.protocol.codec import nbytes
from obhut.protocol.dtypes import ITEM_BYTES
from obhut.worker.tensors import (
    DTYPE_NAMES,
    DTYPES,
    SYMBOL_NAMES,
    SYMBOLS,
    empty_frame,
    from_frame,
    spec_of,
    to_frame,
    to_inline,
)


def raw(tensor):
    """Return a tensor's elements as bytes, one by one."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def back(tensor):
    """Return what arrives of a tensor."""
    frame = to_frame(tensor)
    return from_frame(frame, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def test_every_name_is_a_dtype_of_this_torch():
    """The protocol's types all exist here, one name each."""
    assert set(DTYPES) == set(ITEM_BYTES)
    assert len(DTYPE_NAMES) == len(DTYPES)


@pytest.mark.parametrize("name", sorted(ITEM_BYTES))
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0,), (2, 0, 3)])
@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_every_dtype_comes_back_bit_for_bit(name, shape):
    """Any bits of any type survive, whatever numbers they stand for."""
    size = nbytes(name, shape)
    values = bytes(k * 37 % (2 if name == "bool" else 256) for k in range(size))
    tensor = from_frame(values, name, shape)
    assert tensor.dtype is DTYPES[name]
    assert tuple(tensor.shape) == shape
    assert bytes(to_frame(tensor)) == values
    assert len(to_frame(tensor)) == size
    again = back(tensor)
    assert bytes(to_frame(again)) == values


@given(
    st.sampled_from(["float32", "int16", "bool", "complex64", "bfloat16"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_view_ships_its_own_elements(name, shape, data):
    """Permuted, sliced, flipped or expanded: the values arrive, and only they do."""
    size = nbytes(name, shape)
    values = bytes(k % 2 for k in range(size))
    tensor = from_frame(values, name, tuple(shape))
    if shape:
        tensor = tensor.permute(data.draw(st.permutations(range(len(shape)))))
        tensor = tensor[data.draw(st.integers(0, 2)) :: data.draw(st.integers(1, 3))]
    if data.draw(st.booleans()):
        tensor = tensor.expand(2, *tensor.shape)
    frame = to_frame(tensor)
    assert len(frame) == nbytes(name, tensor.shape)
    assert torch.equal(back(tensor), tensor)


def test_a_views_base_does_not_travel():
    """One row of a million ships one row."""
    base = torch.arange(1_000_000.0).view(1000, 1000)
    assert len(to_frame(base[3])) == 4000
    assert len(to_frame(base[:, 3])) == 4000
    assert torch.equal(back(base[:, 3]), base[:, 3])


def test_lazy_conjugates_and_negatives_are_resolved():
    """What PyTorch only marks as conjugate or negative arrives as its values."""
    z = torch.tensor([1 + 2j, 3 - 4j])
    for lazy in (z.conj(), z.conj().imag, z.conj()[1:], torch._neg_view(z.real)):
        assert torch.equal(back(lazy), lazy.clone())
        assert raw(lazy.resolve_conj().resolve_neg()) == bytes(to_frame(lazy))


def test_zeros_without_memory_travel():
    """The zeros that autograd makes without memory arrive as zeros."""
    zeros = torch._efficientzerotensor((2, 3))
    assert torch.equal(back(zeros), torch.zeros(2, 3))


def test_a_frame_of_a_tensor_in_a_graph():
    """History does not keep a value from being read."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert torch.equal(back(x * 2), torch.tensor([2.0, 4.0]))


def test_what_is_read_has_memory_of_its_own():
    """Changing the bytes afterwards does not change the tensor, nor the reverse."""
    frame = bytearray(8)
    tensor = from_frame(frame, "float32", (2,))
    frame[:] = b"\xff" * 8
    assert tensor.tolist() == [0.0, 0.0]
    tensor.fill_(1)
    assert frame == b"\xff" * 8


def test_what_is_read_can_grow():
    """A tensor made of a frame, and one whose bytes were read, can be resized."""
    tensor = from_frame(bytes(8), "float32", (2,))
    to_frame(tensor)
    tensor.resize_(4)
    assert tensor.numel() == 4


def test_a_frame_keeps_its_memory():
    """A frame outlives the tensor that it was read from."""
    frames = [to_frame(torch.full((1000,), float(k))) for k in range(50)]
    for k, frame in enumerate(frames):
        assert torch.equal(
            from_frame(frame, "float32", (1000,)), torch.full((1000,), float(k))
        )


def test_a_truth_is_one_bit():
    """Bytes other than 0 and 1 make no truth value that is neither."""
    tensor = from_frame(bytes([0, 1, 2, 255]), "bool", (4,))
    assert tensor.view(torch.uint8).tolist() == [0, 1, 1, 1]
    assert tensor.sum().item() == 3


def test_a_type_that_this_torch_lacks_is_refused():
    """A name that is not in the table is refused before anything is allocated."""
    with pytest.raises(RemoteProtocolError, match="has no dtype 'float7'"):
        from_frame(b"", "float7", (2**40,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
        lambda: torch.empty(3, dtype=torch.uint4),
    ],
    ids=["sparse", "quantized", "4 bits"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_is_not_dense_does_not_travel(make):
    """Other layouts and types are refused by name, as values and as looks."""
    tensor = make()
    with pytest.raises(NotSendableError):
        to_frame(tensor)
    with pytest.raises(NotSendableError):
        spec_of(tensor)


def test_a_small_tensor_travels_inside_a_header():
    """The inline form holds dtype, sizes and bytes."""
    inline = to_inline(torch.tensor([[1, 2]], dtype=torch.int16).t())
    assert (inline.dtype, inline.shape) == ("int16", (2, 1))
    assert torch.equal(
        from_frame(inline.data, inline.dtype, inline.shape),
        torch.tensor([[1], [2]], dtype=torch.int16),
    )


def test_a_look_has_no_values():
    """A specification tells sizes, strides, offset, dtype and requires_grad."""
    base = torch.arange(12.0).view(3, 4)
    spec = spec_of(base[1:, ::2])
    assert (spec.shape, spec.stride, spec.offset) == ((2, 2), (4, 2), 4)
    assert (spec.dtype, spec.requires_grad) == ("float32", False)


def test_constants_and_their_names_are_one_to_one():
    """Each constant that may be named has one name, which is PyTorch's."""
    assert {SYMBOL_NAMES[value]: value for value in SYMBOLS.values()} == SYMBOLS
    assert all(getattr(torch, name) is value for name, value in SYMBOLS.items())


def filled(size):
    """Return a frame that was made to be filled, and is."""
    frame = empty_frame(size)
    frame[:] = bytes(k % 251 for k in range(size))
    return frame


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("uint8", 3), ("bool", 9)])
def test_memory_that_was_made_for_it_becomes_the_tensor(name, size):
    """It is not copied; it can be written to and grow, as any tensor."""
    frame = filled(size)
    expected = from_frame(bytes(frame), name, (size // ITEM_BYTES[name],))
    tensor = from_frame(frame, name, tuple(expected.shape))
    assert raw(tensor) == raw(expected)
    assert tensor.untyped_storage().nbytes() == size
    tensor.zero_()
    assert not any(frame)
    tensor.resize_(1000)


def test_memory_becomes_a_tensor_once():
    """Whoever reads the same frame again gets memory of their own."""
    frame = filled(8)
    first, second = (from_frame(frame, "int64", (1,)) for _ in range(2))
    assert torch.equal(first, second)
    first.zero_()
    assert second.item()


def test_a_part_of_such_memory_is_copied():
    """It is not all of it, and the rest may be another tensor."""
    frame = filled(16)
    part = from_frame(frame[:8], "int64", (1,))
    part.zero_()
    assert any(frame[:8])
    assert raw(from_frame(frame, "int64", (2,))) == bytes(frame)


def test_a_tensors_own_bytes_are_copied():
    """What is sent within a process stays apart from what is held."""
    tensor = torch.arange(10.0)
    other = back(tensor)
    other.zero_()
    assert tensor.sum() == 45


def test_memory_that_is_not_there():
    """It is a MemoryError, as everywhere in Python."""
    with pytest.raises(MemoryError):
        empty_frame(2**62)
