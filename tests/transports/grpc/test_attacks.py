"""A sample of the attacks against workers that are really served."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from msgspec import structs
from tests.attacks import claims, solver
from tests.attacks.branches import QUESTIONS
from tests.attacks.canaries import Canaries
from tests.attacks.catalogue import ATTACKS
from tests.attacks.private_data import OWNERS, Values, data
from tests.attacks.queries import FOUR, THREE, sums
from tests.attacks.served import ServedStage
from tests.attacks.stage import MINE, POLICY, SW, Exchange

from obhut.guard.policy import encode
from obhut.host import configuration
from obhut.testing.recording import RecordingTransport
from obhut.testing.transcripts import Transcript, differences
from obhut.transports import Transport
from obhut.worker.tensors import spec_of

from .conftest import World

SERVED = ("alice", "bob", "carol", "dave")
TRIED = (
    "get",
    "torch.save",
    "item",
    "bool",
    "move to mine",
    "by way of an owner",
    "move by message",
    "nonzero",
    "index by a mask",
    "index_select fails",
    "cholesky fails",
    "ctc_loss crashes",
    "integer division crashes",
    "eigvals of NaN crashes",
    "lcm crashes",
    "gather, index zeroed",
    "remainder out=",
    "det twice",
    "cumprod twice",
    "trimmed_mean at an owner",
    "memory limit",
    "view of mine",
    "backward seed",
    "double backward",
    "sent again",
    "one",
    "two",
    "outweighed",
    "differencing",
    "second contribution",
    "other combination",
    "forged delivery",
    "absorption",
    "rounded",
    "square",
)


@pytest.fixture(scope="module")
def kept() -> dict[str, Transcript]:
    """What passes between the attacker and owners' workers."""
    return {}


def _transcript(world: World, owner: str) -> Transcript:
    """Return an empty transcript of a served owner's worker."""
    looks = {
        name: {"features": spec_of(parts["features"])}
        for name, parts in data(owner, Values.FIRST).items()
    }
    # Workers know one another by keys.
    served = structs.replace(POLICY, aggregators=(world.identities[SW].id,))
    memory = int(configuration.Limits().memory)
    return Transcript(owner, encode(served), looks, memory)


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, kept: dict[str, Transcript]
) -> Iterator[ServedStage]:
    """Four owners, an aggregator under one policy, and the attacker's own worker."""
    names = (SW, *OWNERS, MINE, "me", "you", "eve")
    world = World(tmp_path_factory.mktemp("attacked"), names)
    policy = (
        f'kind = "Quorum"\naggregators = ["{SW}"]\nrequesters = ["me", "you"]\n'
        f"contributors = {json.dumps(list(OWNERS))}\nrefusals = 100000\n"
        'programs = "any"\n'  # as on the stage
    )
    private = {}
    try:
        world.serve(MINE, deliver=(*SERVED, SW))
        reach = {MINE: world.address(MINE)}
        world.serve(
            SW,
            policy=policy,
            deliver=(*SERVED, MINE),
            reach=reach,
        )
        reach[SW] = world.address(SW)
        for owner in SERVED:
            # Values on which operators fail.
            sets = {**data(owner, Values.FIRST)}
            sets["labels"] = data(owner, Values.ODD)["labels"]
            for name, parts in sets.items():
                np.save(world.root / owner / f"{name}.npy", parts["features"].numpy())
            more = "".join(
                f'[[dataset]]\nname = "{name}"\npath = "{name}.npy"\n'
                'public = { types = true, rows = "exact" }\n'
                for name in sets
            )
            world.serve(owner, policy=policy, deliver=(), reach=reach, more=more)
            private[owner] = [parts["features"] for parts in sets.values()]
        kept.update({owner: _transcript(world, owner) for owner in SERVED})

        def way(worker: str, who: str) -> Transport:
            plain = world.transport(who, worker)
            if worker not in kept:
                return plain
            return RecordingTransport(plain, kept[worker], who)

        stage = ServedStage(
            (*SERVED, SW, MINE), way, private, dict.fromkeys(SERVED, POLICY)
        )
        yield stage
        stage.close()
    finally:
        world.close()


@pytest.mark.parametrize("name", TRIED)
def test_served_attack_is_stopped(stage: ServedStage, name: str) -> None:
    """It is refused over the network, and nothing that came before it adds up."""
    attack = ATTACKS[name]
    stage.evidence.refused.clear()
    torch.manual_seed(0)
    with stage.watched():
        stage.show(attack.program(stage))
    stage.leave()
    assert not list(Canaries(stage.evidence).alarms(stage.evidence))
    assert not list(solver.alarms(stage.evidence))
    assert not list(claims.alarms(stage.evidence))
    if attack.refused == "place":  # what sums are refused for, history decides
        assert "place" in stage.evidence.refused


def test_low_alone_answers_as_served(
    stage: ServedStage, kept: dict[str, Transcript]
) -> None:
    """Without the data a worker says what the served ones have said to the attacks."""
    with stage.watched():
        stage.show(ATTACKS["gather, index zeroed"].program(stage))
    assert not [line for one in kept.values() for line in differences(one)]
    assert len(kept["bob"].exchanges) > QUESTIONS


def test_served_sums_are_released(stage: ServedStage) -> None:
    """What is allowed comes, else nothing that was refused would show anything.

    Which of two sums that is, depends on what was asked first.
    """
    owned = {owner: stage.evidence.private[owner][0] for owner in SERVED}
    sums(FOUR, THREE)(stage)
    released = [v for e in stage.evidence.exchanges for v in e.values]
    allowed = [sum(owned[owner] for owner in weights) for weights in (FOUR, THREE)]
    assert any(
        torch.equal(one, other)
        for one in released
        for other in allowed
        if one.shape == other.shape
    )


def test_judges_look_at_what_is_served(stage: ServedStage) -> None:
    """A private value among what came is found."""
    row = stage.evidence.private["bob"][0]
    seen = stage.evidence.exchanges
    seen.append(Exchange("me", row.numpy().tobytes(), values=(row,)))
    try:
        assert list(Canaries(stage.evidence).alarms(stage.evidence))
        assert list(solver.alarms(stage.evidence))
    finally:
        seen.pop()
