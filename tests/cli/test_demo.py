from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from obhut.cli import demo, hospitals
from obhut.cli.toy import Train, as_a_program, line_by_line, train_toy
from obhut.errors import ReleaseRefusedError

from .conftest import Invoke


@pytest.mark.parametrize("train", [line_by_line, as_a_program])
def test_the_toys_figures_are_those_of_the_seeds_library(train: Train) -> None:
    """Every figure that the tutorial prints is the one its own library printed."""
    toy = train_toy(0, train)
    assert [f"{x:.4f}" for x in (*toy.local[0], *toy.local[-1])] == [
        "0.3798", "3.9786", "0.0361", "0.0494",
    ]  # fmt: skip
    assert [f"{x:.4f}" for x in (*toy.rounds[0], toy.rounds[-1][0])] == [
        "0.0107", "0.0364", "0.0004",
    ]  # fmt: skip
    assert f"{toy.rounds[-1][1]:.4e}" == "5.8271e-05"
    assert [f"{x:.4f}" for x in toy.predictions] == [
        "0.0633", "0.0565", "0.9277", "0.9209",
    ]  # fmt: skip
    assert f"{toy.loss:.4f}" == "0.0187"


def test_a_program_comes_to_the_same_digits() -> None:
    """Line by line or as a program, the toy's losses and predictions are the same."""
    ways = [train_toy(3, train) for train in (line_by_line, as_a_program)]
    assert replace(ways[0], seconds=0.0) == replace(ways[1], seconds=0.0)


def test_the_demo_prints_both_parts(tmp_path: Path, invoke: Invoke) -> None:
    """The command prints the toy, the hospitals and draws the curves, plainly."""
    picture = tmp_path / "out.png"
    result = invoke("demo", "--rounds", "2", "--plot", picture)
    assert result.exit_code == 0, result.output
    for figure in ("0.3798", "3.9786", "5.8271e-05", "0.0187", "elm alone"):
        assert figure in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == ""
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_demo_is_deterministic(invoke: Invoke) -> None:
    """The same seed prints the same but for speeds, another seed does not."""
    first, again, other = (
        re.sub(
            r"(line by line|by program) +[\d.]+ ",
            r"\1 ",
            invoke("demo", "--rounds", "1", "--seed", seed).stdout,
        )
        for seed in ("5", "5", "6")
    )
    assert first.count("All their losses are the same, digit for digit.") == 2
    assert first == again
    assert first != other


def test_nothing_but_sums_comes_from_a_hospital() -> None:
    """Of one hospital neither rows nor a model are to be had, from anywhere."""
    dealt = hospitals.deal(demo.load()[0], seed=0)
    sites = hospitals.send_out(dealt)
    study = hospitals.prepare(sites, dealt.held_out)
    model = hospitals.make_model(30, seed=0)
    for remote in (sites.hospitals["elm"].features, study.hospitals["elm"].targets):
        with pytest.raises(ReleaseRefusedError, match="rule place"):
            remote.get()
    refused = hospitals.ask_for_one(study, model, "elm")
    assert refused is not None
    assert "3 owners are needed, and this is a sum over elm" in refused.text


def test_hospitals_train_to_the_same_digits_line_by_line() -> None:
    """Under a policy that compares what is computed, and with unequal rows."""
    dealt = hospitals.deal(demo.load()[0], seed=4)
    study = hospitals.prepare(hospitals.send_out(dealt), dealt.held_out)
    model = hospitals.make_model(30, seed=4)
    by_program, line_by_line = (
        [*hospitals.follow(study, model, 2, eager=eager)] for eager in (False, True)
    )
    assert len(by_program) == 2
    assert by_program == line_by_line


def test_what_it_is_compared_with_is_the_same_training() -> None:
    """With one and the same rows at five hospitals, theirs is the training here."""
    dealt = hospitals.deal(demo.load()[0], seed=0)
    same = replace(dealt, hospitals=dict.fromkeys(dealt.hospitals, dealt.training))
    study = hospitals.prepare(hospitals.send_out(same), dealt.held_out)
    model = hospitals.make_model(30, seed=0)
    rows = study.standardised(dealt.training)
    together = list(hospitals.follow(study, model, 3))
    here = list(hospitals.follow_here(study, model, rows, 3))
    for ours, theirs in zip(together, here, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-6)
        assert ours.training_loss == pytest.approx(theirs.training_loss, abs=1e-6)


@pytest.mark.slow
def test_federated_training_comes_close_to_pooled() -> None:
    """After the demo's rounds, the federated model's loss is that of pooled rows."""
    console = Console(file=(out := io.StringIO()), width=100)
    demo.show_hospitals(console, rounds=20, seed=0, plot=None)
    losses = {
        name: float(loss)
        for name, loss in re.findall(
            r"(federated|all rows pooled|elm alone) +\d+ +(\d\.\d+)", out.getvalue()
        )
    }
    assert losses["federated"] == pytest.approx(losses["all rows pooled"], rel=0.05)
    assert losses["federated"] < losses["elm alone"]


def test_many_rounds_are_shown_thinned(invoke: Invoke) -> None:
    """A table of many rounds has its first, its last and some between."""
    lines = invoke("demo", "--rounds", "41").stdout.splitlines()
    numbers = [
        int(line.split()[0])
        for line in lines
        if re.fullmatch(r"\d+( +\d+\.\d+){4}", line.strip())
    ]
    assert numbers[0] == 1
    assert numbers[-1] == 41
    assert len(numbers) < 25


@pytest.mark.parametrize(
    ("module", "args", "said"),
    [
        ("sklearn", [], "the second part needs scikit-learn"),
        ("matplotlib", ["--plot", "out.png"], "--plot needs matplotlib"),
    ],
)
def test_a_missing_library_is_named(
    module: str,
    args: list[str],
    said: str,
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without an optional library, the demo says what to install and exits with 1."""
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    result = invoke("demo", "--rounds", "1", *args)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "pip install 'obhut[demo]'" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("path", ["out.xyz", "no-such-folder/out.png"])
def test_a_plot_that_can_not_be_drawn_is_refused_at_once(
    path: str, invoke: Invoke
) -> None:
    """A wrong ending or folder is found before anything is trained."""
    result = invoke("demo", "--plot", path)
    assert result.exit_code == 2
    assert result.stdout == ""
