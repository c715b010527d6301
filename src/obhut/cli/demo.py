"""``obhut demo``: what is trained, and what is said about it.

Rule: every figure that is shown was measured in this run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from . import tables
from .extras import import_extra
from .hospitals import Point, follow, make_model, prepare
from .toy import train_toy


def show(console: Console, *, rounds: int, seed: int, plot: Path | None) -> None:
    """Run both parts of the demo and print what they come to.

    Args:
        console: where to.
        rounds: of federated averaging, in the second part.
        seed: what all random numbers come from.
        plot: the file that the curves are drawn into, if any.

    Raises:
        MissingExtraError: if a library that is needed is not installed.
    """
    if plot is not None:
        import_extra("matplotlib", "matplotlib", "--plot")
    # Tensors this small gain nothing from threads, which wait long for each other on
    # a busy machine; and with one, sums are made in one order.
    torch.set_num_threads(1)
    console.rule("1. Two owners and a secure worker", style="dim")
    tables.print_toy(console, train_toy(seed))
    console.print()
    console.rule("2. Five hospitals and a trusted aggregator", style="dim")
    show_hospitals(console, rounds=rounds, seed=seed, plot=plot)


def show_hospitals(
    console: Console, *, rounds: int, seed: int, plot: Path | None
) -> None:
    """Train on the breast-cancer data, together and apart.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    features, targets = load()
    study = prepare(features, targets, seed)
    tables.print_study(console, study)
    model = make_model(features.shape[1], seed)
    hospitals = study.hospitals
    with Progress(console=console, disable=not console.is_terminal) as progress:

        def train(name: str, *owners: str) -> list[Point]:
            points = []
            sets = [hospitals[o] for o in owners] or [study.pooled]
            task = progress.add_task(name, total=rounds)
            for point in follow(study, model, sets, rounds):
                points.append(point)
                progress.advance(task)
            return points

        federated = train("federated", *hospitals)
        pooled = train("all rows pooled")
        alone = {name: train(f"{name} alone", name) for name in hospitals}
    tables.print_rounds(console, study, federated, pooled)
    tables.print_comparison(console, study, federated, pooled, alone)
    tables.print_closing(console, study, federated, pooled, alone)
    if plot is not None:
        from .plot import draw

        rows = {name: len(dataset) for name, dataset in hospitals.items()}
        draw(plot, federated, pooled, alone, rows, len(study.targets))
        console.print(f"The curves are in {plot}.", soft_wrap=True)


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the breast-cancer data.

    Returns:
        Measurements, (569, 30) float32, and whether the tumour was benign,
        (569, 1) float32.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    datasets = import_extra("sklearn.datasets", "scikit-learn", "the second part")
    found = datasets.load_breast_cancer()
    targets = torch.tensor(found.target, dtype=torch.float32)
    return torch.tensor(found.data, dtype=torch.float32), targets[:, None]
