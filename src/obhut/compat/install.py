"""``import syft as sy`` after ``obhut.install_as_syft()``.

Rules:

- The modules are real ones, made from a table: the old library's import paths,
  and for each which names it has and where they live now.
- Names are looked up when they are used: installing loads no torch.
- A ``syft`` that is imported already is never replaced.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType

from obhut.errors import CallError

_EVERYTHING = "*"

_FEDERATED: Mapping[str, str] = {
    "BaseDataset": "obhut.compat.datasets:BaseDataset",
    "FederatedDataLoader": "obhut.compat.datasets:FederatedDataLoader",
    "FederatedDataset": "obhut.compat.datasets:FederatedDataset",
}
_DATASET: Mapping[str, str] = {
    "BaseDataset": "obhut.compat.datasets:BaseDataset",
    "FederatedDataset": "obhut.compat.datasets:FederatedDataset",
    "dataset_federate": "obhut.compat.datasets:federate",
}
_LOADER: Mapping[str, str] = {
    "FederatedDataLoader": "obhut.compat.datasets:FederatedDataLoader",
}
_AVERAGING: Mapping[str, str] = {
    "accuracy": "obhut.compat.models:accuracy",
    "add_model": "obhut.compat.models:add_model",
    "extract_batches_per_worker": "obhut.compat.datasets:extract_batches_per_worker",
    "federated_avg": "obhut.federated.averaging:federated_avg",
    "scale_model": "obhut.compat.models:scale_model",
}
_POINTER: Mapping[str, str] = {
    "PointerTensor": "obhut.client.remote_tensor:RemoteTensor",
}
_MULTI_POINTER: Mapping[str, str] = {
    "MultiPointerTensor": "obhut.compat.multi_tensor:MultiTensor",
}

_VIRTUAL: Mapping[str, str] = {
    "VirtualWorker": "obhut.client.virtual_worker:VirtualWorker",
}


def _gone(*names: str) -> Mapping[str, str]:
    """Return what says, for each name, what to write instead."""
    return {name: f"obhut.compat.gone:{name}" for name in names}


_NAMES: Mapping[str, Mapping[str, str]] = {
    "syft": {_EVERYTHING: "obhut", **_POINTER, **_MULTI_POINTER},
    "syft.exceptions": {_EVERYTHING: "obhut.compat.exceptions"},
    "syft.execution.placeholder": _gone("PlaceHolder"),
    "syft.execution.plan": _gone("Plan", "func2plan"),
    "syft.execution.protocol": _gone("Protocol", "func2protocol"),
    "syft.federated.floptimizer": {"Optims": "obhut.compat.optimizers:Optims"},
    "syft.frameworks.torch.differential_privacy.pate": _gone("perform_analysis"),
    "syft.frameworks.torch.dp.pate": _gone("perform_analysis"),
    "syft.frameworks.torch.federated": _FEDERATED,
    "syft.frameworks.torch.federated.dataloader": _LOADER,
    "syft.frameworks.torch.federated.dataset": _DATASET,
    "syft.frameworks.torch.federated.utils": _AVERAGING,
    "syft.frameworks.torch.fl": _FEDERATED,
    "syft.frameworks.torch.fl.dataloader": _LOADER,
    "syft.frameworks.torch.fl.dataset": _DATASET,
    "syft.frameworks.torch.fl.utils": _AVERAGING,
    "syft.frameworks.torch.functions": {
        "combine_pointers": "obhut.compat.tensors:combine_pointers"
    },
    "syft.frameworks.torch.he.paillier": _gone("keygen"),
    "syft.frameworks.torch.hook.hook": {"TorchHook": "obhut.compat.hook:TorchHook"},
    "syft.frameworks.torch.tensors.decorators.logging": _gone("LoggingTensor"),
    "syft.frameworks.torch.tensors.interpreters.additive_shared": _gone(
        "AdditiveSharingTensor"
    ),
    "syft.frameworks.torch.tensors.interpreters.autograd": _gone("AutogradTensor"),
    "syft.frameworks.torch.tensors.interpreters.precision": _gone(
        "FixedPrecisionTensor"
    ),
    "syft.frameworks.torch.tensors.interpreters.private": _gone("PrivateTensor"),
    "syft.frameworks.torch.tensors.interpreters.replicated_shared": _gone(
        "ReplicatedSharingTensor"
    ),
    "syft.generic.pointers.multi_pointer": _MULTI_POINTER,
    "syft.generic.pointers.pointer_dataset": {
        "PointerDataset": "obhut.compat.datasets:BaseDataset"
    },
    "syft.generic.pointers.pointer_tensor": _POINTER,
    "syft.grid.clients.data_centric_fl_client": _gone("DataCentricFLClient"),
    "syft.grid.clients.model_centric_fl_client": _gone("ModelCentricFLClient"),
    "syft.grid.private_grid": {
        "PrivateGridNetwork": "obhut.compat.grid:PrivateGridNetwork"
    },
    "syft.grid.public_grid": _gone("PublicGridNetwork"),
    "syft.sandbox": {
        "create_sandbox": "obhut.compat.sandbox:create_sandbox",
        "make_hook": "obhut.compat.sandbox:make_hook",
    },
    "syft.workers.abstract": {"AbstractWorker": "obhut.client.workers:RemoteWorker"},
    "syft.workers.base": {"BaseWorker": "obhut.client.workers:RemoteWorker"},
    "syft.workers.virtual": _VIRTUAL,
    "syft.workers.websocket_client": _gone("WebsocketClientWorker"),
    "syft.workers.websocket_server": _gone("WebsocketServerWorker"),
}
"""Old import paths with their names as ``module:name``; ``*`` stands for all the names
of a module."""


def _parents(path: str) -> Iterator[str]:
    """Yield the packages that a module is in."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


