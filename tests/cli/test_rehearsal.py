from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import obhut
from obhut.cli.rehearsal import trial
from obhut.cli.rehearsal.outlines import (
    HIDDEN,
    Field,
    Outline,
    Plan,
    outline,
    with_others,
)
from obhut.cli.rehearsal.twins import random_values
from obhut.host import configuration as configurations
from obhut.worker.tensors import DTYPES

from .conftest import Invoke

CANARY = 0.7712345
"""A private value that nobody else would make up."""

WORKER = """
id = "bob"
listen = "127.0.0.1:7000"
[policy]
kind = "Quorum"
aggregators = ["sum"]
contributors = ["bob", "alice", "{carol}"]
requesters = ["researcher"]
[[peer]]
name = "carol"
id = "{carol}"
[[dataset]]
name = "d"
path = "data.csv"
features = ["a", "b"]
target = "y"
tags = ["#study"]
public = {{ names = true, types = true, rows = "exact" }}
"""

STUDY = """
import sys
import torch
import obhut
from obhut.federated import evaluate, RemoteDataset

with obhut.connect("bob.example:7000", "sum.example:7000") as net:
    print(sys.argv[1:], net["bob"].datasets["d"].rows)
    (x, y) = net["bob"].search("#study")
    assert x.shape == (4, 2) and y.shape == (4,)
    owners = [
        RemoteDataset(net[n]["d"], net[n]["d", "target"])
        for n in ("bob", "alice", "carol")
    ]
    def mean(out, targets):
        return ((out[:, 0] - targets) ** 2).mean()
    for _ in range(2):
        evaluate(torch.nn.Linear(2, 1), owners, net["sum"], mean)
    try:
        print(net["bob"]["d"].sum().get())
    except obhut.ObhutError as error:
        print("caught")
    obhut.move(net["bob"]["d"].sum(), net["sum"]).get()
"""

REPORT = """
Rehearsed study.py with twins of bob, alice, carol, sum: their names, policies and the \
looks of their data, and random values.
Would leave:
  6 x at sum: a sum over alice, bob, carol (coefficients 1, 1, 1)
Would be refused:
  1 x at bob: rule place: an owner's values leave only for an aggregator"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    """A worker's configuration and data, in a folder of their own."""
    folder = tmp_path / "bob"
    folder.mkdir()
    (folder / "data.csv").write_text("a,b,y\n" + f"1,{CANARY},3\n" * 4)
    file = folder / "worker.toml"
    file.write_text(WORKER.format(carol="a" * 52))
    return file


def script(tmp_path: Path, text: str) -> Path:
    """Return a script in a folder of its own."""
    file = tmp_path / "client" / "study.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def plan(worker: Path, file: Path) -> Plan:
    """Return what is told to the process of a rehearsal."""
    outlines = with_others([outline(configurations.load(worker), worker)])
    return Plan(str(file), ("--rounds", "2"), tuple(outlines))


