"""Attempts to learn what an owner calls arrays and columns whose names are private.

All that comes back is searched for them: answers, headers, errors, what is printed.
Where names are public the same attack must find one: else it is no attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

import obhut
from obhut.errors import ObhutError
from obhut.federated import compare
from obhut.programs.text import digest
from obhut.protocol.messages import NOWHERE, DatasetRows, Define, Find, Load, RunProgram
from obhut.testing.recording import recording
from obhut.transports.grpc.description import DatasetDescription

POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=("alice", "bob", "carol"), requesters=("me",)
)
SECRETS = ("hiv_status", "cd4_count", "zip_code", "therapy")
PARTS, COLUMNS = SECRETS[:2], SECRETS[2:]

Attack = Callable[[Any], Iterator[object]]

TEXT = """obhut program 1
rows %x: float32[$B, 3]
%0 = aten.sum.default(%x)
return %0 / $B
"""
"""Of rows with three columns, and there are two."""


def read(bob: Any) -> Iterator[object]:
    """Read all that is printed of it."""
    yield bob.datasets
    for one in bob.datasets.values():
        yield one
        yield one._repr_html_()
        yield one.parts, one.columns, one.dtypes, one.shapes, one.units, one.categories
    yield bob.datasets._repr_html_()


def misspelt(bob: Any) -> Iterator[object]:
    """Ask for what is nearly so called, in all ways of asking for data."""
    new = bob.session.new_id
    for part in ("hiv_statu", "cd4", "features_", "", "targe"):
        yield partial(bob.load, "d", part)
        yield partial(bob.load, "d", part, ["zip_cod"])
        yield partial(bob.dataset, "d", part, "target")
        yield partial(bob.session.ask, Load("d", part, NOWHERE))
        yield partial(bob.session.ask, Load("d", part, new()))
    for columns in (["zip_cod"], ["zip_cod", "therap"], ["0"]):
        yield partial(bob.dataset, "d", columns=columns)
        asked = Load("d", "features", NOWHERE, tuple(columns))
        yield partial(bob.session.ask, asked)
    bob.session.post(Define(TEXT))
    for part, names in (("features", ()), ("hiv", ()), ("features", ("zip",))):
        rows = DatasetRows("d", (part,), (names,))
        run = RunProgram(digest(TEXT), (), rows, bob.session.new_ids(2), 2)
        yield partial(bob.session.post, run)
        yield bob.wait
    yield lambda: [one.shape for one in bob.search("#d")]
    yield partial(bob.session.ask, Find(()))


def compared(bob: Any) -> Iterator[object]:
    """Compare it with itself, part by part."""
    yield lambda: compare({"a": bob.dataset("d"), "b": bob.dataset("d")})
    owners = {"a": bob.dataset("d")}
    yield partial(obhut.Federation, owners, "hub", columns=["zip"])


ATTACKS = (read, misspelt, compared)


def learnt(attack: Attack, rows: Any, columns: dict[str, Any] | None) -> set[str]:
    """Return which names an attack brings."""
    x = torch.ones(8, 2)
    data = {"features": x, "target": x[:, 0]} | dict.fromkeys(PARTS, x)
    said = DatasetDescription("d", tags=("#d",), columns=columns)
    brought: list[str] = []
    with recording() as transcripts:
        bob = obhut.VirtualWorker(
            "bob", policy=POLICY, datasets={"d": data}, rows=rows, described=[said]
        )
        hub = obhut.VirtualWorker("hub", policy=POLICY)
        for one in attack(bob):
            try:
                brought.append(str(one() if callable(one) else one))
            except ObhutError as error:
                brought.append(f"{error} {error.args} {vars(error)}")
        bob.close()
        hub.close()
    for transcript in transcripts:
        for one in transcript.exchanges:
            brought += [repr(one.received), repr(one.brought), repr(one.headers)]
    return {name for name in SECRETS if any(name in text for text in brought)}


@pytest.mark.unrecorded("it looks at a transcript of its own")
@pytest.mark.parametrize("rows", ["exact", "hidden"])
@pytest.mark.parametrize("attack", ATTACKS, ids=[one.__name__ for one in ATTACKS])
def test_nothing_tells_a_private_name(attack: Attack, rows: str) -> None:
    """While it is private; where it is public the same attack brings some."""
    assert learnt(attack, rows, None) == set()
    assert learnt(attack, rows, {"features": COLUMNS})
