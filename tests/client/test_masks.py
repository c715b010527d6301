"""PyTorch's own transformers do with masks at a worker what they do here."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.models.conftest import Peeked
from torch import nn

import obhut
from obhut.errors import OpNotAdmittedError


@pytest.fixture(params=[False, True], ids=["open", "behind a policy"])
def bob(request):
    """A worker, and a way to see what it holds past its guard."""
    place = Peeked("bob", guarded=request.param)
    place.worker.look = place.value
    yield place.worker
    place.worker.close()


def encoder(norm: nn.Module | None = None, **kwargs: object) -> nn.TransformerEncoder:
    """Return a small encoder that may pack what is padded."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, norm, **kwargs)


LAST = [[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]]
MASKS = {
    "at the end": LAST,
    "nothing": [[0, 0, 0, 0]] * 3,
    "in front": [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]],
    "all of a row": [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]],
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8)], ids=["plain", "norm"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("floats", [False, True], ids=["bools", "floats"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, "frozen"])
def test_an_encoder_fills_what_is_padded_as_a_local_one(bob, norm, mask, floats, mode):
    """Without gradients, whether PyTorch packs the rows here or not."""
    if norm is not None:
        norm = copy.deepcopy(norm)
        nn.init.normal_(norm.bias)
    model = encoder(norm).eval()
    padding = torch.tensor(mask).bool()
    if floats:
        padding = torch.zeros(padding.shape).masked_fill(padding, float("-inf"))
    if mode == "frozen":
        mode = torch.enable_grad
        model.requires_grad_(False)
    x = torch.randn(3, 4, 8)
    remote = copy.deepcopy(model)
    with mode():
        here = model(x, src_key_padding_mask=padding)
        there = obhut.send(remote, bob)(
            obhut.send(x, bob), src_key_padding_mask=obhut.send(padding, bob)
        )
        # Packed rows run in one kernel, which rounds in another order.
        torch.testing.assert_close(
            bob.look(there), here, rtol=0, atol=1e-5, equal_nan=True
        )
    assert model.use_nested_tensor


@pytest.mark.parametrize("eager", ["train", "mask", "fast path off", "not nested"])
def test_an_encoder_fills_nothing_where_a_local_one_does_not(bob, eager):
    """Not when training, beside another mask, or told not to."""
    model = encoder(enable_nested_tensor=eager != "not nested")
    model.train(eager == "train")
    x, padding = torch.randn(3, 4, 8), torch.tensor(LAST).bool()
    mask = torch.zeros(4, 4).bool() if eager == "mask" else None
    remote = obhut.send(copy.deepcopy(model), bob)
    torch.backends.mha.set_fastpath_enabled(eager != "fast path off")
    try:
        with torch.no_grad():
            here = model(x, mask, padding, False)
            there = remote(
                obhut.send(x, bob),
                None if mask is None else obhut.send(mask, bob),
                obhut.send(padding, bob),
                False,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert bool(here.ne(0).any(-1).all())
    torch.testing.assert_close(bob.look(there), here, rtol=0, atol=1e-5)


def named(model: nn.Transformer, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Call a transformer by names, and let it find out whether the mask is causal."""
    return model(x, x, src_mask=mask, tgt_mask=mask)


def by_place(model: nn.Transformer, x: torch.Tensor, mask: torch.Tensor) -> object:
    """Call the parts by place, with and without a word on the mask."""
    memory = model.encoder(x, mask, None)
    causal = model.decoder(x, memory, mask, None, None, None, True)
    return model.decoder(x, memory, mask) + causal


@pytest.mark.parametrize("call", [named, by_place])
@pytest.mark.parametrize("kind", ["causal", "another"])
def test_a_mask_is_applied_whether_or_not_it_is_causal(
    bob, call: Callable[..., torch.Tensor], kind: str
):
    """Behind a policy nobody reads it: results and gradients are the same."""
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 4, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    if kind == "another":
        mask[2, 0] = float("-inf")
    remote = obhut.send(copy.deepcopy(model), bob)
    here = call(model, x, mask)
    there = call(remote, obhut.send(x, bob), obhut.send(mask, bob))
    here.sum().backward()
    there.sum().backward()
    # A causal mask that is known to be one is another kernel's.
    torch.testing.assert_close(bob.look(there), here.detach(), rtol=0, atol=1e-5)
    for one, other in zip(remote.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(bob.look(one.grad), other.grad, rtol=0, atol=1e-4)


class Asking(nn.Module):
    """Branches on a value, unless it is told that there is none to read.

    Args:
        asks: whether it asks.
    """

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.asks = asks
        self.read: list[bool] = []

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mask, but where a look says that nothing is masked."""
        reads = not (self.asks and torch.compiler.is_compiling())
        self.read.append(reads)
        if reads and mask.all():
            return self.layer(x)
        return self.layer(x) * mask


def test_a_library_learns_that_it_can_read_no_value(bob):
    """Only behind a policy, and only while a sent module runs."""
    model = obhut.send(Asking(asks=True), bob)
    x, mask = (obhut.send(t, bob) for t in (torch.ones(3, 2), torch.ones(3, 1).bool()))
    model(x, mask).sum().backward()
    assert model.read == [not bob.session.guarded()]
    with bob:
        assert not torch.compiler.is_compiling()
    broken = obhut.send(nn.Sequential(nn.Linear(3, 1)), bob)
    with pytest.raises(RuntimeError, match="reduction dim"):
        broken(x)
    assert not torch.compiler.is_compiling()


def test_a_refused_value_says_how_a_model_does_without(bob):
    """The error names the question that a model can ask first."""
    model = obhut.send(Asking(asks=False), bob)
    x, mask = (obhut.send(t, bob) for t in (torch.ones(3, 2), torch.ones(3, 1).bool()))
    if not bob.session.guarded():
        model(x, mask)
        return
    with pytest.raises(OpNotAdmittedError, match=r"torch\.compiler\.is_compiling\(\)"):
        model(x, mask)
