from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from obhut.cli import demo, processes, tables
from obhut.cli.hospitals import (
    Point,
    ask_for_one,
    deal,
    follow,
    make_model,
    prepare,
    send_out,
)

from .conftest import Invoke


@pytest.mark.slow
def test_processes_train_as_virtual_workers_do(tmp_path: Path) -> None:
    """At processes of their own the losses are the virtual demo's, bit for bit.

    So they are line by line and by program. All that came here is in the aggregator's
    ledger, and so is what was refused.
    """
    rows, measurements = demo.load()
    dealt = deal(rows, seed=3)
    model = make_model(len(measurements), seed=3)

    study = prepare(send_out(dealt), dealt.held_out)
    virtual = [*follow(study, model, 3)]

    hospitals = {
        name: (part.features.numpy(), part.targets.numpy())
        for name, part in dealt.hospitals.items()
    }
    with (
        processes.running(tmp_path, hospitals, measurements) as serving,
        demo.connect(serving, tmp_path) as net,
    ):
        study = prepare(demo.find_sites(net), dealt.held_out)
        served = [*follow(study, model, 3)]
        line_by_line = [*follow(study, model, 3, eager=True)]
        refused = ask_for_one(study, model, "elm")
    assert served == line_by_line == virtual
    assert refused is not None
    assert refused.rule == "quorum"
    # Twice three rounds of four tensors, a loss in two parts and the number of rows,
    # and sums and squares before; and each time, first, how many owners had values that
    # are not finite.
    assert processes.read_ledger(tmp_path) == processes.Decided(51, 4, ("quorum",))


@pytest.mark.slow
def test_the_command_says_what_runs_where(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names all processes, says that nothing differs, and leaves nothing behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = invoke("demo", "--processes", "--rounds", "1")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "All their losses are the same, digit for digit." in said
    assert "and is refused: 3 owners are needed" in said
    assert "19 sums released, 4 refused (rule quorum)" in said
    found = re.findall(r"(\w+) +(\d+) +127\.0\.0\.1:\d+", result.stdout)
    assert [name for name, _ in found] == [
        "aggregator", "aspen", "birch", "cedar", "dogwood", "elm",
    ]  # fmt: skip
    assert re.findall(r"(\w+) +\d+ +\S+ \(dials out\)", result.stdout) == [
        "dogwood", "elm",
    ]  # fmt: skip
    assert not [pid for _, pid in found if Path("/proc", pid).exists()]
    assert not list(tmp_path.iterdir())
    # A slow machine starts them in more than two seconds, and says so.
    assert all(line.startswith("waiting for ") for line in result.stderr.splitlines())


def test_a_difference_is_told() -> None:
    """If a round comes to something else in one way, the text says which round."""
    same, other = Point(0.5, 0.5, 100), Point(0.5, 0.50000006, 100)
    console = Console(file=(out := io.StringIO()), width=80)
    ways = {
        "here": tables.Training([same, same, same], 1),
        "there": tables.Training([same, other, other], 1),
    }
    tables.print_ways(console, ways, held_out=200)
    assert "They are not the same. Round 2 is the first" in out.getvalue()


def test_curves_are_refused_at_once(invoke: Invoke) -> None:
    """--plot draws what --processes does not train, and they are not combined."""
    result = invoke("demo", "--processes", "--plot", "out.png")
    assert result.exit_code == 2
    assert result.stdout == ""
