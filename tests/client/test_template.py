from __future__ import annotations

import functools

import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from obhut.client.functions import send
from obhut.client.modules import send_copy
from obhut.client.registry import WORKERS
from obhut.client.template import AskedError, Template
from obhut.errors import CallError
from obhut.federated import LocalTraining
from obhut.protocol.codec import Frame
from obhut.protocol.messages import Failed, Free, Put, RunProgram
from obhut.worker.shapes import dense

LOOKS = {"features": dense((3,), torch.float32), "target": dense((), torch.int64)}


def places() -> tuple[list[Frame], functools.partial[int]]:
    """Return a list of frames, and what puts one there."""
    frames: list[Frame] = []

    def place(frames: list[Frame], frame: Frame) -> int:
        frames.append(frame)
        return len(frames) - 1

    return frames, functools.partial(place, frames)


def test_what_is_asked_is_written_down() -> None:
    """A training is its model, its program and its run, and reaches nobody."""
    template, model = Template(LOOKS), nn.Linear(3, 2)
    training = LocalTraining(
        functools.partial(optim.SGD, lr=0.1), functional.cross_entropy
    )
    sent = send_copy(model, template)
    ratio = training.run(sent, template.data, seed=0)
    frames, place = places()
    batch, at = template.finish(place)
    runs = [one for one in batch.requests if isinstance(one, RunProgram)]
    assert len(runs) == 1
    assert ratio.numerator.shape == ()
    puts = [one for one in batch.requests if isinstance(one, Put)]
    assert [one.out for one in puts] == [*at]
    assert sorted(len(one) for one in frames) == [8, 24]
    assert batch.number == 1


def test_a_workers_own_frames_come_first() -> None:
    """What each has of its own is put from its own frames, in the order of calls."""
    template = Template(LOOKS)
    shared = send(torch.ones(2), template)
    first = template.given(dense((2,), torch.float32))
    second = template.given(dense((4,), torch.float64).tracked)
    assert second.requires_grad
    total = shared + first
    frames, place = places()
    batch, at = template.finish(place)
    by_id = {one.out: one for one in batch.requests if isinstance(one, Put)}
    assert by_id[first._held.id].data.frame == 0
    assert by_id[second._held.id].data.frame == 1
    assert by_id[second._held.id].data.requires_grad
    assert by_id[shared._held.id].data.frame == 2 + at[shared._held.id]
    assert len(frames) == 1
    assert not any(isinstance(one, Free) for one in batch.requests)
    del total


def test_a_tensor_may_change_after_it_was_sent() -> None:
    """What is written down is what it was."""
    template, x = Template(LOOKS), torch.zeros(100_000)
    kept = send(x, template)
    x.fill_(1)
    frames, place = places()
    template.finish(place)
    assert not any(bytes(frames[0]))
    del kept


def test_a_value_can_not_be_asked_for() -> None:
    """Whoever does is told at once, and may ask each worker instead."""
    template = Template(LOOKS)
    x = send(torch.ones(2), template)
    with pytest.raises(AskedError):
        x.sum().get()


def test_how_many_rows_there_are_can_not_be_asked_for() -> None:
    """They differ from worker to worker."""
    template = Template(LOOKS)
    for ask in (
        lambda: len(template.data),
        lambda: template.data.features,
        lambda: template.data.batches(2),
    ):
        with pytest.raises(AskedError, match="different rows"):
            ask()


def test_default_dtypes_may_not_change() -> None:
    """All is one batch, which has one."""
    template = Template(LOOKS)
    x = send(torch.ones(2), template)
    y = x + 1
    torch.set_default_dtype(torch.float64)
    try:
        z = y + 1
    finally:
        torch.set_default_dtype(torch.float32)
    _, place = places()
    with pytest.raises(AskedError, match="default dtype"):
        template.finish(place)
    del z


def test_a_failure_has_the_line_that_asked() -> None:
    """As if the worker had been asked there."""
    template = Template(LOOKS)
    x = send(torch.ones(2), template)
    y = x + 1  # this line
    _, place = places()
    template.finish(place)
    failed = Failed(1, 1, 1, "CallError", "add", "it went wrong")
    error = template.error(failed, "client-7")
    assert isinstance(error, CallError)
    assert "client-7" in str(error)
    line = test_a_failure_has_the_line_that_asked.__code__.co_firstlineno + 4
    assert f"{__file__}:{line}" in str(error)
    del y


def test_it_is_nobody_in_the_registry() -> None:
    """A template is found by itself and not by a name that a worker could have."""
    template = Template(LOOKS)
    assert template not in WORKERS.all().values()
    assert template.data.location is template
