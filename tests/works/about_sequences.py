"""Sequences of different lengths: packed, padded, in recurrent networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import rnn

from .programs import Location, row


def recur(at: Location, network: nn.Module, lengths: Any, **how: Any) -> Any:
    """Return what a network makes of packed sequences, and its gradients."""
    first = how.get("batch_first", False)
    x = at.send(torch.randn(3, 4, 5) if first else torch.randn(4, 3, 5))
    network = at.send(network)
    packed = rnn.pack_padded_sequence(x, lengths, **how)
    result, state = network(packed)
    padded, came = rnn.pad_packed_sequence(result, first, -1.0, total_length=5)
    last = state if isinstance(state, torch.Tensor) else state[0]
    (padded.pow(2).sum() + last.sum()).backward()
    return [padded, came, state, *(p.grad for p in network.parameters())]


@row("an LSTM, GRU or RNN over `pack_padded_sequence` with lengths that are here")
def packed(at: Location) -> Any:
    """Results and gradients are those of local ones."""
    return [
        recur(at, nn.LSTM(5, 6), [4, 3, 1]),
        recur(at, nn.GRU(5, 6, 2, bidirectional=True), torch.tensor([4, 3, 1])),
        recur(at, nn.RNN(5, 6, batch_first=True), [4, 4, 2], batch_first=True),
        recur(at, nn.LSTM(5, 6, proj_size=2, bidirectional=True), [4, 3, 1]),
    ]


@row("packed sequences with `enforce_sorted=False`")
def unsorted(at: Location) -> Any:
    """The order is found here, and kept."""
    how = {"enforce_sorted": False, "batch_first": True}
    return [
        recur(at, nn.LSTM(5, 6, batch_first=True), [1, 4, 2], **how),
        recur(at, nn.GRU(5, 6, batch_first=True), torch.tensor([2, 1, 4]), **how),
    ]


class Tagger(nn.Module):
    """A model that packs in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.out = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, lengths: Any) -> Any:
        """Return a score for each place."""
        packed = rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        hidden, came = rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.out(hidden), came


@row("a sent module that packs sequences in its forward")
def packing_module(at: Location) -> Any:
    """Lengths stay what they are: a list, or a tensor that is here."""
    model, x = at.send(Tagger()), at.send(torch.randn(3, 4, 5))
    results = [model(x, [2, 4, 1]), model(x, torch.tensor([2, 4, 1]))]
    results[0][0].sum().backward()
    return [results, [p.grad for p in model.parameters()]]


@row("packed sequences with lengths at the worker")
def remote_lengths(at: Location) -> Any:
    """The worker is asked for the shapes."""
    model, x = at.send(Tagger()), at.send(torch.randn(3, 4, 5))
    return model(x, at.send(torch.tensor([2, 4, 1])))


@row("`pad_sequence`, `pack_sequence`, `unpad_sequence`, `unpack_sequence`")
def listed(at: Location) -> Any:
    """Lists of remote tensors become one, and one becomes a list."""
    sequences = [at.send(torch.ones(length, 2)) for length in (3, 1)]
    padded = rnn.pad_sequence(sequences, batch_first=True, padding_value=-1.0)
    packed = rnn.pack_sequence(sequences)
    return [
        padded,
        rnn.unpad_sequence(padded, torch.tensor([3, 1]), batch_first=True),
        packed.data,
        rnn.unpack_sequence(packed),
    ]
