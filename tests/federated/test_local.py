from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import obhut
from obhut.errors import CallError
from obhut.federated import LocalTraining, RemoteDataset
from obhut.protocol.messages import RunProgram
from obhut.testing.traces import TracingTransport
from obhut.transports.local import LocalShell, LocalTransport
from obhut.worker.core import Worker

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_training_is_the_ordinary_loop(batch_size: int | None) -> None:
    """Training at a worker equals the loop that PyTorch's users write, to 1e-6."""
    owner = obhut.VirtualWorker("owner")
    features, targets = torch.randn(10, 3), torch.randn(10, 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    remote = obhut.send(obhut.copy(model), owner)
    training = LocalTraining(SGD, F.mse_loss, epochs=3, batch_size=batch_size)
    loss, rows = training.run(remote, RemoteDataset.send(features, targets, owner))
    assert rows.get().item() == 10

    opt = SGD(model.parameters())
    total = 0.0
    for _ in range(3):
        total = 0.0
        for x, y in zip(
            features.split(batch_size or 10),
            targets.split(batch_size or 10),
            strict=True,
        ):
            opt.zero_grad()
            expected = F.mse_loss(model(x), y)
            expected.backward()
            opt.step()
            total += expected.item() * len(x) / 10
    assert loss.location is owner
    torch.testing.assert_close(loss.get().item() / 10, total, atol=1e-6, rtol=1e-6)
    for name, value in obhut.get(remote).state_dict().items():
        torch.testing.assert_close(
            value, model.state_dict()[name], atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("batch_size", [None, 4, 10, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_line_by_line_comes_to_the_same_digits(
    batch_size: int | None, dtype: torch.dtype
) -> None:
    """An eager training is that of the program to the last bit, and so is its loss."""
    owner = obhut.VirtualWorker("owner")
    dataset = RemoteDataset.send(
        torch.randn(10, 3, dtype=dtype), torch.randn(10, 1, dtype=dtype), owner
    )
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    results = []
    for eager in (False, True):
        there = obhut.send(obhut.copy(model), owner)
        training = LocalTraining(
            SGD, F.mse_loss, epochs=3, batch_size=batch_size, eager=eager
        )
        ratio = training.run(there, dataset)
        results.append(
            [*map(obhut.get, ratio), *obhut.get(there).state_dict().values()]
        )
    assert results[0][0].dtype == torch.float64
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_an_eager_training_is_no_program() -> None:
    """Its operators are asked for by name, and nothing else runs them."""
    traced = TracingTransport(LocalTransport(LocalShell(Worker("traced"))))
    owner = obhut.RemoteWorker(traced)
    dataset = RemoteDataset.send(torch.randn(8, 3), torch.randn(8, 1), owner)
    there = obhut.send(nn.Linear(3, 1), owner)
    training = LocalTraining(SGD, F.mse_loss, batch_size=4, eager=True)
    training.run(there, dataset).numerator.get()
    assert traced.render().count("aten.mse_loss") == 2
    assert not any(isinstance(one, RunProgram) for one in traced.requests)


def test_training_sets_training_mode() -> None:
    """A model that was evaluated last trains with its dropout on."""
    owner = obhut.VirtualWorker("owner")
    model = obhut.send(nn.Sequential(nn.Linear(3, 1), nn.Dropout()).eval(), owner)
    dataset = RemoteDataset.send(torch.randn(4, 3), torch.randn(4, 1), owner)
    LocalTraining(SGD, F.mse_loss).run(model, dataset)
    assert model.training


def test_a_frozen_norm_stays_frozen() -> None:
    """Where the model trains, each module keeps its own mode."""
    owner = obhut.VirtualWorker("owner")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model[1].eval()
    dataset = RemoteDataset.send(torch.randn(4, 3), torch.randn(4, 1), owner)
    LocalTraining(SGD, F.mse_loss).run(obhut.send(model, owner), dataset)
    assert [module.training for module in model] == [True, False, True]
    assert model.training
    assert obhut.get(model)[1].num_batches_tracked.item() == 0


def test_a_head_alone_may_train() -> None:
    """A model that is evaluated but for one part keeps to that."""
    owner = obhut.VirtualWorker("owner")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    model[2].train()
    dataset = RemoteDataset.send(torch.randn(4, 3), torch.randn(4, 1), owner)
    LocalTraining(SGD, F.mse_loss).run(obhut.send(model, owner), dataset)
    assert [module.training for module in model] == [False, False, True]


def normed() -> nn.Module:
    """Return a model that can not train on one row."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize("rows", [32, 33, 64])
def test_a_last_batch_can_be_left_out(rows: int) -> None:
    """What is left after full batches is neither trained on nor in the loss."""
    owner = obhut.VirtualWorker("owner")
    x, y = torch.randn(rows, 3), torch.randn(rows, 1)
    model = normed()
    there = obhut.send(obhut.copy(model), owner)
    training = LocalTraining(SGD, F.mse_loss, batch_size=32, drop_last=True)
    above, below = training.run(there, RemoteDataset.send(x, y, owner))
    opt, losses = SGD(model.parameters()), []
    for start in range(0, rows - rows % 32, 32):
        opt.zero_grad()
        expected = F.mse_loss(model(x[start : start + 32]), y[start : start + 32])
        expected.backward()
        opt.step()
        losses.append(expected.item())
    assert (above / below).get().item() == sum(losses) / len(losses)
    assert below.get().item() == rows - rows % 32
    assert obhut.get(there)[1].num_batches_tracked.item() == rows // 32


def test_a_last_batch_of_one_row_says_what_to_write() -> None:
    """One owner's row count ends the round with the line that mends it."""
    owner = obhut.VirtualWorker("owner")
    dataset = RemoteDataset.send(torch.randn(33, 3), torch.randn(33, 1), owner)
    training = LocalTraining(SGD, F.mse_loss, batch_size=32)
    with pytest.raises(
        CallError, match=r"last batch at owner has 1 row, of 33 .*drop_last=True"
    ):
        training.run(obhut.send(normed(), owner), dataset)


@pytest.mark.parametrize(("rows", "size"), [(1, None), (1, 32), (4, 1)])
def test_where_leaving_out_is_no_help_the_error_is_pytorchs(
    rows: int, size: int | None
) -> None:
    """One row in all, or batches of one, can't be mended by ``drop_last``."""
    owner = obhut.VirtualWorker("owner")
    dataset = RemoteDataset.send(torch.randn(rows, 3), torch.randn(rows, 1), owner)
    training = LocalTraining(SGD, F.mse_loss, batch_size=size)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        training.run(obhut.send(normed(), owner), dataset)


def test_an_owner_without_a_full_batch_is_named() -> None:
    """Where ``drop_last`` would leave nothing, the error says who has how many."""
    owner = obhut.VirtualWorker("owner")
    dataset = RemoteDataset.send(torch.randn(20, 3), torch.randn(20, 1), owner)
    training = LocalTraining(SGD, F.mse_loss, batch_size=32, drop_last=True)
    with pytest.raises(CallError, match=r"expected 32 rows or more at owner .*got 20"):
        training.run(obhut.send(normed(), owner), dataset)


def test_there_is_an_epoch() -> None:
    """Training for no epoch is refused when it is described."""
    with pytest.raises(CallError, match="1 epoch"):
        LocalTraining(SGD, F.mse_loss, epochs=0)


def test_the_loss_has_pytorchs_name() -> None:
    """loss_fn is the second argument; both, or none, are refused."""
    for training in (
        LocalTraining(SGD, F.mse_loss),
        LocalTraining(SGD, loss_fn=F.mse_loss),
    ):
        assert training.loss_fn is F.mse_loss
    assert dataclasses.replace(training, epochs=2).loss_fn is F.mse_loss
    with pytest.raises(CallError, match="expected one loss"):
        LocalTraining(SGD)
    with pytest.raises(CallError, match="expected one loss"):
        LocalTraining(SGD, F.mse_loss, loss_func=F.mse_loss)


def test_the_old_name_of_the_loss_is_taken_with_a_warning() -> None:
    """loss_func works, given and read, and each warns at the caller's line."""
    with pytest.warns(FutureWarning, match="now called loss_fn") as caught:
        training = LocalTraining(SGD, loss_func=F.mse_loss, epochs=2)
    assert caught[0].filename == __file__
    assert training == LocalTraining(SGD, F.mse_loss, epochs=2)
    with pytest.warns(FutureWarning, match="now called loss_fn"):
        assert training.loss_func is F.mse_loss
    with pytest.raises(dataclasses.FrozenInstanceError):
        training.epochs = 3
