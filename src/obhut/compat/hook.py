"""``TorchHook``: the seed's methods on torch's own classes, when asked for.

Rules:

- torch is patched by ``TorchHook(torch)`` and by nothing else; ``unhook()`` takes
  every patch back.
- A second hook warns and patches nothing again.
- A patch never takes the place of something that torch has.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any, Self

import torch
from torch import nn

from obhut.client import functions
from obhut.client.modules import location_of
from obhut.client.registry import Place

from .multi_tensor import MultiTensor
from .virtual_worker import VirtualWorker

# Any below: methods of torch's classes, whatever they take and return.


def _send_tensor(self: torch.Tensor, *workers: Place | str, **_: Any) -> Any:
    """Send a copy to a worker, or to several; a pointer comes back."""
    tags = getattr(self, "tags", ())
    described = getattr(self, "description", "")
    sent = [
        functions.send(self, worker, tags=tuple(tags), description=described)
        for worker in workers
    ]
    return sent[0] if len(sent) == 1 else MultiTensor(sent)


def _send_module(self: nn.Module, worker: Place | str, **_: Any) -> nn.Module:
    """Send the module, in place."""
    return functions.send(self, worker)


def _tag(self: torch.Tensor, *tags: str) -> torch.Tensor:
    """Add tags, which travel with the tensor."""
    self.tags = tuple(dict.fromkeys((*getattr(self, "tags", ()), *tags)))  # type: ignore[attr-defined] # a patch
    return self


def _describe(self: torch.Tensor, description: str) -> torch.Tensor:
    """Say what it is; the words travel with the tensor."""
    self.description = description  # type: ignore[attr-defined] # a patch
    return self


def _owner(self: torch.Tensor) -> object:
    """The worker that has it, or that has the pointer: this process's own."""
    return TorchHook.active.local_worker if TorchHook.active is not None else None


_PATCHES: tuple[tuple[type, str, Any], ...] = (
    (torch.Tensor, "send", _send_tensor),
    (torch.Tensor, "get", functions.get),
    (torch.Tensor, "move", functions.move),
    (torch.Tensor, "copy", functions.copy),
    (torch.Tensor, "tag", _tag),
    (torch.Tensor, "describe", _describe),
    (torch.Tensor, "owner", property(_owner)),
    (nn.Module, "send", _send_module),
    (nn.Module, "get", functions.get),
    (nn.Module, "move", functions.move),
    (nn.Module, "copy", functions.copy),
    (nn.Module, "location", property(location_of)),
)


class TorchHook:
    """Gives torch's tensors and modules the seed's methods.

    Args:
        torch_module: ``torch`` itself, as the seed's programs pass it.
        local_worker: who owns what is in this process; by default a worker ``me``.

    Attributes:
        active: the hook whose patches are in place, if any.
        local_worker: the worker of this process.
    """

    active: TorchHook | None = None

    def __new__(
        cls, torch_module: ModuleType = torch, local_worker: Any = None, **_: Any
    ) -> TorchHook:
        """Return the active hook if there is one, else a new one."""
        if TorchHook.active is not None:
            warnings.warn(
                "torch was already hooked; the same hook is used again",
                UserWarning,
                stacklevel=2,
            )
            return TorchHook.active
        return super().__new__(cls)

    def __init__(
        self, torch_module: ModuleType = torch, local_worker: Any = None, **_: Any
    ) -> None:
        if TorchHook.active is self:
            return
        self.torch = torch_module
        self.local_worker = local_worker or VirtualWorker(id="me")
        for owner, name, patch in _PATCHES:
            if name not in vars(owner):
                setattr(owner, name, patch)
        TorchHook.active = self

    def unhook(self) -> None:
        """Take every patch back."""
        if TorchHook.active is not self:
            return
        for owner, name, patch in _PATCHES:
            if vars(owner).get(name) is patch:
                delattr(owner, name)
        TorchHook.active = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unhook()

