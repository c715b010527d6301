"""Packed sequences with lengths that are here, at workers under a policy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

import obhut
from obhut.errors import OpNotAdmittedError

OWNERS = ("alice", "bob", "carol")


@pytest.fixture
def logs() -> list[str]:
    """What the owners are told."""
    return []


@pytest.fixture
def workers(logs: list[str]) -> Iterator[list[obhut.VirtualWorker]]:
    """Three owners under a policy, and their aggregator.

    It compares no programs, since the rows are sent.
    """
    policy = obhut.Quorum(aggregators=["agg"], contributors=OWNERS, programs="any")
    made = [
        obhut.VirtualWorker(name, policy=policy, log=logs.append)
        for name in (*OWNERS, "agg")
    ]
    yield made
    for worker in made:
        worker.close()


class Tagger(nn.Module):
    """Packs what it is given."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.network = kind(4, 5, 2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor, lengths: object) -> torch.Tensor:
        """Return what the network makes of each place."""
        packed = rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        result, _ = self.network(packed)
        padded, _ = rnn.pad_packed_sequence(result, batch_first=True)
        return padded


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("lengths", [[2, 3, 1], torch.tensor([3, 1, 3])], ids=str)
def test_gradients_behind_a_policy_are_local_ones(kind, lengths, workers, logs):
    """Over three owners they add up to those of local data; nothing fails unseen."""
    *owners, aggregator = workers
    torch.manual_seed(0)
    rows = [torch.randn(3, 3, 4) for _ in owners]
    local = Tagger(kind)
    wanted = {name: torch.zeros_like(p) for name, p in local.named_parameters()}
    there: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
    for owner, x in zip(owners, rows, strict=True):
        model = Tagger(kind)
        model.load_state_dict(local.state_dict())
        model(x, lengths).pow(2).sum().backward()
        for name, p in model.named_parameters():
            wanted[name] += p.grad
            p.grad = None
        obhut.send(model, owner)
        model(obhut.send(x, owner), lengths).pow(2).sum().backward()
        for name, p in model.named_parameters():
            there[name].append(p.grad.move(aggregator))
    for name, grads in there.items():
        total = (grads[0] + grads[1] + grads[2]).get()
        torch.testing.assert_close(total, wanted[name])
    assert logs == []


def test_lengths_at_an_owner_are_refused(workers):
    """What they would tell is said by name, before anything ran."""
    x = obhut.send(torch.ones(3, 2, 4), workers[0])
    lengths = obhut.send(torch.tensor([3, 1]), workers[0])
    with pytest.raises(OpNotAdmittedError, match="its shape tells lengths"):
        rnn.pack_padded_sequence(x, lengths)


def test_a_mask_that_is_here_indexes_behind_a_policy(workers):
    """How many elements it lets through is public; one that does not fit is told."""
    x = obhut.send(torch.arange(6.0).view(2, 3), workers[0])
    mask = torch.tensor([True, False, True])
    assert x[:, mask].shape == (2, 2)
    workers[0].wait()


def test_a_mask_that_does_not_fit_is_refused_as_locally():
    """It is not taken for the numbers of what it lets through."""
    bob = obhut.VirtualWorker("bob")
    x = obhut.send(torch.arange(6.0).view(2, 3), bob)
    both = obhut.send(torch.ones(2, 3) > 0, bob)
    deep = obhut.send(torch.ones(2, 3, 4), bob)
    for tensor, index in (
        (x, torch.tensor([True])),
        (deep, (both, torch.tensor([True, False, True]))),
    ):
        with pytest.raises(obhut.errors.RemoteIndexError, match="shape of the mask"):
            tensor[index]
    bob.close()


def test_lengths_at_a_worker_with_a_memory_limit() -> None:
    """What can not be known beforehand is counted when it is there."""
    bob = obhut.VirtualWorker("limited", memory_limit=1 << 20)
    x, lengths = torch.randn(2, 3, 4), torch.tensor([3, 1])
    sent, there = obhut.send(x, bob), obhut.send(lengths, bob)
    packed = rnn.pack_padded_sequence(sent, there, batch_first=True)
    expected = rnn.pack_padded_sequence(x, lengths, batch_first=True)
    assert torch.equal(packed.data.get(), expected.data)
    repeated = sent[0, :2].repeat_interleave(there, 0)
    assert torch.equal(repeated.get(), x[0, :2].repeat_interleave(lengths, 0))
    bob.close()
