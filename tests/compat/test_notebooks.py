"""A course on federated learning, as written for the older library, runs whole.

The notebooks are our own, in the order of the older library's tutorials, and make
every call that those make.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from obhut.cli.main import app

NOTEBOOKS = Path(__file__).parent / "notebooks"

CALLS: Mapping[str, tuple[str, ...]] = {
    "part_1_tools": (
        "sy.TorchHook(torch)",
        'sy.VirtualWorker(hook, id="bob")',
        "x.send(bob)",
        "bob._objects",
        "x_ptr.location",
        "bob == x_ptr.location",
        "x_ptr.id",
        "x_ptr.id_at_location",
        "x_ptr.owner",
        "sy.local_worker",
        "me == x_ptr.owner",
        "x_ptr + x_ptr",
        "x_ptr.get()",
        "torch.add(x, y)",
        "requires_grad=True).send(bob)",
        "z.backward()",
        "x = x.get()",
        "x.grad",
        "bob.clear_objects()",
    ),
    "part_2_federated_learning": (
        "from syft.federated.floptimizer import Optims",
        "Optims(workers, optim=optim.Adam(params=model.parameters(), lr=0.1))",
        "optims.get_optim",
        "data[0:2].send(bob)",
        "model.send(data.location)",
        "data.location.id",
        "model.get()",
        "loss.get().data",
    ),
    "part_3_advanced_tools": (
        "x_ptr.send(alice)",
        ".send(bob).send(alice)",
        "bob._objects",
        "alice._objects",
        "x_ptr.get()",
        "x.move(alice)",
        "x.gc = False",
        "bob.clear_objects()",
    ),
    "part_4_trusted_aggregator": (
        "model.copy().send(bob)",
        "optim.SGD(params=bobs_model.parameters(), lr=0.1)",
        "loss.get().data",
        "alices_model.move(secure_worker)",
        "alices_model.weight.data + bobs_model.weight.data",
        "model.weight.set_(",
    ),
    "part_5_sandbox": (
        "sy.create_sandbox(globals())",
        '.tag("#radio", "#hospital1")',
        '.describe("The rows of the first hospital.")',
        'bob.search(["#radio"])',
        "results[0].description",
        'bob.search(["#boston", "#housing"])',
        "sy.PrivateGridNetwork(*workers)",
        'grid.search("#boston")',
        'grid.search("#boston", "#data")',
        'grid.search("#boston", "#target")',
    ),
    "part_6_cnn_on_digits": (
        "sy.FederatedDataLoader(",
        ".federate((bob, alice))",
        "shuffle=True",
        "model.send(data.location)",
        "data.to(device)",
        "model.get()",
        "loss = loss.get()",
        "%%time",
        "torch.save(model.state_dict()",
    ),
    "part_7_federated_dataset": (
        "sy.create_sandbox(globals(), verbose=False)",
        'grid.search("#boston", "#data")',
        'boston_data["alice"][0].shape[1]',
        "sy.BaseDataset(boston_data[worker][0], boston_target[worker][0])",
        "sy.FederatedDataset(datasets)",
        "dataset.workers",
        "shuffle=False, drop_last=False",
        "optimizers[data.location.id]",
        "rows.federate((bob, alice))",
    ),
    "split_nn": (
        "a.move(models[1].location, requires_grad=True)",
        "loss.detach().get()",
        ".detach().requires_grad_()",
        ".move(there).requires_grad_()",
        ".grad.copy()",
        "backward(grad_in)",
        "model.location",
    ),
}
"""What the older library's tutorial of each part calls, by our notebook's name."""

SHOWN: Mapping[str, tuple[str, ...]] = {
    "part_1_tools": (
        "tensor([ 2,  4,  6,  8, 10])\ntensor([1, 2, 3, 4, 5])\n",
        "tensor([1., 1., 1., 1., 1.])\n",
    ),
    "part_2_federated_learning": ("tensor([[-0.0000],\n        [0.8000]])",),
    "part_3_advanced_tools": (
        "x.move(worker)",
        "  bob: {}\nalice: {1: 'RemoteTensor(alice:1, ",
        "tensor([ 2,  4,  6,  8, 10])",
        "{} {}\n",
    ),
    # The older library's own figures.
    "part_4_trusted_aggregator": (
        "Bob:tensor(0.3798) Alice:tensor(3.9786)\n",
        "Bob:tensor(0.0004) Alice:tensor(5.8271e-05)\n",
        "tensor(0.0187)\n",
    ),
    "part_5_sandbox": ("The rows of the first hospital.\n",),
    "part_6_cnn_on_digits": ("Wall time: ", "\nTrue\n"),
    "part_7_federated_dataset": ("Total loss", "\nTrue\n"),
    "split_nn": ("Epoch 2", "\nTrue\n"),
}
"""What each notebook is there to show."""


def _sources(name: str) -> list[str]:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", CALLS)
def test_a_part_of_the_course_runs(name: str, tmp_path: Path) -> None:
    """``obhut run`` runs it to its end, and shows and saves its outputs."""
    saved = tmp_path / "saved.ipynb"
    command = ["run", "--save", str(saved), str(NOTEBOOKS / f"{name}.ipynb")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for text in SHOWN[name]:
        assert text in result.stdout
    # Part 3 shows one refusal as it is.
    assert ("Traceback" in result.stderr) is (name == "part_3_advanced_tools")
    notebook = nbformat.read(saved, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("name", CALLS)
def test_a_part_makes_the_calls_of_the_original(name: str) -> None:
    """Every call of the older library's tutorial is in it."""
    source = "\n".join(_sources(name))
    assert [call for call in CALLS[name] if call not in source] == []


@pytest.mark.parametrize("name", CALLS)
def test_a_part_is_stored_without_outputs(name: str) -> None:
    """It is a valid notebook that nobody has run."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_every_part_is_looked_at() -> None:
    """There is no notebook that these tests do not run."""
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(CALLS)
