"""Functions of PyTorch's that make tensors of their own while they run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import obhut
from obhut.client.bodies import MAKERS
from obhut.errors import UnsupportedError


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.combinations(x[0]),
        lambda x: torch.quantile(x, 0.4),
        torch.linalg.matrix_rank,
        lambda x: torch.svd_lowrank(x, 2)[1],
        lambda x: F.fractional_max_pool2d(x[None, None], 2, output_size=2),
        lambda x: F.one_hot(x.abs().long()),
        lambda x: torch.istft(torch.stft(x[0], 4, return_complex=True), 4, length=6),
        lambda x: F.ctc_loss(
            x[:, None].log_softmax(-1), x[:1, :2].abs().long() + 1, (5,), (2,)
        ),
    ],
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.filterwarnings("ignore:A window was not provided")
def test_what_a_function_makes_is_made_at_the_worker(
    call: Callable[[torch.Tensor], torch.Tensor],
    mode: Callable[[], torch.autograd.grad_mode.no_grad],
    bob: obhut.VirtualWorker,
) -> None:
    """Functions that need indices, samples or numbers of their own work as locally."""
    x = torch.linspace(-2, 2, 30).reshape(5, 6).cos()
    remote = obhut.send(x, bob)
    with mode():
        torch.manual_seed(0)
        local = call(x)
        torch.manual_seed(0)
        result = obhut.get(call(remote))
    torch.testing.assert_close(result, local)


def test_each_of_them_takes_the_remote_path() -> None:
    """No function is named that does not ask a remote tensor at all."""
    overridable = torch.overrides.get_overridable_functions().values()
    known = {func for functions in overridable for func in functions}
    assert {f.__name__ for f in MAKERS if f not in known} <= {
        "fractional_max_pool2d",
        "fractional_max_pool3d",
        "fn",
        "pad_sequence",
        "vander",
    }


def test_a_composite_inside_travels_whole(bob: obhut.VirtualWorker) -> None:
    """An embedding bag is one operator, whose kernel the worker chooses."""
    weight = obhut.send(torch.randn(4, 3, requires_grad=True), bob)
    index = obhut.send(torch.tensor([[0, 1], [2, 2]]), bob)
    F.embedding_bag(index, weight).sum().backward()
    grad = weight.grad
    assert grad is not None
    assert obhut.get(grad).sum() == 6


def test_splitting_at_remote_indices_is_refused(bob: obhut.VirtualWorker) -> None:
    """The shapes would depend on values there; at numbers it is split."""
    x, at = obhut.send(torch.arange(6.0), bob), torch.tensor([2, 4])
    with pytest.raises(UnsupportedError, match="tensor_split at remote indices"):
        torch.tensor_split(x, obhut.send(at, bob))
    with pytest.raises(UnsupportedError, match="fetch them first"):
        x.tensor_split(tensor_indices_or_sections=obhut.send(at, bob))
    assert [part.shape[0] for part in x.tensor_split(at)] == [2, 2, 2]
    assert [part.shape[0] for part in torch.tensor_split(x, (1,))] == [1, 5]


def test_sparse_gradients_are_refused(bob: obhut.VirtualWorker) -> None:
    """A gradient that would be sparse is refused where it would be recorded."""
    weight = obhut.send(torch.randn(4, 3, requires_grad=True), bob)
    index = obhut.send(torch.tensor([0, 1]), bob)
    with pytest.raises(UnsupportedError, match=r"aten\.embedding\.default with sp"):
        F.embedding(index, weight, sparse=True)
    with pytest.raises(UnsupportedError, match="with sparse=True"):
        torch.ops.aten.embedding(weight, index, sparse=True)
    with torch.no_grad():
        assert F.embedding(index, weight, sparse=True).shape == (2, 3)


def test_options_that_decide_precision_are_refused(bob: obhut.VirtualWorker) -> None:
    """Linear cross entropy in chunks is the plain one in float32, else refused."""
    x, weight = torch.randn(4, 3), torch.randn(5, 3)
    target = torch.tensor([0, 1, 2, 4])
    options = torch.nn.LinearCrossEntropyOptions()
    here = F.linear_cross_entropy(x, weight, target, options=options)
    sent = [obhut.send(one, bob) for one in (x, weight, target)]
    there = F.linear_cross_entropy(*sent, options=options)
    torch.testing.assert_close(obhut.get(there), here)
    half = [obhut.send(one.bfloat16(), bob) for one in (x, weight)]
    with pytest.raises(UnsupportedError, match=r"options on torch\.bfloat16"):
        F.linear_cross_entropy(*half, sent[2], options=options)


class Encoder(torch.nn.TransformerEncoder):
    """One whose ``forward`` is not PyTorch's."""

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """Return what is encoded."""
        return super().forward(x, src_key_padding_mask=padding)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_an_encoder_of_ones_own_is_refused_where_it_would_nest(
    bob: obhut.VirtualWorker,
) -> None:
    """The error says how to let it do without."""
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    encoder = Encoder(layer, 1).eval()
    x, mask = torch.randn(2, 3, 4), torch.tensor([[False] * 3, [False, False, True]])
    here = encoder(x, mask)
    obhut.send(encoder, bob)
    sent, masks = obhut.send(x, bob), obhut.send(mask, bob)
    with torch.no_grad():
        with pytest.raises(UnsupportedError, match="nested fast path"):
            encoder(sent, masks)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            there = encoder(sent, masks)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(obhut.get(there), here.detach())
