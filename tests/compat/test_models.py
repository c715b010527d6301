import pytest
import torch
from torch import nn

import obhut
from obhut.compat.models import accuracy, add_model, scale_model
from obhut.compat.virtual_worker import VirtualWorker


@pytest.mark.parametrize("remote", [False, True])
def test_models_are_added_and_scaled_in_place(bob: VirtualWorker, remote: bool) -> None:
    """By the parameters' names, here or at one worker; the second stays as it was."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    pair = (first.parameters(), second.parameters())
    expected = [(a + b) * 0.5 for a, b in zip(*pair, strict=True)]
    before = second.weight.detach().clone()
    if remote:
        first.send(bob)
        second.send(bob)
    assert add_model(first, second) is first
    assert scale_model(first, 0.5) is first
    if remote:
        first.get()
        second.get()
    assert all(map(torch.allclose, first.parameters(), expected))
    assert torch.equal(second.weight, before)
    assert first.weight.requires_grad


def test_what_shares_their_memory_stays() -> None:
    """A tensor that a parameter was set to keeps its values."""
    model, values = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    for change, expected in (
        (lambda: scale_model(model, 5.0), 5.0),
        (lambda: add_model(model, model), 2.0),
    ):
        model.weight.data = values
        change()
        assert values.tolist() == [[1.0, 1.0]]
        assert model.weight.tolist() == [[expected, expected]]


def test_what_a_model_lacks_is_left_alone() -> None:
    """A parameter without a counterpart keeps its values."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    bias = first.bias.detach().clone()
    add_model(first, second)
    assert torch.equal(first.bias, bias)


def test_accuracy_is_a_fraction(bob: VirtualWorker) -> None:
    """Of right predictions among all rows; targets may be a column; remote too."""
    predicted = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
    target = torch.tensor([0, 1, 1, 1])
    assert accuracy(predicted, target) == 0.75
    assert accuracy(predicted, target.view(-1, 1)) == 0.75
    assert accuracy(predicted.send(bob), target.send(bob)) == 0.75


def test_they_are_where_they_were() -> None:
    """syft.frameworks.torch.fl.utils has all three."""
    obhut.install_as_syft()
    from syft.frameworks.torch.fl import utils

    assert utils.add_model is add_model
    assert utils.scale_model is scale_model
    assert utils.accuracy is accuracy
