"""Train PyTorch models on data that stays with its owners.

Names are imported when they are first used, so that a process that runs no
operators, such as a worker's parent, does not load torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obhut.client.functions import copy, get, move, send
    from obhut.client.network import Network, connect
    from obhut.client.remote_tensor import RemoteTensor
    from obhut.client.session import Session
    from obhut.client.transfer import Future
    from obhut.client.workers import RemoteWorker
    from obhut.compat import exceptions
    from obhut.compat.datasets import (
        BaseDataset,
        FederatedDataLoader,
        FederatedDataset,
    )
    from obhut.compat.hook import TorchHook
    from obhut.compat.install import install_as_syft
    from obhut.compat.multi_tensor import MultiTensor
    from obhut.compat.virtual_worker import VirtualWorker
    from obhut.errors import ObhutError
    from obhut.federated.averaging import average, federated_avg, trimmed_mean
    from obhut.guard.policy import Quorum, UnsafeOpen

__version__ = "0.1.0.dev0"

_HOMES: Mapping[str, str] = {
    "BaseDataset": "obhut.compat.datasets",
    "FederatedDataLoader": "obhut.compat.datasets",
    "FederatedDataset": "obhut.compat.datasets",
    "Future": "obhut.client.transfer",
    "MultiTensor": "obhut.compat.multi_tensor",
    "ObhutError": "obhut.errors",
    "Quorum": "obhut.guard.policy",
    "RemoteTensor": "obhut.client.remote_tensor",
    "RemoteWorker": "obhut.client.workers",
    "Session": "obhut.client.session",
    "TorchHook": "obhut.compat.hook",
    "UnsafeOpen": "obhut.guard.policy",
    "VirtualWorker": "obhut.compat.virtual_worker",
    "Network": "obhut.client.network",
    "average": "obhut.federated.averaging",
    "connect": "obhut.client.network",
    "copy": "obhut.client.functions",
    "federated_avg": "obhut.federated.averaging",
    "get": "obhut.client.functions",
    "install_as_syft": "obhut.compat.install",
    "move": "obhut.client.functions",
    "send": "obhut.client.functions",
    "trimmed_mean": "obhut.federated.averaging",
}

_MODULES: Mapping[str, str] = {
    "exceptions": "obhut.compat.exceptions",
}


def __getattr__(name: str) -> object:
    if name == "local_worker":
        # It changes with the hook, hence it is not kept.
        current: object = importlib.import_module("obhut.compat.hook").local_worker()
        return current
    home = _HOMES.get(name)
    if home is not None:
        found: object = getattr(importlib.import_module(home), name)
    elif name in _MODULES:
        found = importlib.import_module(_MODULES[name])
    else:
        raise AttributeError(f"module 'obhut' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})


__all__ = [
    "BaseDataset",
    "FederatedDataLoader",
    "FederatedDataset",
    "Future",
    "MultiTensor",
    "Network",
    "ObhutError",
    "Quorum",
    "RemoteTensor",
    "RemoteWorker",
    "Session",
    "TorchHook",
    "UnsafeOpen",
    "VirtualWorker",
    "average",
    "connect",
    "copy",
    "exceptions",
    "federated_avg",
    "get",
    "install_as_syft",
    "move",
    "send",
    "trimmed_mean",
]
