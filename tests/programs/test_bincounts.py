"""``torch.bincount`` in a program, whose shape no value decides."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch

import obhut
from obhut.client.ratio import Ratio
from obhut.errors import ObhutError, ProgramError
from obhut.protocol.messages import Describe, Move
from obhut.testing.recording import recording
from obhut.testing.transcripts import differences

POLICY = obhut.Quorum(
    aggregators=("hub",), contributors=("alice", "bob", "carol"), requesters=("me",)
)


@obhut.program
def counts(x: torch.Tensor) -> dict[str, Ratio]:
    """Count, weighed in each of the ways that PyTorch has."""
    return {
        "plain": Ratio(torch.bincount(x, minlength=5), len(x)),
        "single": Ratio(x.bincount(x.float() / 3, 5), len(x)),
        "whole": Ratio(torch.bincount(x, weights=x, minlength=5), len(x)),
    }


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_it_counts_as_pytorch_does(dtype: torch.dtype, batch_size: int | None) -> None:
    """With weights and without; of all values it knows the number of."""
    x = torch.tensor([0, 4, 4, 1, 0, 0, 3, 4], dtype=dtype)
    bob = obhut.VirtualWorker("bob", datasets={"d": {"features": x, "target": x}})
    found = counts.run(data=bob["d"], batch_size=batch_size)
    for name, one in counts(x).items():
        assert (
            one.numerator.dtype
            == {
                "plain": torch.int64,
                "single": torch.float32,
                "whole": torch.float64,
            }[name]
        )
        value = found[name].numerator[0].get()
        torch.testing.assert_close(value, one.numerator.double(), rtol=1e-6, atol=0)


def test_without_a_length_it_is_refused() -> None:
    """Its shape would be the largest value."""

    def lengthy(x: torch.Tensor) -> torch.Tensor:
        return torch.bincount(x).float().sum()

    with pytest.raises(ProgramError, match="its shape tells values"):
        obhut.program(lengthy).record(data=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("value", [5, -1, 2**40])
def test_a_value_beyond_the_length_is_an_error(value: int) -> None:
    """PyTorch would make it longer, and nothing is written elsewhere."""
    x = torch.tensor([0, value])
    bob = obhut.VirtualWorker("bob", datasets={"d": {"features": x, "target": x}})
    with pytest.raises(ObhutError, match="out of bounds"):
        counts.run(data=bob["d"])["plain"].numerator.get()


def asked(value: int, policy: Any) -> list[Any]:
    """Return all that an attack brings: it asks whether a row is below 5."""
    x = torch.tensor([0, value])
    with recording() as transcripts:
        datasets = {"d": {"features": x, "target": x}}
        bob = obhut.VirtualWorker("bob", policy=policy, datasets=datasets)
        hub = obhut.VirtualWorker("hub", policy=policy)
        bob.session.name = "a session"
        found = counts.run(data=bob["d"])["plain"].numerator
        for request in (
            Describe(found._held.id),
            Move((found._held.id,), "hub", "t", (1,)),
        ):
            with contextlib.suppress(ObhutError):
                bob.session.post(request)
                bob.wait()
        bob.close()
        hub.close()
    (transcript,) = (one for one in transcripts if one.worker == "bob")
    assert policy is None or not list(differences(transcript))
    return [(one.received, one.headers) for one in transcript.exchanges]


@pytest.mark.unrecorded("it looks at a transcript of its own")
def test_no_answer_tells_whether_a_value_is_beyond_the_length() -> None:
    """Under a policy; where there is none the same attack learns it."""
    assert asked(4, POLICY) == asked(5, POLICY) == asked(2**40, POLICY)


def test_an_open_worker_tells_of_a_value_beyond_the_length() -> None:
    """So the attack is one."""
    for value in (4, 5):
        x = torch.tensor([0, value])
        bob = obhut.VirtualWorker("bob", datasets={"d": {"features": x, "target": x}})
        counts.run(data=bob["d"])
        if value == 4:
            bob.wait()
        else:
            with pytest.raises(ObhutError, match="out of bounds"):
                bob.wait()


def test_a_nan_in_a_program_is_recorded() -> None:
    """As a number that does not depend on a batch's size."""

    def masked(x: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(x < 0, math.nan).nansum()

    recorded = obhut.program(masked).record(data=torch.ones(3))
    assert "float nan" in recorded.text
