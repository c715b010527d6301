"""Networks as people write them with PyTorch alone are trained as they are here.

What is compared is what ``test_transformers.py`` compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import distributions, nn

from .conftest import Peeked
from .training import Make, check

pytestmark = pytest.mark.slow

Loss: TypeAlias = dict[str, torch.Tensor]

NETWORKS: dict[str, tuple[Make, float]] = {}
"""What makes a network, and how far apart results may be, by name."""


def network(name: str, atol: float = 0.0) -> Callable[[Make], Make]:
    """Let a function make the network of that name."""

    def add(make: Make) -> Make:
        NETWORKS[name] = (make, atol)
        return make

    return add


def padded() -> torch.Tensor:
    """Return what is padding: (2, 6) bool."""
    mask = torch.zeros(2, 6).bool()
    mask[0, 4:] = True
    return mask


def words() -> torch.Tensor:
    """Return token numbers: (2, 6) int64."""
    return torch.randint(1, 20, (2, 6))


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` and a mean over what is no padding."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **kwargs)
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, padding: torch.Tensor, y: torch.Tensor) -> Loss:
        """Return the loss."""
        encoded = self.encoder(x, src_key_padding_mask=padding)
        mean = encoded.masked_fill(padding[..., None], 0.0).mean(1)
        return {"loss": F.cross_entropy(self.out(mean), y)}


def encoder_inputs() -> dict[str, Any]:
    """Return what an encoder takes."""
    return {"x": torch.randn(2, 6, 8), "padding": padded(), "y": torch.tensor([0, 1])}


# The loss without gradients is packed here, in a kernel that rounds in another order.
@network("nn.TransformerEncoder", atol=1e-6)
def encoder() -> tuple[nn.Module, dict[str, Any]]:
    """It may pack what is padded."""
    return Encoder(), encoder_inputs()


@network("nn.TransformerEncoder that packs nothing", atol=1e-6)
def unpacked() -> tuple[nn.Module, dict[str, Any]]:
    """Still in one kernel without gradients."""
    return Encoder(enable_nested_tensor=False), encoder_inputs()


class Translator(nn.Module):
    """``nn.Transformer``, with a causal mask for what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.inner = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 20)

    def forward(
        self, source: torch.Tensor, target: torch.Tensor, padding: torch.Tensor
    ) -> Loss:
        """Return the loss."""
        before, after = target[:, :-1], target[:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(before.shape[1]).isinf()
        made = self.inner(
            self.embedding(source),
            self.embedding(before),
            tgt_mask=mask,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return {"loss": F.cross_entropy(self.out(made).transpose(1, 2), after)}


# A mask that nobody read to be causal goes to another kernel, as does what is packed.
@network("nn.Transformer", atol=1e-6)
def translator() -> tuple[nn.Module, dict[str, Any]]:
    """It finds out by itself whether a mask is causal."""
    return Translator(), {"source": words(), "target": words(), "padding": padded()}


class Attending(nn.Module):
    """A GRU that reads, and a cell that writes and looks back."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.reader = nn.GRU(8, 8, bidirectional=True, batch_first=True)
        self.writer = nn.GRUCell(24, 8)
        self.score, self.bridge = nn.Linear(24, 1), nn.Linear(16, 8)
        self.out = nn.Linear(8, 20)

    def forward(
        self, source: torch.Tensor, target: torch.Tensor, padding: torch.Tensor
    ) -> Loss:
        """Return the loss."""
        read, last = self.reader(self.embedding(source))
        state = torch.tanh(self.bridge(torch.cat(list(last), -1)))
        made = []
        for token in target[:, :-1].unbind(1):
            beside = state.unsqueeze(1).expand(-1, read.size(1), -1)
            scores = self.score(torch.cat([read, beside], -1)).squeeze(-1)
            weights = scores.masked_fill(padding, float("-inf")).softmax(-1)
            seen = torch.bmm(weights.unsqueeze(1), read).squeeze(1)
            state = self.writer(torch.cat([self.embedding(token), seen], -1), state)
            made.append(self.out(state))
        logits = torch.stack(made, 2)
        return {"loss": F.cross_entropy(logits, target[:, 1:], ignore_index=0)}


@network("seq2seq with attention")
def attending() -> tuple[nn.Module, dict[str, Any]]:
    """Step by step."""
    return Attending(), {"source": words(), "target": words(), "padding": padded()}


class UNet(nn.Module):
    """Down and up again, with a way across, and a dice loss."""

    def __init__(self) -> None:
        super().__init__()

        def block(inside: int, outside: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inside, outside, 3, padding=1),
                nn.GroupNorm(2, outside),
                nn.SiLU(),
            )

        self.top, self.bottom, self.last = block(1, 4), block(4, 8), block(12, 4)
        self.down = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Loss:
        """Return the loss."""
        top = self.top(x)
        up = self.up(self.bottom(self.down(top)))
        logits = self.out(self.last(torch.cat([top, up], 1)))
        inside = logits.softmax(1)[:, 1]
        dice = (2 * (inside * y).sum() + 1) / (inside.sum() + y.sum() + 1)
        return {"loss": F.cross_entropy(logits, y) + 1 - dice}


@network("UNet")
def unet() -> tuple[nn.Module, dict[str, Any]]:
    """On images of 8 by 8."""
    return UNet(), {"x": torch.randn(2, 1, 8, 8), "y": torch.randint(0, 2, (2, 8, 8))}


class Autoencoder(nn.Module):
    """A variational autoencoder of ``torch.distributions``."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> Loss:
        """Return the negative lower bound."""
        mean, log_variance = self.encode(x).chunk(2, -1)
        near = distributions.Normal(mean, (0.5 * log_variance).exp())
        far = distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        made = distributions.Normal(self.decode(near.rsample()), 1.0)
        divergence = distributions.kl_divergence(near, far).sum()
        return {"loss": divergence - made.log_prob(x).sum()}


@network("VAE")
def autoencoder() -> tuple[nn.Module, dict[str, Any]]:
    """Whose samples come from the seed."""
    return Autoencoder(), {"x": torch.randn(4, 8)}


class Adversaries(nn.Module):
    """A GAN with a gradient penalty and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = nn.Linear(4, 8)
        self.judge = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)),
            nn.LeakyReLU(0.2),
            nn.Linear(4, 1),
        )

    def forward(self, x: torch.Tensor) -> Loss:
        """Return the judge's loss, with the penalty."""
        made = self.maker(torch.randn(x.size(0), 4))
        share = torch.rand(x.size(0), 1)
        mixed = (share * x + (1 - share) * made).detach().requires_grad_()
        with torch.enable_grad():
            judged = self.judge(mixed).sum()
            (slope,) = torch.autograd.grad(judged, mixed, create_graph=True)
        penalty = ((slope.norm(2, dim=1) - 1) ** 2).mean()
        return {"loss": self.judge(made).mean() - self.judge(x).mean() + penalty}


@network("GAN")
def adversaries() -> tuple[nn.Module, dict[str, Any]]:
    """Both in one step."""
    return Adversaries(), {"x": torch.randn(4, 8)}


class Graph(nn.Module):
    """Sums over neighbours, then attention to them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.score = nn.Linear(4, 8), nn.Linear(16, 1)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, edges: torch.Tensor, y: torch.Tensor) -> Loss:
        """Return the loss."""
        source, target = edges
        h = self.first(x).relu()
        degree = torch.zeros(len(x)).index_add_(0, target, torch.ones(len(target)))
        h = torch.zeros_like(h).index_add(0, target, h[source])
        h = h / degree.clamp(min=1).unsqueeze(-1)
        score = self.score(torch.cat([h[source], h[target]], -1)).squeeze(-1)
        score = F.leaky_relu(score)
        top = torch.full((len(x),), float("-inf")).scatter_reduce(
            0, target, score, "amax"
        )
        weight = (score - top[target]).exp()
        total = torch.zeros(len(x)).scatter_add(0, target, weight)
        share = (weight / total[target]).unsqueeze(-1)
        h = torch.zeros_like(h).index_add(0, target, h[source] * share)
        return {"loss": F.cross_entropy(self.last(h), y)}


@network("graph network")
def graph() -> tuple[nn.Module, dict[str, Any]]:
    """Five nodes, nine edges."""
    return Graph(), {
        "x": torch.randn(5, 4),
        "edges": torch.randint(0, 5, (2, 9)),
        "y": torch.randint(0, 2, (5,)),
    }


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_trained_as_it_is_here(name: str, place: Peeked) -> None:
    """Losses, gradients and weights are the same."""
    make, atol = NETWORKS[name]
    check(make, place, atol)
