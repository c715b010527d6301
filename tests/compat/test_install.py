import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import obhut
from obhut.compat.install import _MODULES, install_as_syft, uninstall_syft
from obhut.errors import CallError, LocationError


def test_the_old_import_paths_work() -> None:
    """Each old path is a real module with the names that programs import from it."""
    install_as_syft()
    import syft
    import syft as sy
    from syft import exceptions
    from syft.exceptions import ObjectNotFoundError, TensorsNotCollocatedException
    from syft.frameworks.torch import fl
    from syft.frameworks.torch.federated import FederatedDataset as Older
    from syft.frameworks.torch.fl import (
        BaseDataset,
        FederatedDataLoader,
        FederatedDataset,
    )
    from syft.frameworks.torch.fl.utils import federated_avg
    from syft.generic.pointers.pointer_tensor import PointerTensor
    from syft.workers.base import BaseWorker
    from syft.workers.virtual import VirtualWorker

    assert type(syft) is ModuleType
    assert syft is sy
    assert fl is syft.frameworks.torch.fl
    assert exceptions is syft.exceptions
    assert TensorsNotCollocatedException is LocationError
    assert ObjectNotFoundError is obhut.exceptions.ObjectNotFoundError
    assert BaseDataset is obhut.BaseDataset is sy.BaseDataset
    assert FederatedDataset is Older is obhut.FederatedDataset
    assert FederatedDataLoader is obhut.FederatedDataLoader
    assert federated_avg is obhut.federated_avg
    assert PointerTensor is sy.PointerTensor is obhut.RemoteTensor
    assert VirtualWorker is sy.VirtualWorker is obhut.VirtualWorker
    assert issubclass(VirtualWorker, BaseWorker)
    assert sy.TorchHook is obhut.TorchHook
    assert sy.local_worker is None
    assert sy.__version__ == obhut.__version__


@pytest.mark.parametrize("path", sorted(_MODULES))
def test_every_name_in_the_table_is_there(path: str) -> None:
    """No row of the table leads nowhere, and `import *` finds what is listed."""
    install_as_syft()
    module = importlib.import_module(path)
    for name in (*_MODULES[path], *getattr(module, "__all__", ())):
        if name != "*":
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_what_the_table_does_not_have_is_not_found() -> None:
    """An old path without a counterpart is a ModuleNotFoundError by its name."""
    install_as_syft()
    with pytest.raises(ModuleNotFoundError, match=r"syft\.serde"):
        importlib.import_module("syft.serde")
    with pytest.raises(ImportError, match="serde"):
        exec("from syft import serde")


def test_installing_twice_changes_nothing() -> None:
    """A second call leaves the modules of the first one where they are."""
    install_as_syft()
    first = {name: sys.modules[name] for name in _MODULES}
    install_as_syft()
    assert {name: sys.modules[name] for name in _MODULES} == first


def test_it_can_be_taken_back() -> None:
    """uninstall_syft() leaves no module behind, and can be called again."""
    before = set(sys.modules)
    install_as_syft()
    uninstall_syft()
    assert set(sys.modules) == before
    uninstall_syft()


def test_another_syft_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real syft imported it refuses, says from where, and changes nothing."""
    real = ModuleType("syft")
    real.__file__ = "/elsewhere/syft/__init__.py"
    monkeypatch.setitem(sys.modules, "syft", real)
    with pytest.raises(CallError, match="/elsewhere/syft"):
        install_as_syft()
    assert sys.modules["syft"] is real
    assert "syft.exceptions" not in sys.modules
    uninstall_syft()
    assert sys.modules["syft"] is real


def test_installing_loads_no_torch() -> None:
    """Names are looked up when they are used."""
    program = (
        "import sys, obhut\n"
        "obhut.install_as_syft()\n"
        "import syft.frameworks.torch.fl\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
