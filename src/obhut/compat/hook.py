"""``TorchHook``: PySyft's methods on torch's own classes, when asked for.

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
from torch.utils.data import Dataset

from obhut.client import functions
from obhut.client.modules import location_of
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_tensor import RemoteTensor
from obhut.errors import CallError

from .datasets import federate
from .multi_tensor import MultiTensor
from .virtual_worker import VirtualWorker

# Any below: methods of torch's classes, whatever they take and return.

_OF_NO_EFFECT = frozenset(
    ("local_autograd", "preinitialize_grad", "requires_grad", "user")
)
"""Old options of ``send`` that say how what is now always so should be brought
about: autograd runs where the data is, and gradients come with the tensor."""


def _send_tensor(
    self: torch.Tensor,
    *workers: Place | str,
    garbage_collect_data: bool = True,
    **options: Any,
) -> RemoteTensor | MultiTensor:
    """Send a copy to a worker, or to several at once.

    Args:
        workers: themselves or by id, each once.
        garbage_collect_data: with False, the worker keeps the copy when the last
            name for it goes, as it does with tagged ones.
        options: old options that make no difference any more.

    Returns:
        The remote tensor, or for several workers one that does things at each.

    Raises:
        CallError: if no worker is named, or one twice.
        TypeError: for an option that PySyft 0.2 did not have.
    """
    _check_options(options)
    places = [WORKERS.find(worker) for worker in workers]
    if not places:
        raise CallError("send needs a worker: x.send(bob)")
    if len({place.session for place in places}) != len(places):
        raise CallError("send got a worker twice; name each once")
    tags: tuple[str, ...] = tuple(getattr(self, "tags", ()))
    said: str = getattr(self, "description", "")
    sent = [functions.send(self, p, tags=tags, description=said) for p in places]
    if not garbage_collect_data:
        for one in sent:
            one.tag()
    return sent[0] if len(sent) == 1 else MultiTensor(sent)


def _send_module(self: nn.Module, worker: Place | str, **options: Any) -> nn.Module:
    """Send the module, in place, and return it."""
    _check_options(options)
    return functions.send(self, worker)


def _check_options(options: dict[str, Any]) -> None:
    unknown = sorted(options.keys() - _OF_NO_EFFECT)
    if unknown:
        raise TypeError(f"send() got an unexpected option {unknown[0]!r}")


def _tag(self: torch.Tensor, *tags: str) -> torch.Tensor:
    """Add tags, which travel with the tensor."""
    self.tags = tuple(dict.fromkeys((*getattr(self, "tags", ()), *tags)))  # type: ignore[attr-defined] # a patch
    return self


def _describe(self: torch.Tensor, description: str) -> torch.Tensor:
    """Say what it is; the words travel with the tensor."""
    self.description = description  # type: ignore[attr-defined] # a patch
    return self


def _owner(self: torch.Tensor) -> VirtualWorker | None:
    """The worker that has the tensor, or its pointer: this process's own."""
    return local_worker()


_PATCHES: tuple[tuple[type, str, Any], ...] = (
    (torch.Tensor, "send", _send_tensor),
    (torch.Tensor, "get", functions.get),
    (torch.Tensor, "move", functions.move),
    (torch.Tensor, "copy", functions.copy),
    (torch.Tensor, "tag", _tag),
    (torch.Tensor, "tags", ()),
    (torch.Tensor, "describe", _describe),
    (torch.Tensor, "description", ""),
    (torch.Tensor, "owner", property(_owner)),
    (nn.Module, "send", _send_module),
    (nn.Module, "get", functions.get),
    (nn.Module, "move", functions.move),
    (nn.Module, "copy", functions.copy),
    (nn.Module, "location", property(location_of)),
    (Dataset, "federate", federate),
)


class TorchHook:
    """Gives torch's tensors and modules PySyft's methods.

    Args:
        torch_module: ``torch`` itself, as PySyft's programs pass it.
        local_worker: who owns what is in this process; by default a worker ``me``.

    Attributes:
        active: the hook whose patches are in place, if any.
        local_worker: the worker of this process.
    """

    active: TorchHook | None = None

    def __new__(
        cls,
        torch_module: ModuleType = torch,
        local_worker: VirtualWorker | None = None,
        **_: Any,
    ) -> Self | TorchHook:
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
        self,
        torch_module: ModuleType = torch,
        local_worker: VirtualWorker | None = None,
        **_: Any,
    ) -> None:
        if TorchHook.active is self:
            return
        self.torch = torch_module
        if local_worker is None:
            local_worker = VirtualWorker(self, id="me")
        self.local_worker = local_worker
        self._patched: list[tuple[type, str]] = []
        TorchHook.active = self
        for owner, name, patch in _PATCHES:
            if not hasattr(owner, name):
                setattr(owner, name, patch)
                self._patched.append((owner, name))

    def __repr__(self) -> str:
        state = "" if TorchHook.active is self else ", unhooked"
        return f"<TorchHook of {self.local_worker.id}{state}>"

    def unhook(self) -> None:
        """Take every patch back. What was sent stays usable."""
        if TorchHook.active is not self:
            return
        while self._patched:
            delattr(*self._patched.pop())
        TorchHook.active = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unhook()


def local_worker() -> VirtualWorker | None:
    """Return the worker of this process, or None while torch is not hooked."""
    return None if TorchHook.active is None else TorchHook.active.local_worker
