"""How the demo's results are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from obhut.errors import ReleaseRefusedError

from . import toy
from .hospitals import (
    HELD_OUT,
    LEARNING_RATE,
    LOCAL_STEPS,
    POLICY,
    SHARES,
    Deal,
    Point,
    Study,
)
from .processes import Decided, Serving

_ROWS_SHOWN = 20
_SPEED = "rounds\na second"
_SAME = "All their losses are the same, digit for digit."
_NOT_THE_SAME = "They are not the same."


@dataclass(frozen=True, slots=True)
class Training:
    """How a training went.

    Attributes:
        points: after each round.
        seconds: that all rounds took.
    """

    points: list[Point]
    seconds: float


def print_toy(console: Console, result: toy.ToyResult) -> None:
    """Print the toy's losses and what its model predicts."""
    console.print(
        "bob and alice have two rows each, which stay with them. Each trains a copy "
        "of one model; both copies move straight to the secure worker, and only "
        "their average comes back. On the left the losses of "
        f"{toy.LOCAL_STEPS} local steps, on the right those at the end of each "
        f"round of {toy.STEPS_IN_ROUND} steps."
    )
    table = _table("step", "bob", "alice", "", "round", "bob", "alice")
    for number, (local, last) in enumerate(
        zip(result.local, result.rounds, strict=True), 1
    ):
        steps, rounds = map(_losses, (local, last))
        table.add_row(str(number), *steps, "", str(number), *rounds)
    console.print(table)
    console.print(
        f"The average predicts {' '.join(f'{p:.4f}' for p in result.predictions)} "
        f"where {' '.join(f'{t:.0f}' for t in result.targets)} is right: "
        f"a squared error of {result.loss:.4f}."
    )


def print_toy_ways(console: Console, ways: Mapping[str, toy.ToyResult]) -> None:
    """Print how fast the toy was trained in each way, and whether to the same."""
    table = _table("way", _SPEED, "bob", "alice")
    for name, result in ways.items():
        speed = toy.ROUNDS / result.seconds
        table.add_row(name, f"{speed:.0f}", *_losses(result.rounds[-1]))
    console.print(
        "Line by line, as above, each operator is a message, and each loss is waited "
        "for. A step under @obhut.program is recorded once; all steps of a round are "
        "then one message to each owner."
    )
    console.print(table)
    first, *others = (replace(one, seconds=0.0) for one in ways.values())
    console.print(_SAME if all(one == first for one in others) else _NOT_THE_SAME)


def print_study(console: Console, study: Study) -> None:
    """Print who has which rows, and how they were made ready."""
    rows = {name: len(dataset) for name, dataset in study.hospitals.items()}
    total, held_out = sum(rows.values()), len(study.held_out)
    shares = ", ".join(f"{name} {n} ({n / total:.0%})" for name, n in rows.items())
    console.print(
        f"Real data: {total + held_out} breast tumours, {len(study.mean)} "
        f"measurements each, benign or malignant. {held_out} rows ({HELD_OUT:.0%}) "
        f"are held out to test every model on. The other {total} are shared out at "
        f"random and unevenly: {shares}. Rows are standardised with means and "
        "deviations over all hospitals: each one's sums and sums of squares go to "
        "the aggregator and are added there, so that nobody pools any rows. In each "
        f"round every hospital takes {LOCAL_STEPS} gradient steps (SGD, learning "
        f"rate {LEARNING_RATE:g}), and delivers its model and its loss times its "
        "rows, which it counts itself; the aggregator adds them. A training loss is "
        "that of a round's last step."
    )
    print_policy(console)


def print_policy(console: Console) -> None:
    """Say what everybody's policy lets out."""
    console.print(
        "All workers have a policy: from a hospital values go to the aggregator and "
        f"to nobody else, and from there nothing leaves but sums over {POLICY.quorum} "
        f"hospitals or more, of which {POLICY.colluders} may work with whoever asks, "
        "and which all have computed the same."
    )


