"""``obhut demo``: what is trained, and what is said about it.

Rule: every figure that is shown was measured in this run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

import obhut
from obhut.errors import ReleaseRefusedError
from obhut.extras import import_extra

from . import processes, tables
from .hospitals import (
    Participants,
    Point,
    Rows,
    Study,
    ask_for_one,
    deal,
    follow,
    follow_here,
    make_model,
    prepare,
    rows_at,
    send_out,
)
from .toy import as_a_program, train_toy

LINE_BY_LINE = "line by line"
BY_PROGRAM = "by program"


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
        import_extra("matplotlib", "--plot", "demo")
    # Tensors this small gain nothing from threads, which wait long for each other on
    # a busy machine; and with one, sums are made in one order.
    torch.set_num_threads(1)
    console.rule("1. Two owners and a secure worker", style="dim")
    by_line = train_toy(seed)
    tables.print_toy(console, by_line)
    by_program = train_toy(seed, as_a_program)
    tables.print_toy_ways(console, {LINE_BY_LINE: by_line, BY_PROGRAM: by_program})
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
    rows, measurements = load()
    dealt = deal(rows, seed)
    study = prepare(send_out(dealt), dealt.held_out)
    tables.print_study(console, study)
    model = make_model(len(measurements), seed)
    with Progress(console=console, disable=not console.is_terminal) as progress:

        def train_here(name: str, rows: Rows) -> list[Point]:
            ours = study.standardised(rows)
            points = follow_here(study, model, ours, rounds)
            return _timed(progress, name, points, rounds).points

        ways = _both_ways(progress, "federated", study, model, rounds)
        federated = ways[BY_PROGRAM].points
        pooled = train_here("all rows pooled", dealt.training)
        alone = {
            name: train_here(f"{name} alone", rows)
            for name, rows in dealt.hospitals.items()
        }
    curious = next(iter(study.hospitals))
    refused = ask_for_one(study, model, curious)
    tables.print_rounds(console, study, federated, pooled)
    tables.print_ways(console, ways, len(study.held_out))
    tables.print_comparison(console, study, federated, pooled, alone)
    tables.print_refusal(console, curious, refused)
    tables.print_closing(console, study, federated, pooled, alone)
    if plot is not None:
        from .plot import draw

        counts = {name: len(rows) for name, rows in dealt.hospitals.items()}
        draw(plot, federated, pooled, alone, counts, len(study.held_out))
        console.print(f"The curves are in {plot}.", soft_wrap=True)


def show_processes(console: Console, *, rounds: int, seed: int) -> None:
    """Train at hospitals that are processes of their own, and print what it comes to.

    The federated part of ``show_hospitals`` is run first, at virtual workers, to
    compare with: workers of the same names would take each other's places.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
        ObhutError: if a process does not start, or ends too early.
    """
    torch.set_num_threads(1)  # as in ``show``
    rows, measurements = load()
    dealt = deal(rows, seed)
    model = make_model(len(measurements), seed)
    hospitals = {
        name: (part.features.numpy(), part.targets.numpy())
        for name, part in dealt.hospitals.items()
    }
    console.rule("Five hospitals and an aggregator, each a process", style="dim")
    curious = next(iter(hospitals))
    with Progress(console=console, disable=not console.is_terminal) as progress:

        def train(
            name: str, sites: Participants
        ) -> tuple[dict[str, tables.Training], ReleaseRefusedError | None]:
            study = prepare(sites, dealt.held_out)
            ways = _both_ways(progress, name, study, model, rounds)
            return ways, ask_for_one(study, model, curious)

        virtual, _ = train("virtual workers", send_out(dealt))
        with tempfile.TemporaryDirectory(prefix="obhut-demo-") as name:
            folder = Path(name)
            tables.print_plan(console, folder)
            began = time.perf_counter()
            with processes.running(folder, hospitals, measurements) as serving:
                tables.print_processes(
                    console, serving, dealt, time.perf_counter() - began
                )
                with connect(serving, folder) as net:
                    served, refused = train("processes", find_sites(net))
            decided = processes.read_ledger(folder)
    ways = {
        f"{workers}, {way}": training
        for workers, trained in (("served", served), ("virtual", virtual))
        for way, training in trained.items()
    }
    tables.print_ways(console, ways, len(dealt.held_out))
    tables.print_refusal(console, curious, refused)
    tables.print_ledger(console, decided)
    tables.print_processes_closing(console)


def _both_ways(
    progress: Progress, name: str, study: Study, model: nn.Module, rounds: int
) -> dict[str, tables.Training]:
    """Train at the hospitals line by line, and by program."""
    return {
        way: _timed(
            progress,
            f"{name}, {way}",
            follow(study, model, rounds, eager=way == LINE_BY_LINE),
            rounds,
        )
        for way in (LINE_BY_LINE, BY_PROGRAM)
    }


def _timed(
    progress: Progress, name: str, trained: Iterator[Point], rounds: int
) -> tables.Training:
    """Go through a training, and say how far it is."""
    task = progress.add_task(name, total=rounds)
    points = []
    began = time.perf_counter()
    for point in trained:
        points.append(point)
        progress.advance(task)
    return tables.Training(points, time.perf_counter() - began)


def connect(serving: Sequence[processes.Serving], folder: Path) -> obhut.Network:
    """Connect to processes as the researcher whom they admit."""
    # Who dials out is found at the aggregator's address, which is named once.
    addresses = dict.fromkeys(one.address for one in serving)
    return obhut.connect(*addresses, folder=folder / processes.RESEARCHER)


def find_sites(net: obhut.Network) -> Participants:
    """Return the hospitals' rows, where they are."""
    return Participants(
        {
            name: rows_at(worker)
            for name, worker in net.items()
            if name != processes.AGGREGATOR
        },
        net[processes.AGGREGATOR],
    )


def load() -> tuple[Rows, list[str]]:
    """Return the breast-cancer data.

    Returns:
        569 rows of 30 measurements, and what these are called.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    datasets = import_extra(
        "sklearn.datasets", "the second part", "demo", "scikit-learn"
    )
    found = datasets.load_breast_cancer()
    targets = torch.tensor(found.target, dtype=torch.float32)
    rows = Rows(torch.tensor(found.data, dtype=torch.float32), targets[:, None])
    return rows, [str(name) for name in found.feature_names]
