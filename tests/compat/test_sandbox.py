import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import obhut as sy
from obhut.compat.sandbox import NAMES, housing
from obhut.compat.virtual_worker import VirtualWorker
from obhut.errors import MissingExtraError

ROWS = {
    "#boston": (506, 13),
    "#breast_cancer": (569, 30),
    "#diabetes": (442, 10),
    "#digits": (1797, 64),
    "#iris": (150, 4),
    "#linnerud": (20, 3),
    "#wine": (178, 13),
}


def _made(**options: Any) -> dict[str, Any]:
    names: dict[str, Any] = {"torch": torch}
    sy.create_sandbox(names, **options)
    return names


def test_a_sandbox_has_workers_and_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    """The names that the tutorials use are there, and what is done is printed."""
    made = _made(download_data=False)
    assert tuple(worker.id for worker in made["workers"]) == NAMES
    for name in NAMES:
        assert isinstance(made[name], VirtualWorker)
        assert made[name] in made["workers"]
    assert made["hook"] is sy.hook
    assert made["grid"].search() == {}
    assert "bob, theo, jason, alice, andy, jon" in capsys.readouterr().out


def test_a_sandbox_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """verbose=False prints nothing; make_hook makes no data."""
    names: dict[str, Any] = {}
    sy.make_hook(names)
    assert names["bob"].objects_count() == 0
    assert capsys.readouterr().out == ""


def test_data_sets_are_dealt_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Each is at all six workers, tagged and described, as many rows as it has."""
    grid = _made(verbose=False)["grid"]
    for tag, shape in ROWS.items():
        data, target = grid.search(tag, "#data"), grid.search(tag, "#target")
        assert tuple(data) == tuple(target) == NAMES
        for worker in NAMES:
            ((x,), (y,)) = data[worker], target[worker]
            assert x.shape[0] == y.shape[0]
            assert x.shape[1:] == shape[1:]
            assert x.dtype is y.dtype is torch.float32
            assert x.description
        assert sum(x.shape[0] for (x,) in data.values()) == shape[0]
    assert len(grid.search("#boston", "#housing", "#boston_housing")["bob"]) == 2


def test_the_rows_are_scikit_learns() -> None:
    """Put together again in the order of the workers, they are what it ships."""
    from sklearn.datasets import load_wine

    grid = _made(verbose=False)["grid"]
    for key, tag in (("data", "#data"), ("target", "#target")):
        parts = [x.copy().get() for (x,) in grid.search("#wine", tag).values()]
        assert torch.equal(torch.cat(parts), torch.as_tensor(load_wine()[key]).float())


def test_housing_is_made_up_and_says_so() -> None:
    """506 x 13 under the old tags, always the same, and described as what it is."""
    (first, price), (again, _) = housing(), housing()
    assert torch.equal(first, again)
    assert (first.shape, price.shape) == ((506, 13), (506,))
    assert set(first[:, 3].tolist()) == {0.0, 1.0}
    assert 5.0 <= price.min() < price.max() <= 50.0
    (found,) = _made(verbose=False)["bob"].search(["#boston", "#data"])
    assert "made-up" in found.description.lower()


def test_housing_can_be_learned() -> None:
    """A linear model explains most of the price: a tutorial shows a falling loss."""
    rows, price = housing()
    rows = torch.cat([(rows - rows.mean(0)) / rows.std(0), torch.ones(506, 1)], dim=1)
    fit = rows @ torch.linalg.lstsq(rows, price[:, None]).solution
    assert (fit[:, 0] - price).var() < 0.6 * price.var()


def test_a_sandbox_made_twice_is_the_same_one() -> None:
    """A cell run again warns, and doubles no data."""
    first = _made(verbose=False)
    held = first["bob"].objects_count()
    with (
        pytest.warns(UserWarning, match="already hooked"),
        pytest.warns(UserWarning, match="there is a worker 'bob' already"),
        pytest.warns(UserWarning, match="there is a worker '(?!bob)"),
    ):
        second = _made(verbose=False)
    assert second["bob"] is first["bob"]
    assert second["bob"].objects_count() == held


def test_without_scikit_learn_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """create_sandbox names the extra and makes nothing; without data it runs."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    names: dict[str, Any] = {}
    with pytest.raises(MissingExtraError, match=r"pip install 'obhut\[sandbox\]'"):
        sy.create_sandbox(names, verbose=False)
    assert names == {}
    assert sy.hook is None
    with pytest.raises(sy.exceptions.DependencyError):
        sy.create_sandbox(names)
    sy.create_sandbox(names, verbose=False, download_data=False)
    assert names["bob"].id == "bob"


def test_part_7_trains_on_what_a_search_found(capsys: Any) -> None:
    """Found data and targets become a federated data set that a model learns from."""
    torch.manual_seed(0)
    grid = _made(verbose=False)["grid"]
    data, target = grid.search("#boston", "#data"), grid.search("#boston", "#target")
    parts = [sy.BaseDataset(data[name][0], target[name][0]) for name in data]
    loader = sy.FederatedDataLoader(sy.FederatedDataset(parts), batch_size=32)
    model = nn.Linear(data["alice"][0].shape[1], 1)
    optimizers = {
        name: torch.optim.Adam(model.parameters(), lr=1e-2) for name in loader.workers
    }
    totals = []
    for _ in range(3):
        total = 0.0
        for rows, wanted in loader:
            model.send(rows.location)
            optimizer = optimizers[rows.location.id]
            optimizer.zero_grad()
            loss = ((model(rows).view(-1) - wanted) ** 2).mean()
            loss.backward()
            optimizer.step()
            model.get()
            total += float(loss.get())
        totals.append(total)
    assert totals[2] < totals[1] < totals[0]


def test_a_grid_searches_all_its_workers(
    make_worker: Callable[[str], VirtualWorker],
) -> None:
    """Results come by worker, those without any are left out; lists of tags will do."""
    bob, alice, carol = map(make_worker, ("bob", "alice", "carol"))
    torch.ones(1).tag("#b", "#x").send(bob)
    torch.ones(1).tag("#c", "#x").send(carol)
    grid = sy.PrivateGridNetwork(bob, alice, carol)
    assert list(grid.search("#x")) == list(grid.search(["#x"])) == ["bob", "carol"]
    assert list(grid.search("#x", "#c")) == ["carol"]
    assert list(grid.search()) == ["bob", "carol"]
    assert grid.search("#nothing") == {}
    assert "bob, alice, carol" in repr(grid)
    with pytest.raises(sy.exceptions.NotHereError, match="serve_model"):
        grid.serve_model(nn.Linear(1, 1), id="m")