def print_rounds(
    console: Console,
    study: Study,
    federated: Sequence[Point],
    pooled: Sequence[Point],
) -> None:
    """Print how the federated and the pooled model do round by round."""
    held_out = len(study.held_out)
    ours_is, theirs_is = "[bold]federated[/]", "all rows pooled"
    table = _table(
        "round",
        f"{ours_is}\ntraining loss",
        "\nheld out, %",
        "",
        f"{theirs_is}\ntraining loss",
        "\nheld out, %",
    )
    for number in _rounds_shown(len(federated)):
        ours, theirs = federated[number - 1], pooled[number - 1]
        table.add_row(
            str(number),
            f"{ours.training_loss:.4f}",
            _percent(ours, held_out),
            "",
            f"{theirs.training_loss:.4f}",
            _percent(theirs, held_out),
        )
    console.print(table)


def print_ways(console: Console, ways: Mapping[str, Training], held_out: int) -> None:
    """Print how fast the hospitals trained in each way, and whether to the same.

    Args:
        console: where to.
        ways: each training by its name, all of as many rounds.
        held_out: how many rows the model was tested on.
    """
    table = _table(
        "way", _SPEED, "last round's\ntraining loss", "\nheld-out loss", "\ncorrect, %"
    )
    for name, one in ways.items():
        last = one.points[-1]
        speed = f"{len(one.points) / one.seconds:.1f}"
        table.add_row(name, speed, *_digits(last), _percent(last, held_out))
    console.print(
        "Line by line a hospital is asked for one operator after the other. By program "
        "its steps of a round are one message, and what a step is was recorded once. "
        "All workers have the same policy either way, and compare what was computed."
    )
    console.print(table)
    rounds = zip(*(one.points for one in ways.values()), strict=True)
    differ = [number for number, same in enumerate(rounds, 1) if len({*same}) > 1]
    console.print(
        f"{_NOT_THE_SAME} Round {differ[0]} is the first that differs."
        if differ
        else f"{_SAME} So they are after every round."
    )


def print_comparison(
    console: Console,
    study: Study,
    federated: Sequence[Point],
    pooled: Sequence[Point],
    alone: Mapping[str, Sequence[Point]],
) -> None:
    """Print how all models do in the end, and what that says."""
    rows = {name: len(dataset) for name, dataset in study.hospitals.items()}
    held_out, total = len(study.held_out), sum(rows.values())
    table = _table("model", "rows", "held-out loss", "correct", "of", "%")
    models = {
        "federated": (total, federated),
        "all rows pooled": (total, pooled),
        **{f"{name} alone": (rows[name], points) for name, points in alone.items()},
    }
    for name, (count, points) in models.items():
        last = points[-1]
        table.add_row(
            name,
            str(count),
            f"{last.loss:.4f}",
            str(last.correct),
            str(held_out),
            _percent(last, held_out),
            style="bold" if name == "federated" else None,
        )
    console.print(table)


def print_closing(
    console: Console,
    study: Study,
    federated: Sequence[Point],
    pooled: Sequence[Point],
    alone: Mapping[str, Sequence[Point]],
) -> None:
    """Say what happened, and what was enforced against whom."""
    rounds, held_out = len(federated), len(study.held_out)
    own = [points[-1].correct for points in alone.values()]
    console.print(
        f"After {rounds} rounds the federated model is right on "
        f"{federated[-1].correct} of {held_out} held-out rows, the model of all rows "
        f"pooled on {pooled[-1].correct}, and the hospitals' own models on "
        f"{min(own)} to {max(own)}; all took {rounds * LOCAL_STEPS} gradient steps, "
        f"and one row is {1 / held_out:.1%}. What came here from the hospitals were "
        "sums over all five: of models, of losses, and of measurements and their "
        "squares. The other models were not to be had from them: they are trained "
        "here, in plain torch, on the rows that the demo dealt out.\n"
        "The hospitals' workers are virtual, all in this process, whose memory is no "
        "secret to it: under a policy they rehearse what served workers do. `obhut "
        "demo --processes` trains the same at workers in processes of their own. The "
        "first part has no policy; under one, bob's and alice's own losses would "
        "have been refused."
    )


