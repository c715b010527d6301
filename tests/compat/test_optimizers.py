import pytest
import torch
from torch import nn, optim

from obhut.compat.optimizers import Optims
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import WorkerNotFoundError


def test_each_worker_has_an_optimizer_of_its_own(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """Two Adams share parameters and settings, not averages, as two local ones do."""
    torch.manual_seed(0)
    remote, local = nn.Linear(2, 1), nn.Linear(2, 1)
    local.load_state_dict(remote.state_dict())
    optims = Optims(["bob", "alice"], optim=optim.Adam(remote.parameters(), lr=0.1))
    assert optims.get_optim("bob").defaults["lr"] == 0.1
    locals_ = {n: optim.Adam(local.parameters(), lr=0.1) for n in ("bob", "alice")}
    rows = {"bob": torch.ones(2, 2), "alice": torch.zeros(2, 2) + 3}
    for _ in range(3):
        for worker in (bob, alice):
            remote.send(worker)
            opt = optims.get_optim(worker.id)
            opt.zero_grad()
            (remote(rows[worker.id].send(worker)) ** 2).sum().backward()
            opt.step()
            remote.get()
            locals_[worker.id].zero_grad()
            (local(rows[worker.id]) ** 2).sum().backward()
            locals_[worker.id].step()
    assert torch.equal(remote.weight, local.weight)


def test_a_worker_without_an_optimizer_is_named() -> None:
    """get_optim of an unknown worker raises, and names those that there are."""
    optims = Optims(["bob"], optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1))
    with pytest.raises(WorkerNotFoundError, match=r"'carol'.*bob"):
        optims.get_optim("carol")
