"""The names of the package itself."""

import subprocess
import sys

import pytest
import torch

import obhut
from obhut.errors import CallError

NATIVE = """
import sys
import obhut, torch
bob = obhut.VirtualWorker("bob", datasets={"p": {"features": torch.ones(3)}})
alice = obhut.VirtualWorker("alice")
x = obhut.send(torch.ones(3, requires_grad=True), bob)
(x * bob["p"]).sum().backward()
obhut.get(obhut.move(x.grad, alice))
model = obhut.send(torch.nn.Linear(1, 1), bob)
obhut.get(obhut.average([model, obhut.copy(model)]))
obhut.connect, obhut.ServedWorker, obhut.Quorum, obhut.RemoteTensor
import obhut.federated
assert repr(dir(obhut))
found = [name for name in sys.modules if name.startswith("obhut.compat")]
assert not found, found
"""


def test_compat_is_not_loaded_unasked() -> None:
    """A program of native names, connect and training among them, loads none of it."""
    subprocess.run([sys.executable, "-c", NATIVE], check=True)


def test_asking_for_an_old_name_loads_it() -> None:
    """The same look at modules does find compat where it is used."""
    program = NATIVE.replace("obhut.connect,", "obhut.TorchHook, obhut.connect,")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "obhut.compat.hook" in ran.stderr


def test_importing_the_package_loads_no_torch() -> None:
    """Nor does looking at its names."""
    program = "import sys, obhut; dir(obhut); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_dir_shows_public_names_and_each_is_there() -> None:
    """No underscore, no module that happens to be imported; ServedWorker is one."""
    names = dir(obhut)
    assert names == sorted(obhut.__all__)
    assert not [name for name in names if name.startswith("_")]
    assert not {"annotations", "importlib", "TYPE_CHECKING", "Mapping"} & set(names)
    assert "ServedWorker" in names
    for name in names:
        assert getattr(obhut, name) is not None
    assert set(obhut._HOMES) | set(obhut._OLD_HOMES) | {"exceptions"} == set(names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="'obhut' has no attribute 'importlib'"):
        obhut.importlib  # noqa: B018


def test_get_can_return_a_future() -> None:
    """obhut.get(x, wait=False) is x.get(wait=False); a module waits, and says so."""
    bob = obhut.VirtualWorker("bob")
    coming = obhut.get(obhut.send(torch.ones(2), bob), wait=False)
    assert isinstance(coming, obhut.Future)
    assert coming.result().tolist() == [1.0, 1.0]
    assert obhut.get(obhut.send(torch.ones(2), bob), wait=True).tolist() == [1.0, 1.0]
    model = obhut.send(torch.nn.Linear(1, 1), bob)
    with pytest.raises(CallError, match="for tensors"):
        obhut.get(model, wait=False)
    bob.close()