def print_refusal(
    console: Console, name: str, refused: ReleaseRefusedError | None
) -> None:
    """Say what came of asking for one hospital's model."""
    console.print(
        f"A curious model owner asks the aggregator for {name}'s model alone, and "
        + ("gets it!" if refused is None else f"is refused: {refused.text}.")
    )


def print_plan(console: Console, folder: Path) -> None:
    """Say who is about to run, and who plays them."""
    console.print(
        f"The federated training of `obhut demo`, but each of the {len(SHARES)} "
        "hospitals is an `obhut worker` and the aggregator an `obhut aggregator`: "
        f"{len(SHARES) + 1} processes beside this one, on this machine and as this "
        "user, each with its own key, its own configuration and, at a hospital, its "
        "own file of rows. This process plays everybody first: it makes the keys, "
        "deals the rows out into the files and lets each one know the certificates "
        "of those whom it deals with. At real sites each makes its own key, and "
        "`obhut invite` and `obhut join` do the rest. All of it is in"
    )
    console.print(f"{folder} until the demo ends.", soft_wrap=True)


def print_processes(
    console: Console, serving: Sequence[Serving], dealt: Deal, seconds: float
) -> None:
    """Print which processes serve, and how long they took to start.

    Args:
        console: where to.
        serving: the processes.
        dealt: how many rows each hospital got.
        seconds: from the first file written until all served.
    """
    table = _table("worker", "process", "reached at", "reads", "rows")
    for one in serving:
        data = one.site.data
        table.add_row(
            one.site.name,
            str(one.pid),
            f"{one.address} (dials out)" if one.dials_out else one.address,
            "" if data is None else data.name,
            "" if data is None else str(len(dealt.hospitals[one.site.name])),
        )
    console.print(table)
    walls: dict[str, list[str]] = {}
    for one in serving:
        walls.setdefault(one.walls or "unknown", []).append(one.site.name)
    said = "; ".join(
        kinds if len(walls) == 1 else f"{kinds} ({', '.join(names)})"
        for kinds, names in walls.items()
    )
    console.print(
        f"All of them served after {seconds:.1f} s. Each worker computes in child "
        f"processes, one a session. Walls around these: {said}."
    )
    dialling = [one.site.name for one in serving if one.dials_out]
    console.print(
        f"{' and '.join(dialling)} open no port, as behind a firewall: they dial out "
        "to the aggregator, which passes on what is encrypted from here to there."
    )


def print_ledger(console: Console, decided: Decided) -> None:
    """Print what the aggregator wrote down."""
    rules = ", ".join(decided.rules)
    because = f" (rule {rules})" if rules else ""
    console.print(
        "The aggregator's ledger, which it signed and which holds: "
        f"{decided.released} sums released, {decided.refused} refused{because}. A "
        "model of four tensors is four sums."
    )


def print_processes_closing(console: Console) -> None:
    """Say what happened, what was enforced, and against whom."""
    console.print(
        "In the training each hospital's rows stayed in that hospital's own "
        "processes, which had read them from its file. The trained models, losses "
        "and sums went from the hospital to the aggregator directly, over mutual "
        "TLS: each side knows the other's certificate beforehand, and this process "
        "carried none of them. The policy held at each worker by itself. It holds "
        "against a model owner who is curious or lets hospitals compute different "
        "things, not against one who writes a program that decides by rows whose "
        "result counts, and not against the aggregator's operator, who sees what "
        "each hospital delivers. And here everybody is one user on one machine."
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", vertical="bottom")
    return table


def _rounds_shown(rounds: int) -> list[int]:
    """Return which rounds a table shows: the first, the last and some between."""
    every = -(-rounds // _ROWS_SHOWN)
    return [n for n in range(1, rounds + 1) if n % every == 0 or n in (1, rounds)]


def _digits(point: Point) -> list[str]:
    """Write losses with about as many digits as a float32 has."""
    return [f"{loss:.8f}" for loss in (point.training_loss, point.loss)]


def _losses(pair: tuple[float, float]) -> list[str]:
    """Write losses as torch prints tensors."""
    return [f"{loss:.4f}" if loss >= 1e-4 else f"{loss:.4e}" for loss in pair]


def _percent(point: Point, held_out: int) -> str:
    return f"{100 * point.correct / held_out:.1f}"
