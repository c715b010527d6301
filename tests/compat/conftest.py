"""Old names are put in place by a test and taken back after it."""

from collections.abc import Callable, Iterator

import pytest
import torch

import obhut
from obhut.client.registry import WORKERS
from obhut.compat.hook import TorchHook
from obhut.compat.install import uninstall_syft
from obhut.compat.virtual_worker import VirtualWorker


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Unhook torch, forget ``syft`` and close the workers that a test made."""
    before = dict(WORKERS._places)
    yield
    if TorchHook.active is not None:
        TorchHook.active.unhook()
    uninstall_syft()
    for place in list(WORKERS._places.values()):
        if place not in before.values():
            place.close()


@pytest.fixture
def hook() -> TorchHook:
    """Torch with the seed's methods."""
    return obhut.TorchHook(torch)


@pytest.fixture
def make_worker(hook: TorchHook) -> Callable[[str], VirtualWorker]:
    """Workers by id, made as the seed's programs make them."""
    return lambda id: obhut.VirtualWorker(hook, id=id)


@pytest.fixture
def bob(make_worker: Callable[[str], VirtualWorker]) -> VirtualWorker:
    """One data owner."""
    return make_worker("bob")


@pytest.fixture
def alice(make_worker: Callable[[str], VirtualWorker]) -> VirtualWorker:
    """Another data owner."""
    return make_worker("alice")
