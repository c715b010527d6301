"""Attempts to learn how many rows an owner has, who hides it.

Each is tried at owners of 17, 40 and 136 rows. What comes back must be the same byte
for byte while it is hidden, also from a worker that has no data at all, and must not be
the same where it is exact: else it is no attack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import obhut
from obhut.errors import ObhutError
from obhut.programs.text import digest
from obhut.protocol.limits import LINES_PER_RUN
from obhut.protocol.messages import (
    NOWHERE,
    DatasetRows,
    Define,
    Describe,
    Load,
    Move,
    RunProgram,
    Split,
)
from obhut.testing.recording import recording
from obhut.testing.transcripts import differences
from obhut.transports.grpc.description import DatasetDescription

POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=("alice", "bob", "carol"), requesters=("me",)
)
SIZES = (17, 40, 136)

Attack = Callable[[Any], None]


def _try(call: Callable[[], object], bob: Any) -> None:
    """Do something; go on after what is said against it."""
    for one in (call, bob.wait):
        with contextlib.suppress(ObhutError):
            one()


def _run(bob: Any, text: str, **how: Any) -> int:
    """Run a program of the attacker's own over features; return its first result."""
    out: int = bob.session.new_ids(2)
    bob.session.post(Define(text))
    rows = DatasetRows("d", ("features",))
    bob.session.post(RunProgram(digest(text), (), rows, out, 2, **how))
    return out


HEAD = "obhut program 1\nrows %x: float32[$B, 2]\n"
SUM = HEAD + "%0 = aten.sum.default(%x)\nreturn %0 / $B\n"


def loaded(bob: Any) -> None:
    """Ask what a part of it looks like."""
    _try(lambda: bob.session.ask(Load("d", "features", bob.session.new_id())), bob)


def looked(bob: Any) -> None:
    """Ask what it would look like, whole and by its columns, without holding it."""
    for columns in ((), ("b",), ("b", "a"), ("c",)):
        asked = Load("d", "features", NOWHERE, columns)
        _try(partial(bob.session.ask, asked), bob)
        rows = DatasetRows("d", ("features",), (columns,))
        out = bob.session.new_ids(2)
        bob.session.post(Define(SUM))
        _try(partial(bob.session.post, RunProgram(digest(SUM), (), rows, out, 2)), bob)


def guessed(bob: Any) -> None:
    """Leave out what fills no batch, of each size: too large ones are refused."""
    for size in range(1, 150):
        _try(partial(_run, bob, SUM, batch_size=size, drop_last=True), bob)


def left_over(bob: Any) -> None:
    """Take batches whose last one is too small for a normalization."""
    text = HEAD.replace("1\n", "1\nbatches of 2 rows or more\n", 1)
    text += "%0 = aten.sum.default(%x)\nreturn %0 / $B\n"
    for size in range(2, 150):
        _try(partial(_run, bob, text, batch_size=size), bob)


def used_up(bob: Any) -> None:
    """Let a run have so many lines that a number of rows just passes the limit."""
    text = HEAD + (
        "%0 = aten.full.default([1], 9, dtype=int64, device=here)\n"
        "%1 = aten.index_select.default(%0, 0, %0)\n"  # ends it where values are
    )
    lines = [
        f"%{place + 1} = aten.neg.default(%{place})\n" for place in range(1, 4_000)
    ]
    text += "".join(lines) + "return %4000 / $B\n"
    for rows in (10, 30, 100, 1_000):
        epochs = LINES_PER_RUN // (4_001 * rows)
        _try(partial(_run, bob, text, batch_size=1, epochs=epochs), bob)


def shown(bob: Any) -> None:
    """Return as many numbers as there are rows, and ask what the result looks like."""
    out = _run(bob, HEAD + "%0 = aten.neg.default(%x)\nreturn %0 / $B\n")
    _try(lambda: bob.session.ask(Describe(out)), bob)


def totted_up(bob: Any) -> None:
    """Let a whole training make a tensor of as many numbers as it went through."""
    text = (
        HEAD + "batches 8 epochs 2:\n  then:\n    %0 = aten.sum.default(%x)\n"
        "%1 = aten.zeros.default([1*$N0, 1*$K0], device=here)\nreturn %1 / 1*$N0\n"
    )
    out = _run(bob, text)
    _try(lambda: bob.session.ask(Describe(out)), bob)