_MODULES: Mapping[str, Mapping[str, str]] = {
    **{parent: {} for path in _NAMES for parent in _parents(path)},
    **_NAMES,
}
"""All old import paths, packages too."""

_MARK = "__obhut_stands_in__"


def install_as_syft() -> None:
    """Let ``import syft`` and its old import paths find obhut.

    It may be called again. A ``syft`` that is installed but not imported is hidden
    in this process.

    Raises:
        CallError: if another ``syft`` is imported already.
    """
    present = sys.modules.get("syft")
    if present is not None:
        if hasattr(present, _MARK):
            return
        where = getattr(present, "__file__", None) or "an unknown place"
        raise CallError(
            f"another syft is imported already, from {where}; call install_as_syft() "
            "in a fresh process, before anything imports syft"
        )
    modules = {name: _module(name, homes) for name, homes in _MODULES.items()}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)


def uninstall_syft() -> None:
    """Take back what ``install_as_syft`` did; does nothing if it did nothing."""
    if hasattr(sys.modules.get("syft"), _MARK):
        for name in _MODULES:
            sys.modules.pop(name, None)


def _module(name: str, homes: Mapping[str, str]) -> ModuleType:
    module = ModuleType(name, "Stands in for the old library's module of that name.")
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    # Empty: what the table does not have is not found.
    module.__path__ = []
    look_up = _look_up(name, homes)
    vars(module).update({_MARK: True, "__getattr__": look_up})
    everything = homes.get(_EVERYTHING)
    if everything is None:
        vars(module)["__all__"] = sorted(homes)
    return module


def _look_up(module: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module's ``__getattr__`` (PEP 562)."""

    def look_up(name: str) -> object:
        home = homes.get(name)
        if home is not None:
            place, _, its_name = home.partition(":")
            return getattr(importlib.import_module(place), its_name)
        everything = homes.get(_EVERYTHING)
        found = None if everything is None else importlib.import_module(everything)
        if found is None or not hasattr(found, name):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(found, name)

    return look_up
