from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import obhut
from obhut.errors import CallError, LocationError
from obhut.federated.averaging import average, federated_avg, to_whole


@pytest.fixture
def worker() -> obhut.VirtualWorker:
    """Return the worker where models are averaged."""
    return obhut.VirtualWorker("aggregator")


def _models(make: Callable[[], nn.Module], count: int = 3) -> list[nn.Module]:
    return [make() for _ in range(count)]


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.tied = self.linear
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("hidden", torch.randn(2), persistent=False)
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)


def test_average_is_the_arithmetic_written_out(worker: obhut.VirtualWorker) -> None:
    """The mean at a worker is the sum of x * weight / total, rounded once."""
    models = _models(lambda: nn.Linear(3, 2))
    weights = [136, 86, 17]
    remote = [obhut.send(copy.deepcopy(m), worker) for m in models]
    found = obhut.get(average(remote, weights=weights))
    for name, value in found.state_dict().items():
        a, b, c = (m.state_dict()[name].double() for m in models)
        expected = (a * 136 + b * 86 + c * 17) / 239
        assert torch.equal(value, expected.float()), name


def test_two_equal_weights_are_the_seeds_arithmetic(
    worker: obhut.VirtualWorker,
) -> None:
    """The mean of two is (a + b) / 2 exactly, as the seed's program writes it."""
    a, b = _models(lambda: nn.Linear(3, 2), 2)
    expected = (a.weight.data + b.weight.data) / 2
    mean = average([obhut.send(a, worker), obhut.send(b, worker)])
    assert torch.equal(obhut.get(mean).weight.data, expected)


def test_average_works_here_too() -> None:
    """Models that are in this process are averaged in this process."""
    a, b = _models(lambda: nn.Linear(3, 2), 2)
    mean = average([a, b])
    assert torch.equal(mean.weight, (a.weight + b.weight) / 2)
    assert isinstance(mean.weight, nn.Parameter)
    assert mean.weight.is_leaf


def test_models_stay_as_they_are(worker: obhut.VirtualWorker) -> None:
    """Averaging changes no model, and the mean shares no memory with one."""
    a, b = (obhut.send(m, worker) for m in _models(lambda: nn.Linear(3, 2), 2))
    before = a.weight.copy()
    mean = average([a, b])
    with torch.no_grad():
        mean.weight.zero_()
    assert torch.equal(obhut.get(a).weight.data, before.get().data)
    alone = average([b])
    with torch.no_grad():
        alone.weight.zero_()
    assert obhut.get(b).weight.abs().sum() > 0


def test_integer_buffers_are_rounded(worker: obhut.VirtualWorker) -> None:
    """A BatchNorm's count of batches is averaged, rounded and stays int64."""
    models = _models(WithBuffers)
    for model, batches in zip(models, (3, 4, 8), strict=True):
        model.norm.num_batches_tracked.fill_(batches)
    mean = average([obhut.send(m, worker) for m in models], weights=[1, 1, 2])
    found = obhut.get(mean).norm.num_batches_tracked
    assert found.dtype == torch.int64
    assert found.item() == 6  # of 5.75


def test_buffers_outside_the_state_are_averaged(worker: obhut.VirtualWorker) -> None:
    """A buffer that state_dict leaves out is the average, not the first model's."""
    models = _models(WithBuffers, 2)
    expected = (models[0].hidden + models[1].hidden) / 2
    mean = average([obhut.send(m, worker) for m in models])
    assert torch.equal(obhut.get(mean).hidden, expected)


def test_tied_and_frozen_parameters_stay_so(worker: obhut.VirtualWorker) -> None:
    """The mean ties what the models tie, and freezes what they freeze."""
    mean = obhut.get(average([obhut.send(m, worker) for m in _models(WithBuffers)]))
    assert mean.tied.weight is mean.linear.weight
    assert not mean.frozen.requires_grad
    assert mean.linear.weight.requires_grad


def test_gradients_are_left_behind(worker: obhut.VirtualWorker) -> None:
    """A mean has no gradient, whatever gradients its models have."""
    a, b = (obhut.send(m, worker) for m in _models(lambda: nn.Linear(3, 2), 2))
    a(obhut.send(torch.randn(5, 3), worker)).sum().backward()
    assert a.weight.grad is not None
    assert average([a, b]).weight.grad is None


def test_losses_are_averaged_like_weights(worker: obhut.VirtualWorker) -> None:
    """Tensors are averaged by the same weights, at their place, without history."""
    xs = [torch.tensor(float(i), requires_grad=True) for i in (1, 2, 4)]
    mean = average([obhut.send(x, worker) for x in xs], weights=[1, 1, 2])
    assert mean.location is worker
    assert not mean.requires_grad
    assert mean.get().item() == 1 / 4 + 2 / 4 + 4 * 2 / 4


def test_models_at_two_places_are_refused(worker: obhut.VirtualWorker) -> None:
    """Models at two places raise LocationError, which names both."""
    other = obhut.VirtualWorker("other")
    a, b = _models(lambda: nn.Linear(3, 2), 2)
    with pytest.raises(LocationError, match="aggregator and other"):
        average([obhut.send(a, worker), obhut.send(b, other)])
    with pytest.raises(LocationError, match="aggregator and this process"):
        average([a, nn.Linear(3, 2)])


@pytest.mark.parametrize(
    "other", [nn.Linear(1, 2), nn.Linear(3, 2, bias=False), nn.Linear(3, 2).double()]
)
def test_models_that_differ_are_refused(other: nn.Module) -> None:
    """Neither a shape that would broadcast nor a missing parameter passes."""
    with pytest.raises(CallError, match=r"one (architecture|shape)"):
        average([nn.Linear(3, 2), other])


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]]
)
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    """Weights must be as many as the models, finite, not negative, not all 0."""
    with pytest.raises(CallError, match="expected 2 weights"):
        average([torch.ones(1), torch.ones(1)], weights=weights)


def test_what_has_no_mean_is_refused() -> None:
    """Nothing, integer tensors, and tensors mixed with models raise CallError."""
    with pytest.raises(CallError, match="at least one"):
        average([])
    with pytest.raises(CallError, match="floating-point"):
        average([torch.ones(1, dtype=torch.int64)])
    with pytest.raises(CallError, match="Linear, Tensor"):
        average([torch.ones(1), nn.Linear(1, 1)])  # type: ignore[list-item]


def test_weights_become_whole_numbers() -> None:
    """They keep their proportions, as they are written; none weigh the same."""
    assert to_whole([0.1, 0.2, 0.7], 3) == [1, 2, 7]
    assert to_whole([30, 0, 90], 3) == [1, 0, 3]
    assert to_whole(None, 4) == [1] * 4
    long = to_whole([math.pi, math.e, 1e-300], 3)
    assert sum(long) == 2**53
    assert long[0] / long[1] == pytest.approx(math.pi / math.e, rel=1e-15)


def test_federated_avg_takes_a_dictionary(worker: obhut.VirtualWorker) -> None:
    """The seed's federated_avg averages models by worker, or a list of them."""
    models = _models(lambda: nn.Linear(3, 2), 2)
    expected = average(models).weight
    named = dict(zip(("bob", "alice"), models, strict=True))
    assert torch.equal(federated_avg(named).weight, expected)
    assert torch.equal(federated_avg(models).weight, expected)