def squared(bob: Any) -> None:
    """Make a matrix of all rows with all rows, which memory has no room for."""
    text = HEAD + (
        "%0 = aten.t.default(%x)\n%1 = aten.mm.default(%x, %0)\nreturn %1 / $B\n"
    )
    out = _run(bob, text)
    _try(lambda: bob.session.ask(Describe(out)), bob)


def picked(bob: Any) -> None:
    """Read one row by its number: the first that is not there fails."""
    for place in range(150):
        text = HEAD + f"%0 = aten.select.int(%x, 0, {place})\nreturn %0 / $B\n"
        _try(partial(_run, bob, text), bob)


def said(bob: Any) -> None:
    """Deliver what has as many numbers as rows, and look at its header's digest."""
    out = _run(bob, HEAD + "%0 = aten.neg.default(%x)\nreturn %0 / $B\n")
    _try(lambda: bob.session.post(Move((out,), "hub", "t", (1,))), bob)


def fitted(bob: Any) -> None:
    """Give a weight of as many rows as there may be: a wrong number is refused."""
    for rows in range(1, 150):
        weight: Any = obhut.send(torch.zeros(rows), bob)
        text = (
            f"obhut program 1\nconstant %w: float32[{rows}]\nrows %x: float32[$B, 2]\n"
            "%0 = aten.t.default(%x)\n%1 = aten.mv.default(%0, %w)\nreturn %1 / $B\n"
        )
        bob.session.post(Define(text))
        out, parts = bob.session.new_ids(2), DatasetRows("d", ("features",))
        run = RunProgram(digest(text), (weight._held.id,), parts, out, 2)
        _try(partial(bob.session.post, run), bob)


def stepped(bob: Any) -> None:
    """Step every fourth batch: a model that was not stepped has another digest."""

    def train(model: Any, data: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for place, x in enumerate(data.batches(8)):
            model(x).sum().backward()
            if place % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()

    torch.manual_seed(0)
    model: Any = obhut.send(nn.Linear(2, 1), bob)
    hidden = bob.datasets["d"].hidden
    data = bob.dataset("d", "features") if hidden else bob["d"]
    obhut.program(train).run(model=model, data=data)
    id = model.weight._held.id
    _try(lambda: bob.session.post(Move((id,), "hub", "t", (1,))), bob)


def held_out(bob: Any) -> None:
    """Hold out a share that is one row of so many, and see who has one."""
    for rows in range(1, 150):
        split = Split(1 / rows, 0, True)
        _try(partial(_run, bob, SUM, split=split, batch_size=4, drop_last=True), bob)
        _try(partial(_run, bob, SUM, split=split, steps=3), bob)


ATTACKS = (
    *(
        loaded,
        looked,
        guessed,
        held_out,
        left_over,
        shown,
        totted_up,
        squared,
        picked,
        said,
        fitted,
    ),
    *(stepped, used_up),
)


def received(attack: Attack, rows: int, hidden: bool) -> list[Any]:
    """Return all that an attack brings, and check that low alone says the same."""
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0))
    with recording() as transcripts:
        bob = obhut.VirtualWorker(
            "bob",
            policy=POLICY,
            datasets={"d": {"features": x, "target": x[:, 0].clone()}},
            rows="hidden" if hidden else "exact",
            described=[DatasetDescription("d", columns={"features": ("a", "b")})],
            memory_limit=10**6,
        )
        hub = obhut.VirtualWorker("hub", policy=POLICY)
        bob.session.name = "a session"
        listed = repr(bob.datasets)
        attack(bob)
        bob.close()
        hub.close()
    (transcript,) = (one for one in transcripts if one.worker == "bob")
    assert not list(differences(transcript))
    return [
        listed if hidden else "",
        *((one.received, one.headers) for one in transcript.exchanges),
    ]


@pytest.mark.unrecorded("it looks at a transcript of its own")
@pytest.mark.parametrize("attack", ATTACKS, ids=[one.__name__ for one in ATTACKS])
def test_nothing_tells_how_many_rows_there_are(attack: Attack) -> None:
    """While it is hidden; where it is exact the same attack learns something."""
    first, *others = (received(attack, rows, True) for rows in SIZES)
    assert all(other == first for other in others)
    exact = [received(attack, rows, False) for rows in SIZES]
    assert any(other != exact[0] for other in exact[1:])
