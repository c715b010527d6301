"""How the demo's results are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from . import toy
from .hospitals import HELD_OUT, LEARNING_RATE, LOCAL_STEPS, Point, Study

_ROWS_SHOWN = 20


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


def print_study(console: Console, study: Study) -> None:
    """Print who has which rows, and how they were made ready."""
    rows = {name: len(dataset) for name, dataset in study.hospitals.items()}
    total, held_out = sum(rows.values()), len(study.targets)
    shares = ", ".join(f"{name} {n} ({n / total:.0%})" for name, n in rows.items())
    console.print(
        f"Real data: {total + held_out} breast tumours, {study.features.shape[1]} "
        f"measurements each, benign or malignant. {held_out} rows ({HELD_OUT:.0%}) "
        f"are held out to test every model on. The other {total} are shared out at "
        f"random and unevenly: {shares}. Rows are standardised with means and "
        "deviations over all hospitals: each one's sums and sums of squares go to "
        "the aggregator and are added there, so that nobody pools any rows. In each "
        f"round every hospital takes {LOCAL_STEPS} gradient steps (SGD, learning "
        f"rate {LEARNING_RATE:g}); models and losses are averaged at the aggregator, "
        "weighted by rows. A training loss is that of a round's last step."
    )


def print_rounds(
    console: Console,
    study: Study,
    federated: Sequence[Point],
    pooled: Sequence[Point],
) -> None:
    """Print how the federated and the pooled model do round by round."""
    held_out = len(study.targets)
    ours_is, theirs_is = "[bold]federated[/]", "all rows pooled"
    table = _table(
        "round",
        f"{ours_is}\ntraining loss",
        "\nheld out, %",
        "",
        f"{theirs_is}\ntraining loss",
        "\nheld out, %",
    )
    every = -(-len(federated) // _ROWS_SHOWN)
    for number, (ours, theirs) in enumerate(zip(federated, pooled, strict=True), 1):
        if number % every == 0 or number in (1, len(federated)):
            table.add_row(
                str(number),
                f"{ours.training_loss:.4f}",
                _percent(ours, held_out),
                "",
                f"{theirs.training_loss:.4f}",
                _percent(theirs, held_out),
            )
    console.print(table)


def print_comparison(
    console: Console,
    study: Study,
    federated: Sequence[Point],
    pooled: Sequence[Point],
    alone: Mapping[str, Sequence[Point]],
) -> None:
    """Print how all models do in the end, and what that says."""
    rows = {name: len(dataset) for name, dataset in study.hospitals.items()}
    held_out, total = len(study.targets), sum(rows.values())
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
    """Say what happened, what was enforced and what comes next."""
    rounds, held_out = len(federated), len(study.targets)
    own = [points[-1].correct for points in alone.values()]
    console.print(
        f"After {rounds} rounds the federated model is right on "
        f"{federated[-1].correct} of {held_out} held-out rows, the model of all rows "
        f"pooled on {pooled[-1].correct}, and the hospitals' own models on "
        f"{min(own)} to {max(own)}; all took {rounds * LOCAL_STEPS} gradient steps, "
        f"and one row is {1 / held_out:.1%}. In the federated run no row left its "
        "hospital's worker: models, losses and sums went to the aggregator, and what "
        "came here were their averages and totals.\n"
        "But nothing enforced that. The workers are virtual, all of them in this "
        'process and at the level "open": one get() would have fetched any row, as '
        "it fetched bob's and alice's own losses in the first part. To come are "
        "workers that run beside the data, each with its owner's policy, and that "
        "let out only what was aggregated over three owners or more."
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", vertical="bottom")
    return table


def _losses(pair: tuple[float, float]) -> list[str]:
    """Write losses as torch prints tensors."""
    return [f"{loss:.4f}" if loss >= 1e-4 else f"{loss:.4e}" for loss in pair]


def _percent(point: Point, held_out: int) -> str:
    return f"{100 * point.correct / held_out:.1f}"
