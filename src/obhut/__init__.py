"""Train PyTorch models on data that stays with its owners.

Names are imported when they are first used, so that a process that runs no
operators, such as a worker's parent, does not load torch, and a program that asks for
none of PySyft's names does not load what stands behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obhut.client.functions import copy, get, move, send
    from obhut.client.local_dataset import LocalDataset
    from obhut.client.network import Network, ServedWorker, connect
    from obhut.client.programs import program
    from obhut.client.ratio import Ratio
    from obhut.client.remote_tensor import RemoteTensor
    from obhut.client.session import Session
    from obhut.client.transfer import Future
    from obhut.client.virtual_worker import VirtualWorker
    from obhut.client.workers import RemoteWorker
    from obhut.compat import exceptions
    from obhut.compat.datasets import (
        BaseDataset,
        FederatedDataLoader,
        FederatedDataset,
    )
    from obhut.compat.grid import PrivateGridNetwork
    from obhut.compat.hook import TorchHook
    from obhut.compat.install import install_as_syft
    from obhut.compat.multi_tensor import MultiTensor
    from obhut.compat.sandbox import create_sandbox, make_hook
    from obhut.compat.tensors import combine_pointers
    from obhut.errors import ObhutError
    from obhut.federated.averaging import average, federated_avg, trimmed_mean
    from obhut.federated.federation import Federation
    from obhut.federated.partitioning import by_class, by_column, dirichlet, iid
    from obhut.federated.simulation import simulate
    from obhut.guard.policy import Quorum, UnsafeOpen
    from obhut.transports.grpc.description import DatasetDescription

__version__ = "0.1.0.dev0"

_HOMES = {
    "DatasetDescription": "obhut.transports.grpc.description",
    "Federation": "obhut.federated.federation",
    "Future": "obhut.client.transfer",
    "LocalDataset": "obhut.client.local_dataset",
    "Network": "obhut.client.network",
    "ObhutError": "obhut.errors",
    "Quorum": "obhut.guard.policy",
    "Ratio": "obhut.client.ratio",
    "RemoteTensor": "obhut.client.remote_tensor",
    "RemoteWorker": "obhut.client.workers",
    "ServedWorker": "obhut.client.network",
    "Session": "obhut.client.session",
    "UnsafeOpen": "obhut.guard.policy",
    "VirtualWorker": "obhut.client.virtual_worker",
    "average": "obhut.federated.averaging",
    "by_class": "obhut.federated.partitioning",
    "by_column": "obhut.federated.partitioning",
    "connect": "obhut.client.network",
    "copy": "obhut.client.functions",
    "dirichlet": "obhut.federated.partitioning",
    "federated_avg": "obhut.federated.averaging",
    "get": "obhut.client.functions",
    "iid": "obhut.federated.partitioning",
    "move": "obhut.client.functions",
    "program": "obhut.client.programs",
    "send": "obhut.client.functions",
    "simulate": "obhut.federated.simulation",
    "trimmed_mean": "obhut.federated.averaging",
}

_OLD_HOMES = {
    "BaseDataset": "obhut.compat.datasets",
    "FederatedDataLoader": "obhut.compat.datasets",
    "FederatedDataset": "obhut.compat.datasets",
    "MultiTensor": "obhut.compat.multi_tensor",
    "PrivateGridNetwork": "obhut.compat.grid",
    "TorchHook": "obhut.compat.hook",
    "combine_pointers": "obhut.compat.tensors",
    "create_sandbox": "obhut.compat.sandbox",
    "install_as_syft": "obhut.compat.install",
    "make_hook": "obhut.compat.sandbox",
}
"""PySyft's names."""

_GONE = (
    "AdditiveSharingTensor",
    "AutogradTensor",
    "FixedPrecisionTensor",
    "LoggingTensor",
    "Plan",
    "PlaceHolder",
    "PrivateTensor",
    "Protocol",
    "PublicGridNetwork",
    "ReplicatedSharingTensor",
    "WebsocketClientWorker",
    "WebsocketServerWorker",
    "func2plan",
    "func2protocol",
    "keygen",
    "make_plan",
)
"""What it had besides: who uses it is told what to write instead."""

_CHANGING = {"hook": "active_hook", "local_worker": "local_worker"}
"""What changes with the hook, by the function that returns it. It is not kept."""


def __getattr__(name: str) -> object:
    import importlib  # noqa: PLC0415 # else it would be a name of this package's

    if name in _CHANGING:
        hook = importlib.import_module("obhut.compat.hook")
        current: object = getattr(hook, _CHANGING[name])()
        return current
    home = _HOMES.get(name) or _OLD_HOMES.get(name)
    if home is None and name in _GONE:
        home = "obhut.compat.gone"
    if home is not None:
        found: object = getattr(importlib.import_module(home), name)
    elif name == "exceptions":
        found = importlib.import_module("obhut.compat.exceptions")
    else:
        raise AttributeError(f"module 'obhut' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)


__all__ = [
    "BaseDataset",
    "DatasetDescription",
    "FederatedDataLoader",
    "FederatedDataset",
    "Federation",
    "Future",
    "LocalDataset",
    "MultiTensor",
    "Network",
    "ObhutError",
    "PrivateGridNetwork",
    "Quorum",
    "Ratio",
    "RemoteTensor",
    "RemoteWorker",
    "ServedWorker",
    "Session",
    "TorchHook",
    "UnsafeOpen",
    "VirtualWorker",
    "average",
    "by_class",
    "by_column",
    "combine_pointers",
    "connect",
    "copy",
    "create_sandbox",
    "dirichlet",
    "exceptions",
    "federated_avg",
    "get",
    "iid",
    "install_as_syft",
    "make_hook",
    "move",
    "program",
    "send",
    "simulate",
    "trimmed_mean",
]
