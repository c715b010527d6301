"""What of a model takes part in a round, and how it is written.

::

    named = taking_part(model, keep=["head"])    # parameters and buffers, by name
    before = snapshot(model)                     # as it is now, for owners to train
    marked = [marks(x, before_x) for ...]        # of values that are not finite
    with taken_back(named):                      # on an error all is as it was
        write(named, means)

Rules:

- What requires gradients takes part, and buffers, each once, also those that a state
  dictionary leaves out. A frozen parameter goes to the owners and stays as it is here,
  whatever became of it there. Extra state of modules is the caller's and stays, too.
- A value that isn't finite in the model, as in a mask of -inf, stays as it is, unless
  it becomes finite at all owners, as the range of an observer: so their mean would. An
  owner where it becomes another one that isn't finite has spoilt the round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from obhut.client.functions import send
from obhut.client.modules import copy_module
from obhut.errors import CallError

from .contributions import MARK

Module = TypeVar("Module", bound=nn.Module)


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return each parameter and buffer once, by its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that require no gradients, by name."""
    return {
        name: one for name, one in model.named_parameters() if not one.requires_grad
    }


def kept(model: nn.Module, keep: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return what stays at each owner, by name.

    Args:
        model: the model.
        keep: names of modules, parameters or buffers; of a module all that is in it.

    Raises:
        CallError: if a name matches nothing.
    """
    if isinstance(keep, str):
        raise CallError(f'expected keep to be a list of names: keep=["{keep}"]')
    named, found = named_tensors(model), {}
    for prefix in keep:
        part = {
            name: one
            for name, one in named.items()
            if name == prefix or name.startswith(f"{prefix}.")
        }
        if not part:
            modules = ", ".join(name for name, _ in model.named_children())
            raise CallError(
                f"the model has nothing called {prefix!r} to keep; its modules are: "
                f"{modules or 'none'}"
            )
        found.update(part)
    return found


def taking_part(model: nn.Module, keep: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Return what a round may change: what is neither frozen nor kept at owners."""
    out = {**frozen(model), **kept(model, keep)}
    return {name: one for name, one in named_tensors(model).items() if name not in out}


def snapshot(model: Module) -> Module:
    """Return a copy of a model; of what is frozen it has the same memory."""
    shared = {
        id(one): nn.Parameter(one.detach(), requires_grad=False)
        for one in frozen(model).values()
    }
    return copy_module(model, shared)


def check_looks(trained: nn.Module, before: nn.Module) -> None:
    """Check that a training changed values, and nothing else.

    Raises:
        CallError: if it did.
    """
    different = differences(named_tensors(trained), named_tensors(before))
    if different:
        raise CallError(
            "expected a training that changes values and neither names, shapes nor "
            f"dtypes; changed were {', '.join(different)}"
        )


def differences(
    tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return the names of what is in one only, or of another shape or dtype."""
    looks, looked = (
        {(name, tuple(one.shape), one.dtype) for name, one in named.items()}
        for named in (tensors, others)
    )
    return sorted({name for name, *_ in looks ^ looked})


def less_constants(
    x: torch.Tensor, first: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a trained tensor with 0 for what was not finite before and is the same.

    With it come marks of what was not finite before and has changed.

    Args:
        x: the tensor, at an owner.
        first: as it was, here.
    """
    there = _wide(send(first.detach(), x.location))  # type: ignore[attr-defined] # remote
    with torch.no_grad():
        wide = _wide(x)
        same = (wide == there) | (wide.isnan() & there.isnan())
        constant = there.isfinite().logical_not()
        changed = constant & same.logical_not()
        left = wide.masked_fill(constant & same, 0).to(x.dtype)
        return left, changed.to(torch.float64) * MARK


def with_constants(
    mean: torch.Tensor, marks: torch.Tensor, first: torch.Tensor
) -> torch.Tensor:
    """Return a mean of ``less_constants``, with what stays as it was.

    Args:
        mean: of trained tensors.
        marks: the mean of their marks.
        first: the tensor as it was.
    """
    return torch.where(_finite(first) | (marks == MARK), mean, first)


def is_finite(x: torch.Tensor) -> bool:
    """Tell whether a tensor is finite everywhere."""
    if not (x.is_floating_point() or x.is_complex()):
        return True
    # Any other value would show in the sum, which takes no memory.
    total = x.sum(dtype=torch.complex128 if x.is_complex() else torch.float64)
    return bool(total.isfinite()) or bool(_finite(x).all())


def _finite(x: torch.Tensor) -> torch.Tensor:
    """Return where a tensor is finite."""
    return _wide(x).isfinite()


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a dtype that PyTorch compares; floats of 8 bits it doesn't."""
    return x.float() if x.is_floating_point() and x.itemsize == 1 else x


def write(
    named: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]
) -> None:
    """Write values into the tensors of the same names."""
    with torch.no_grad():
        for name, value in values.items():
            named[name].copy_(value)


@contextlib.contextmanager
def taken_back(
    named: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]
) -> Iterator[None]:
    """Let tensors be as they were if what is inside fails, whenever Ctrl-C comes.

    Args:
        named: the tensors.
        before: copies of them, by the same names.
    """
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in named.items():
                # One of them may be what can't be written.
                with contextlib.suppress(RuntimeError):
                    tensor.copy_(before[name])
        raise
