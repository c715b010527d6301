"""Where owners were asked for something else is said with the user's line."""

from __future__ import annotations

import pytest
import torch

import obhut
from obhut.client.computations import first_difference
from obhut.errors import ReleaseRefusedError

OWNERS = ("alice", "bob", "carol")


def test_the_first_difference_has_the_users_line():
    """One owner's rows are multiplied by another number, two lines below.

    Who delivered nothing to this aggregator is not among the owners that are compared.
    """
    policy = obhut.Quorum(aggregators=["hub"], contributors=OWNERS, programs="same")
    hub = obhut.VirtualWorker("hub", policy=policy)
    parts = []
    for place, name in enumerate(OWNERS):
        rows = {"features": torch.ones(3, 2)}
        worker = obhut.VirtualWorker(name, policy=policy, datasets={"d": rows})
        x = worker["d"].sum(0)
        parts.append((x * (1.5 if place == 1 else 2.5)).move(hub))
    bystander = obhut.VirtualWorker("a neighbour", policy=policy)
    y = obhut.send(torch.ones(3), bystander).cos()
    bystander.wait()
    with pytest.raises(ReleaseRefusedError, match="bob computed") as told:
        sum(parts).get()
    (note,) = told.value.__notes__
    assert "of alice aten.mul.Tensor(x, 2.5)" in note
    assert "of bob aten.mul.Tensor(x, 1.5)" in note
    assert note.count(f"({__file__}:") == 2
    del y


def test_the_same_computation_has_no_difference():
    """What is asked of the aggregator, or leaves, does not count."""
    policy = obhut.Quorum(aggregators=["hub"], contributors=OWNERS, programs="same")
    sessions = {}
    for name in OWNERS:
        worker = obhut.VirtualWorker(name, policy=policy)
        obhut.send(torch.ones(3), worker).sum()
        sessions[name] = worker.session.asked
    assert first_difference(sessions) == ""
