"""Models and bodies of training loops, each of which a program must repeat."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

ROWS = 70


class Block(nn.Module):
    """A block of a small GPT."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of rows."""
        b, t, d = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .view(b, t, 3, self.heads, d // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Two blocks, with positions that are made where the rows are."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 32), nn.Embedding(16, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of rows."""
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


class LSTM(nn.Module):
    """An LSTM that makes its first state itself."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rnn = nn.Embedding(50, 16), nn.LSTM(16, 24, batch_first=True)
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of rows."""
        return self.head(self.rnn(self.tokens(x))[0][:, -1])


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of rows."""
        return self.head(self.b(self.a(x)))


class Means(nn.Module):
    """Divides by the batch size by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what it makes of rows."""
        y = self.head(x)
        return y - y.sum(0, keepdim=True) / x.shape[0]


def mlp() -> nn.Module:
    """Return a small MLP."""
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn(norm: bool = False) -> nn.Module:
    """Return a small CNN, with batch normalization or without."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def frozen() -> nn.Module:
    """Return an MLP whose first weight is not trained."""
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


def frozen_norm() -> nn.Module:
    """Return a CNN whose normalization keeps its statistics."""
    model = cnn(True)
    model[1].eval()
    return model


def vectors(*shape: int) -> Callable[[], torch.Tensor]:
    """Return what makes rows of numbers."""
    return lambda: torch.randn(ROWS, *shape)


def tokens() -> torch.Tensor:
    """Return rows of tokens."""
    return torch.randint(0, 50, (ROWS, 12))


class Model(NamedTuple):
    """A model and what it takes."""

    make: Callable[[], nn.Module]
    rows: Callable[[], torch.Tensor]


MODELS = {
    "linear": Model(lambda: nn.Linear(16, 10), vectors(16)),
    "mlp": Model(mlp, vectors(16)),
    "cnn": Model(cnn, vectors(1, 14, 14)),
    "batch norm": Model(partial(cnn, True), vectors(1, 14, 14)),
    "frozen batch norm": Model(frozen_norm, vectors(1, 14, 14)),
    "dropout": Model(lambda: nn.Sequential(mlp(), nn.Dropout(0.3)), vectors(16)),
    "lstm": Model(LSTM, tokens),
    "gpt": Model(GPT, tokens),
    "tied": Model(Tied, vectors(16)),
    "frozen": Model(frozen, vectors(16)),
    "means by hand": Model(Means, vectors(16)),
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.05),
    "momentum": partial(
        torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adam": partial(torch.optim.Adam, lr=1e-2),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, amsgrad=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": partial(torch.optim.Adagrad, lr=1e-2, lr_decay=0.1),
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "asgd": torch.optim.ASGD,
    "rprop": torch.optim.Rprop,
}

# --- bodies: what is done to one batch --------------------------------------------


def plain(model, optimizer, x, y):
    """A step: plain."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def cleared_last(model, optimizer, x, y):
    """A step: cleared last."""
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


def never_cleared(model, optimizer, x, y):
    """A step: never cleared."""
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def accumulated(model, optimizer, x, y):
    """A step: accumulated."""
    optimizer.zero_grad()
    for half, labels in zip(x.chunk(2), y.chunk(2), strict=True):
        (F.cross_entropy(model(half), labels) / 2).backward()
    optimizer.step()
    return (model(x) ** 2).mean()


def three_steps(model, optimizer, x, y):
    """A step: three steps."""
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss


def clipped_norm(model, optimizer, x, y):
    """A step: clipped norm."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y, label_smoothing=0.1)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    return loss


def clipped_value(model, optimizer, x, y):
    """A step: clipped value."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.01)
    optimizer.step()
    return loss


def proximal(model, optimizer, x, y):
    """A step: proximal."""
    optimizer.zero_grad()
    before = [p.detach().clone() for p in model.parameters()]
    loss = F.cross_entropy(model(x), y)
    pairs = zip(model.parameters(), before, strict=True)
    (loss + sum(((p - q) ** 2).sum() for p, q in pairs)).backward()
    optimizer.step()
    return loss


def by_hand(model, optimizer, x, y):
    """A step: by hand."""
    loss = F.cross_entropy(model(x), y)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    optimizer.zero_grad()
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    return loss


def penalized(model, optimizer, x, y):
    """A step: penalized."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    (loss + 0.1 * sum((grad**2).sum() for grad in grads)).backward()
    optimizer.step()
    return loss


def bounded(model, optimizer, x, y):
    """A step: bounded."""
    loss = plain(model, optimizer, x, y)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-0.2, 0.2)
    return loss


def noisy(model, optimizer, x, y):
    """A step: noisy."""
    return plain(model, optimizer, x + 0.1 * torch.randn_like(x), y)


def made_there(model, optimizer, x, y):
    """A step: made there."""
    optimizer.zero_grad()
    logits = model(x)
    loss = ((logits.softmax(1) - torch.eye(10, device=x.device)[y]) ** 2).mean()
    loss = loss + torch.tensor([0.5, 0.25], device=x.device).sum()
    loss.backward()
    optimizer.step()
    return loss


def half_precision(model, optimizer, x, y):
    """A step: half precision."""
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    loss = F.cross_entropy(logits.float(), y)
    loss.backward()
    optimizer.step()
    return loss


def reshaped_in_place(model, optimizer, x, y):
    """A step: names of the same memory get other sizes, and it is written to."""
    turned = x.detach()
    turned.t_()
    other = x.data
    other.unsqueeze_(0).squeeze_(0)
    weight = model[0].weight.detach().t_().t().t()
    kept = torch.empty(3, device=x.device).zero_()
    loss = plain(model, optimizer, x + turned.t() * 0.1 + other * 0.1, y)
    return loss + weight.sum() * 0.01 + kept.sum() * 0 + turned.shape[0]


BODIES = {
    one.__name__: one
    for one in (
        *(plain, cleared_last, never_cleared, accumulated, three_steps, clipped_norm),
        *(clipped_value, proximal, by_hand, penalized, bounded, noisy, made_there),
        *(half_precision, reshaped_in_place),
    )
}
