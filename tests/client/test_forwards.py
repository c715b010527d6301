"""The forward of a module that was sent looks like the one that it had."""

from __future__ import annotations

import copy
import inspect
import pickle
from types import MethodType

import pytest
import torch
from torch import nn

import obhut
from obhut.errors import LocationError, UnsupportedError

X = torch.linspace(-1, 1, 6).reshape(2, 3)


class Net(nn.Module):
    """A module that makes tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 1.0
    ) -> torch.Tensor:
        """Use a factory."""
        return self.inner(x) * scale + torch.arange(3)


def test_it_is_described_as_before(bob: obhut.VirtualWorker):
    """Signature, names, text, annotations, code and source; of a copy too."""
    model = Net()

    def facts(model: nn.Module) -> list[object]:
        forward = model.forward
        return [
            inspect.signature(forward),
            inspect.signature(forward, follow_wrapped=True).parameters["scale"].default,
            inspect.getdoc(forward),
            inspect.getsource(forward),
            forward.__name__,
            forward.__qualname__,
            forward.__module__,
            forward.__annotations__,
            forward.__code__,
            forward.__kwdefaults__,
            forward.__self__ is model,
            callable(forward),
        ]

    before = facts(model)
    obhut.send(model, bob)
    assert facts(model) == before
    assert facts(copy.deepcopy(model)) == before
    assert not hasattr(model.forward, "no_such_thing")
    obhut.get(model)
    assert facts(model) == before
    assert vars(model).keys() == vars(Net()).keys()


def test_who_wraps_it_wraps_what_runs_at_the_worker(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
):
    """A program that replaces ``forward`` after ``send`` is not undone by ``get``."""
    model = Net()
    expected = model(X).detach() * 2
    obhut.send(model, bob)
    inner = model.forward
    model.forward = lambda *args: inner(*args) * 2
    assert torch.equal(model(obhut.send(X, bob)).get().detach(), expected)
    obhut.get(model)
    assert torch.equal(model(X).detach(), expected)
    obhut.send(model, alice)
    assert torch.equal(model(obhut.send(X, alice)).get().detach(), expected)


def test_a_forward_of_the_modules_own_stays_its_own(bob: obhut.VirtualWorker):
    """One that a program set before ``send`` runs there, and is there after ``get``."""
    model = Net()
    own = MethodType(lambda self, x: type(self).forward(self, x) * 2, model)
    model.forward = own
    expected = model(X).detach()
    obhut.send(model, bob)
    assert torch.equal(model(obhut.send(X, bob)).get().detach(), expected)
    twin = obhut.copy(model)
    assert torch.equal(twin(obhut.send(X, bob)).get().detach(), expected)
    assert obhut.get(model).forward is own


def test_a_sent_module_is_not_pickled(bob: obhut.VirtualWorker):
    """Neither with parameters nor without; a fetched one is."""
    model = obhut.send(nn.Sequential(Net(), nn.Sequential(nn.ReLU())), bob)
    for part in (model, model[1]):
        with pytest.raises(UnsupportedError, match="pickling"):
            pickle.dumps(part)
    obhut.get(model)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again[0](X), model[0](X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own
def test_a_compiled_module_runs_uncompiled(bob: obhut.VirtualWorker):
    """Sent before or after it was compiled, and here again after ``get``."""
    for first in (True, False):
        model = Net()
        expected = model(X).detach()
        if first:
            compiled = torch.compile(model, backend="eager")
            obhut.send(compiled, bob)
        else:
            obhut.send(model, bob)
            compiled = torch.compile(model, backend="eager")
        assert torch.equal(compiled(obhut.send(X, bob)).get().detach(), expected)
        obhut.get(model)
        assert torch.equal(model(X).detach(), expected)


def test_what_a_function_caches_is_said_to_be_outside(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
):
    """Only where all that the module was called with is at its worker."""
    outside = torch.ones(3)

    class Using(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Use what is not the module's."""
            return x * outside

    model = nn.Sequential(nn.Linear(3, 3), Using())
    obhut.send(model, bob)
    with pytest.raises(LocationError, match=r"outside the module.*register_buffer"):
        model(obhut.send(X, bob))
    with pytest.raises(LocationError) as raised:
        model(obhut.send(X, alice))
    assert "register_buffer" not in str(raised.value)
