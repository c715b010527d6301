"""A client's script on the twins of workers, and the report of what it would get.

The report comes from the process that ran the script: it is about scripts that do not
set out to falsify it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import obhut
from obhut.cli.run import run_file
from obhut.client import network
from obhut.client.network import Network

from .outlines import Plan
from .twins import Event, Twin


def run(plan: Plan) -> int:
    """Rehearse a plan, and print what came of it; return the script's exit code."""
    code, events = rehearse(plan)
    for line in report(plan, events):
        print(line)  # noqa: T201 # the command's output
    return code


def rehearse(plan: Plan) -> tuple[int, list[Event]]:
    """Run a script against twins; return its exit code, and what left or was refused.

    Whatever addresses it connects to, it gets all twins.
    """
    generator = torch.Generator().manual_seed(0)
    events: list[Event] = []
    twins = {one.name: Twin(one, events, generator) for one in plan.outlines}

    def connect(*addresses: str, **options: object) -> Network:
        return Network(twins)

    genuine = network.connect
    network.connect = connect
    vars(obhut)["connect"] = connect
    try:
        return run_file(Path(plan.script), plan.args), events
    finally:
        network.connect = genuine
        vars(obhut)["connect"] = genuine


def report(plan: Plan, events: Sequence[Event]) -> Iterator[str]:
    """Yield what a report says, line by line."""
    names = ", ".join(one.name for one in plan.outlines)
    yield ""
    yield (
        f"Rehearsed {Path(plan.script).name} with twins of {names}: their names, "
        "policies and the looks of their data, and random values."
    )
    for leaves, title, nothing in (
        (True, "Would leave:", "Nothing would leave."),
        (False, "Would be refused:", "Nothing would be refused."),
    ):
        counted = Counter((e.worker, e.text) for e in events if e.leaves is leaves)
        yield title if counted else nothing
        for (worker, text), times in counted.items():
            yield f"  {times} x at {worker}: {text}"
