from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import functional

import obhut
from obhut.errors import CallError
from obhut.federated import LocalTraining
from obhut.federated.sampling import Sample

from .pooled import POLICY

NAMES = ("alice", "bob", "carol", "dave", "erin")


def owners(policy: Any = None) -> dict[str, Any]:
    """Return data sets of five owners."""
    x = torch.randn(12, 3)
    datasets = {"d": {"features": x, "target": x[:, :1]}}
    return {
        name: obhut.VirtualWorker(name, datasets=datasets, policy=policy).dataset("d")
        for name in NAMES
    }


@pytest.mark.parametrize(
    ("participants", "size"),
    [(None, 5), (2, 2), (np.int64(2), 2), (5, 5), (0.4, 2), (0.01, 1), (1.0, 5)],
)
def test_a_number_or_a_share_takes_part(participants: Any, size: int) -> None:
    """A share is rounded, and at least one owner."""
    sample = Sample(participants, [*owners().values()])
    assert sample.size == size
    assert sample.share == size / 5
    drawn = sample.drawn(0, 1)
    assert len(set(drawn)) == len(drawn) == size
    assert drawn == sorted(drawn)


@pytest.mark.parametrize("participants", [0, 6, -1, 0.0, 1.5, True, "2", 2.0])
def test_any_other_is_refused(participants: Any) -> None:
    """With what there is to choose from."""
    with pytest.raises(CallError, match="from 1 to 5, or a share"):
        Sample(participants, [*owners().values()])


def test_each_round_draws_anew_and_alike_for_a_seed() -> None:
    """Each owner is as likely as another, and a round run again draws the same."""
    sample = Sample(2, [*owners().values()])
    rounds = [sample.drawn(7, number) for number in range(1, 501)]
    assert rounds == [sample.drawn(7, number) for number in range(1, 501)]
    assert rounds != [sample.drawn(8, number) for number in range(1, 501)]
    counts = [sum(place in one for one in rounds) for place in range(5)]
    assert min(counts) > 150
    assert sum(counts) == 1000


def test_a_draw_leaves_the_global_generator_alone() -> None:
    """What a caller draws does not depend on it."""
    sample = Sample(2, [*owners().values()])
    state = torch.get_rng_state()
    sample.drawn(1, 1)
    assert torch.equal(state, torch.get_rng_state())


def test_only_who_takes_part_is_asked() -> None:
    """An owner who is not drawn hears nothing of the round."""
    data, hub = owners(), obhut.VirtualWorker("hub")
    federation = obhut.Federation(data, hub)
    training = LocalTraining(optim.SGD, functional.mse_loss)
    model = nn.Linear(3, 1)
    seen = {
        name: one.location.session._flights[-1].number for name, one in data.items()
    }
    federation.fit(model, training, rounds=1, participants=2, seed=4, progress=False)
    drawn = {NAMES[place] for place in Sample(2, [*data.values()]).drawn(4, 1)}
    for name, one in data.items():
        asked = one.location.session._flights[-1].number > seen[name]
        assert asked == (name in drawn)


def test_what_rounding_loses_stays_with_its_owner() -> None:
    """An owner's own is added to what it delivers next, and nobody else's."""
    x = torch.ones(4, 1)
    data = {
        name: obhut.VirtualWorker(
            name, datasets={"d": {"features": x, "target": x * (place + 1) / 3}}
        ).dataset("d")
        for place, name in enumerate(NAMES)
    }
    federation = obhut.Federation(data, obhut.VirtualWorker("hub"))
    training = LocalTraining(optim.SGD, functional.mse_loss)
    both = []
    for wire in (None, torch.bfloat16):
        model = nn.Linear(1, 1)
        with torch.no_grad():
            model.weight.zero_()
            model.bias.zero_()
        federation.fit(
            model,
            training,
            rounds=40,
            participants=2,
            seed=0,
            wire_dtype=wire,
            progress=False,
        )
        both.append(model.weight.item())
    # Rounded without what was lost, or with another owner's, it is off by 1e-3.
    assert both[0] == pytest.approx(both[1], abs=2e-4)


def test_under_a_policy_it_is_refused() -> None:
    """Before anything is drawn, with the reason."""
    hub = obhut.VirtualWorker("hub", policy=POLICY)
    federation = obhut.Federation(owners(POLICY), hub)
    training = LocalTraining(optim.SGD, functional.mse_loss)
    with pytest.raises(CallError, match=r"counts over all rounds.*takes noise"):
        federation.fit(nn.Linear(3, 1), training, rounds=1, participants=3)
