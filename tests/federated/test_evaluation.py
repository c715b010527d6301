from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from msgspec import structs
from torch import nn

import obhut
from obhut.errors import CallError, ReleaseRefusedError
from obhut.federated import RemoteDataset, evaluate

ROWS = (7, 3, 20)
NAMES = ("bob", "alice", "carol")
POLICY = obhut.Quorum(aggregators=["aggregator"], contributors=NAMES)


def both(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return loss and share of correct signs, (2,)."""
    right = ((outputs > 0) == (targets > 0)).float().mean()
    return torch.stack([F.mse_loss(outputs, targets), right])


def make() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return a model that acts otherwise while it trains, and rows."""
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Dropout(), nn.Linear(4, 1))
    return model, [(torch.randn(n, 3), torch.randn(n, 1)) for n in ROWS]


def serve(
    rows: list[tuple[torch.Tensor, torch.Tensor]], policy: obhut.Quorum = POLICY
) -> list[RemoteDataset]:
    """Return each owner's rows, at a worker with a policy."""
    owners = []
    for name, (x, y) in zip(NAMES, rows, strict=True):
        data = {"rows": {"features": x, "target": y}}
        worker = obhut.VirtualWorker(name, policy=policy, datasets=data)
        owners.append(RemoteDataset(worker["rows"], worker["rows", "target"]))
    return owners


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_metric_is_that_of_pooled_rows(batch_size: int | None) -> None:
    """Averaged over guarded owners it is the metric over all rows in one place."""
    model, rows = make()
    aggregator = obhut.VirtualWorker("aggregator", policy=POLICY)
    found = evaluate(model, serve(rows), aggregator, both, batch_size=batch_size)
    x, y = (torch.cat(parts) for parts in zip(*rows, strict=True))
    with torch.no_grad():
        expected = both(obhut.copy(model).eval()(x), y)
    torch.testing.assert_close(found, expected)
    assert model.training


def test_weights_replace_the_numbers_of_rows() -> None:
    """With a weight of each, owners count as told, unless they compare programs."""
    model, rows = make()
    weights = [1.0, 1.0, 2.0]
    aggregator = obhut.VirtualWorker("aggregator", policy=POLICY)
    with pytest.raises(ReleaseRefusedError, match="the same computation") as refused:
        evaluate(model, serve(rows), aggregator, F.mse_loss, weights=weights)
    assert refused.value.rule == "program"
    letting = structs.replace(POLICY, programs="any")
    aggregator = obhut.VirtualWorker("aggregator", policy=letting)
    owners = serve(rows, letting)
    found = evaluate(model, owners, aggregator, F.mse_loss, weights=weights)
    with torch.no_grad():
        model.eval()
        own = [F.mse_loss(model(x), y) for x, y in rows]
    torch.testing.assert_close(found, (own[0] + own[1] + 2 * own[2]) / 4)


def test_two_owners_results_stay_where_they_are() -> None:
    """A metric over fewer owners than the policy asks for is refused."""
    model, rows = make()
    aggregator = obhut.VirtualWorker("aggregator", policy=POLICY)
    with pytest.raises(ReleaseRefusedError, match="3 owners are needed"):
        evaluate(model, serve(rows)[:2], aggregator, F.mse_loss)


def test_without_owners_there_is_no_metric() -> None:
    """Nobody's rows have no average."""
    model, _ = make()
    with pytest.raises(CallError, match="at least one"):
        evaluate(model, [], obhut.VirtualWorker("aggregator"), F.mse_loss)
