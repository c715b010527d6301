"""``TorchHook``: PySyft's methods on torch's own classes, when asked for.

Rules:

- torch is patched by ``TorchHook(torch)`` and by nothing else; ``unhook()`` takes
  every patch back.
- A second hook warns and patches nothing again.
- A patch never takes the place of something that torch has.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, Self

import torch

from .tensors import PATCHES
from .virtual_worker import VirtualWorker
from .warning import warn

# Any below: methods of torch's classes, whatever they take and return.


def _patches() -> Iterator[tuple[type, str, Any]]:
    """Yield what is given to which class under which name."""
    for owner, patches in PATCHES.items():
        for name, patch in patches.items():
            yield owner, name, patch


class TorchHook:
    """Gives torch's tensors and modules PySyft's methods.

    Args:
        torch_module: ``torch`` itself, as PySyft's programs pass it.
        local_worker: who owns what is in this process; by default a worker ``me``.
            What is moved to it is fetched.
        is_client: kept, and makes no difference.
        verbose: likewise.
        seed: likewise; so do the options that older versions had.
        queue_size: likewise.
        known_workers: likewise.

    Attributes:
        active: the hook whose patches are in place, if any.
        local_worker: the worker of this process.
        virtual_worker: the class of workers that are made with it.
    """

    active: TorchHook | None = None
    virtual_worker = VirtualWorker

    def __new__(cls, *_: Any, **__: Any) -> Self | TorchHook:
        """Return the active hook if there is one, else a new one."""
        if TorchHook.active is not None:
            warn("torch was already hooked; the same hook is used again")
            return TorchHook.active
        return super().__new__(cls)

    def __init__(
        self,
        torch_module: ModuleType = torch,
        local_worker: VirtualWorker | None = None,
        is_client: bool = True,
        verbose: bool = False,
        seed: int | None = None,
        queue_size: int = 0,
        known_workers: object = None,
    ) -> None:
        if TorchHook.active is self:
            return
        self.torch = torch_module
        self.is_client, self.verbose = is_client, verbose
        if local_worker is None:
            local_worker = VirtualWorker(self, "me", is_client_worker=is_client)
        self.local_worker = local_worker
        local_worker.here = True
        self._patched: list[tuple[type, str]] = []
        TorchHook.active = self
        for owner, name, patch in _patches():
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
        self.local_worker.here = False
        TorchHook.active = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unhook()


def local_worker() -> VirtualWorker | None:
    """Return the worker of this process, or None while torch is not hooked."""
    return None if TorchHook.active is None else TorchHook.active.local_worker


def active_hook() -> TorchHook | None:
    """Return the hook whose patches are in place, if any."""
    return TorchHook.active