def command(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``obhut policy rehearse`` as a shell does."""
    return subprocess.run(
        [sys.executable, "-m", "obhut.cli.main", "policy", "rehearse", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_a_report_says_what_would_leave_and_what_not(
    worker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], invoke: Invoke
) -> None:
    """Sums with their coefficients, refusals with their rules, each counted; in order.

    The script finds workers, data sets and tags as it would, and its exit code and its
    error are its own.
    """
    code = trial.run(plan(worker, script(tmp_path, STUDY)))
    shown = capsys.readouterr()
    assert code == 1
    assert shown.out.startswith("['--rounds', '2'] 4\ncaught\n")
    assert REPORT in shown.out
    assert (
        "1 x at sum: rule quorum: 3 owners are needed, and this is a sum over bob "
        "(coefficients 1); add 2 of alice and carol"
    ) in shown.out
    assert "ReleaseRefusedError" in shown.err


def test_hidden_rows_are_rehearsed(
    worker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], invoke: Invoke
) -> None:
    """Programs go through them, and there are others than the owner has."""
    worker.write_text(worker.read_text().replace('rows = "exact"', 'rows = "hidden"'))
    loaded = 'RemoteDataset(net[n]["d"], net[n]["d", "target"])'
    study = STUDY.replace(loaded, 'net[n].dataset("d")')
    lines = [one for one in study.splitlines() if "(x, y)" not in one]
    text = "\n".join(one for one in lines if "x.shape" not in one)
    made = plan(worker, script(tmp_path, text))
    parts = [p for one in made.outlines for d in one.datasets for p in d.parts]
    assert {part.shape[0] for part in parts} == {HIDDEN}
    assert trial.run(made) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("['--rounds', '2'] None\ncaught\n")
    assert "6 x at sum: a sum over alice, bob, carol" in shown.out
    assert "how many rows 'd' has is hidden" in shown.err


def test_a_twin_prints_what_it_is(
    worker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], invoke: Invoke
) -> None:
    """All that a program may look at is there: repr, HTML, names; also when closed."""
    text = """
import obhut
with obhut.connect("bob.example:7000") as net:
    print(net, net["bob"], net["sum"], net["bob"].target == "")
    print(net["bob"]._repr_html_())
    try:
        net["bob"]["e"]
    except obhut.ObhutError as error:
        print(error)
print(net["bob"])
"""
    assert trial.run(plan(worker, script(tmp_path, text))) == 0
    said = capsys.readouterr().out
    assert "<Twin bob as a twin in this process, d> <Twin sum " in said
    assert "<b>bob as a twin in this process, 0 sessions" in said
    assert "bob has no data set 'e'; it has: d" in said
    assert "<Twin bob closed, d>" in said


def test_afterwards_connecting_connects(
    worker: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """The real way to workers is back when a script has ended, however it did."""
    genuine = obhut.connect
    trial.run(plan(worker, script(tmp_path, "raise SystemExit(3)")))
    assert obhut.connect is genuine


def test_operators_that_are_not_run_and_failures_are_told(
    worker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], invoke: Invoke
) -> None:
    """What a policy does not admit is listed by operator, and what only a log says."""
    text = """
import obhut
net = obhut.connect("bob.example:7000")
x, y = net["bob"]["d"], net["bob"]["d", "target"]
z = x.gather(1, (y.long() * 0 + 5)[:, None])
try:
    obhut.move(z, net["sum"]) ** 2
    net["sum"].wait()
except obhut.ObhutError:
    pass
"""
    assert trial.run(plan(worker, script(tmp_path, text))) == 0
    said = capsys.readouterr().out
    assert "Nothing would leave." in said
    assert "in the owner's log: aten.gather.default failed: " in said
    assert "1 x at sum: aten.pow.Tensor_Scalar is not run: an aggregator forms" in said


def test_a_script_sees_no_file_but_its_own_and_no_value(
    worker: Path, tmp_path: Path
) -> None:
    """The command walls it off: data, keys, network, programs, and writing there.

    Its own folder and a scratch folder are what it has. What it computes with are other
    values: the private one is nowhere in what it can print of a twin's memory.
    """
    text = f"""
import os, socket, subprocess, tempfile
import torch, obhut
net = obhut.connect("bob.example:7000")
x = net["bob"]["d"]
def tried(what, *args):
    try:
        what(*args)
    except OSError:
        print(what.__name__, "failed")
tried(open, {str(worker.parent / "data.csv")!r})
tried(open, {str(worker)!r})
tried(os.listdir, {str(worker.parent)!r})
tried(open, {str(tmp_path / "client" / "made")!r}, "w")
tried(socket.create_connection, ("127.0.0.1", 9), 5)
tried(subprocess.run, ["/bin/true"])
print(open(__file__).readline() == "\\n")
with tempfile.TemporaryFile() as made:
    made.write(b"x")
import gc
values = [t for t in gc.get_objects() if type(t) is torch.Tensor]
assert any(t.shape == (4, 2) for t in values)
print(any(bool(torch.isclose(t.double(), torch.tensor({CANARY}).double()).any())
          for t in values if t.is_floating_point()))
"""
    done = command("--config", worker, script(tmp_path, text))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:9] == [
        "open failed",
        "open failed",
        "listdir failed",
        "open failed",
        "create_connection failed",
        "run failed",
        "True",
        "False",
        "",
    ]
    assert "Nothing would leave.\nNothing would be refused." in done.stdout


def test_without_walls_the_same_script_would_read_the_data(
    worker: Path, tmp_path: Path
) -> None:
    """The walls are what keeps it out: asked for without them, it reads."""
    text = f"print(open({str(worker.parent / 'data.csv')!r}).readline())"
    done = command("--without-walls", "--config", worker, script(tmp_path, text))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a,b,y\n")


def test_a_script_beside_the_data_is_not_run(worker: Path, invoke: Invoke) -> None:
    """It could read its own folder, and so the data."""
    file = worker.parent / "study.py"
    file.write_text("raise SystemExit('ran')")
    result = invoke("policy", "rehearse", "--config", worker, file)
    assert result.exit_code == 1
    assert "put the script into a folder of its own" in result.stderr


@pytest.mark.parametrize("place", ["/etc/data.csv", f"{sys.prefix}/data.csv"])
def test_data_where_any_program_reads_is_not_rehearsed_with(
    worker: Path, tmp_path: Path, invoke: Invoke, place: str
) -> None:
    """A script can read there, so that nothing of it is run and no data is read."""
    text = worker.read_text()
    assert '"data.csv"' in text
    worker.write_text(text.replace('"data.csv"', f'"{place}"'))
    file = script(tmp_path, "raise SystemExit('ran')")
    result = invoke("policy", "rehearse", "--config", worker, file)
    assert result.exit_code == 1
    assert f"{place}" in result.stderr
    assert "any program can read from, and so the script" in result.stderr
    worker.write_text(text)
    # That it is the place: where it was, the script runs.
    done = command("--config", worker, file)
    assert "ran" in done.stderr


def test_an_open_policy_has_nothing_to_rehearse(
    worker: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """Under UnsafeOpen all may leave, and the command says that."""
    text = worker.read_text()
    head, _, rest = text.partition("[policy]")
    _, _, rest = rest.partition("[[peer]]")
    worker.write_text(f'{head}[policy]\nkind = "UnsafeOpen"\n[[peer]]{rest}')
    result = invoke("policy", "rehearse", "--config", worker, script(tmp_path, ""))
    assert result.exit_code == 1
    assert "UnsafeOpen lets everything leave" in result.stderr


def test_a_worker_is_needed(tmp_path: Path, invoke: Invoke) -> None:
    """Without a configuration there is nothing to make a twin of."""
    result = invoke("policy", "rehearse", script(tmp_path, ""))
    assert result.exit_code == 2


def test_those_who_are_only_named_are_like_the_first(worker: Path) -> None:
    """Owners in a policy get the first one's data sets, aggregators none, by name."""
    first = outline(configurations.load(worker), worker)
    bob, alice, carol, aggregator = with_others([first])
    assert [one.name for one in (bob, alice, carol, aggregator)] == [
        "bob", "alice", "carol", "sum",
    ]  # fmt: skip
    assert bob.datasets == alice.datasets == carol.datasets == first.datasets
    assert aggregator.datasets == ()
    assert first.datasets[0].parts == (
        Field("features", "float32", (4, 2)),
        Field("target", "float32", (4,)),
    )
    other = Outline("alice", first.policy)
    assert with_others([first, other])[1] == other


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_values_look_as_told(dtype: str) -> None:
    """Whatever the type, there are values of it, and not all the same."""
    made = random_values(Field("x", dtype, (50, 2)), torch.Generator().manual_seed(1))
    assert made.dtype is DTYPES[dtype]
    assert made.shape == (50, 2)
    kind = torch.complex128 if made.is_complex() else torch.float64
    assert len(set(made.to(kind).flatten().tolist())) > 1


def test_a_notebook_is_rehearsed_as_well(worker: Path, tmp_path: Path) -> None:
    """Its cells run behind the walls, and what they show comes out."""
    file = tmp_path / "client" / "study.ipynb"
    file.parent.mkdir()
    cell = {"cell_type": "code", "source": "%matplotlib inline\n1 + 1"}
    file.write_text(json.dumps({"cells": [cell], "nbformat": 4}))
    done = command("--config", worker, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2\n")
    assert "Rehearsed study.ipynb" in done.stdout
