"""A crew of actors: the sums of one in this process, also when actors are lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
from functools import partial
from pathlib import Path

import pytest
import ray
import torch

from obhut.errors import CallError, RemoteExecutionError, TransportError
from obhut.protocol.messages import Batch, Ref, Run
from obhut.transports.cohorts import LocalCrew
from obhut.transports.ray.crew import RayCrew
from obhut.transports.ray.engine import _check_answers
from obhut.transports.sources import Called, Given
from obhut.worker.tasks import Averaged, Sums, Task, Turn

from . import rounds


def local(turns: list[Turn]) -> Sums:
    """Return the sums of a crew in this process."""
    data = rounds.data()
    data |= dict.fromkeys(rounds.HARMFUL, data[rounds.NAMES[0]])
    crew = LocalCrew(Given(data))
    return crew.play([rounds.task()], rounds.frames(), turns)


def check(sums: Sums, turns: list[Turn]) -> None:
    """Check that sums are as they should be."""
    want = local(turns)
    assert not sums.failures
    assert not sums.spoilt
    assert sums.weight == want.weight
    assert torch.allclose(sums.narrow.double(), want.narrow.double(), atol=1e-4)


def play(crew: RayCrew, turns: list[Turn], retries: int = 0) -> Sums:
    """Let a crew play the round."""
    return crew.play([rounds.task()], rounds.frames(), turns, retries=retries)


def test_sums_are_as_in_this_process(crew: RayCrew) -> None:
    """Two actors come to what one process comes to, and twice to the same digits."""
    sums, again = (play(crew, rounds.turns()) for _ in range(2))
    check(sums, rounds.turns())
    assert torch.equal(sums.narrow, again.narrow)


def test_a_single_turn_may_be_written_to(crew: RayCrew) -> None:
    """What one actor alone returned is no memory of the object store's."""
    sums = play(crew, rounds.turns()[:1])
    check(sums, rounds.turns()[:1])
    sums.narrow.zero_()
    sums.wide.zero_()


def test_rows_that_are_loaded_may_be_written_to(crew: RayCrew) -> None:
    """They are copies: the next turn has them as they were."""
    spoil = Run("aten.mul_.Tensor", [Ref(2), 0.0], {}, 0, 1, False)
    task = rounds.task()
    requests = (*task.batch.requests, spoil)
    spoiling = Task(Batch("task", 1, requests), task.averaged)
    for _ in range(2):
        check(crew.play([spoiling], rounds.frames(), rounds.turns()), rounds.turns())


def test_no_turn_is_no_sum(crew: RayCrew) -> None:
    """Nobody is asked where nobody takes part."""
    sums = play(crew, [])
    assert sums.weight == 0.0
    assert not sums.narrow.any()


def test_own_frames_go_to_their_client_and_come_back(crew: RayCrew) -> None:
    """What a client has for itself is with its turn, in whichever actor that is."""
    requests = rounds.task().batch.requests[:1]
    task = Task(Batch("task", 1, requests), own=(1,))
    turns = [
        Turn(name, own=(torch.full((rounds.WIDTH,), float(k)).numpy().tobytes(),))
        for k, name in enumerate(rounds.NAMES)
    ]
    sums = crew.play([task], [], turns)
    assert sums.own == {turn.client: turn.own for turn in turns}


def test_a_request_that_fails_names_its_client(crew: RayCrew) -> None:
    """The sums are void, and say whose turn came to nothing, and why."""
    requests = (
        *rounds.task().batch.requests[:1],
        Run("aten.mm.default", [Ref(1), Ref(1)], {}, 2, 1, False),
    )
    task = Task(
        Batch("task", 1, requests),
        (Averaged(1, "float32", (rounds.WIDTH,), 0),),
    )
    sums = crew.play([task], rounds.frames(), rounds.turns())
    (failure,) = sums.failures
    assert failure.client in rounds.NAMES
    assert failure.failed.index == 1
    check(play(crew, rounds.turns()), rounds.turns())


def test_data_that_can_not_be_loaded_names_its_client(crew: RayCrew) -> None:
    """The error says whose data it is, what was raised, and at which line."""
    with pytest.raises(
        RemoteExecutionError, match="ValueError: no such file"
    ) as caught:
        play(crew, [*rounds.turns(), Turn("broken")])
    assert caught.value.worker == "broken"
    assert "rounds.py:" in caught.value.site
    check(play(crew, rounds.turns()), rounds.turns())


def test_an_actor_that_dies_in_a_call_is_replaced(crew: RayCrew) -> None:
    """Its turns are taken again, and the sums are the same."""
    turns = [*rounds.turns(), Turn("killed once")]
    check(play(crew, turns, retries=1), turns)


def test_an_actor_that_stands_still_is_replaced(crew: RayCrew) -> None:
    """Nobody waits for one that answers no question: it is taken for lost."""
    turns = [*rounds.turns(), Turn("stopped once")]
    check(play(crew, turns, retries=1), turns)


def test_a_client_that_kills_its_actor_is_named(crew: RayCrew) -> None:
    """After the retries the error says whose turn it was, and what may help."""
    with pytest.raises(TransportError, match=r"killed's turn.*memory"):
        play(crew, [*rounds.turns(), Turn("killed")], retries=1)
    check(play(crew, rounds.turns()), rounds.turns())


def test_an_actor_that_died_between_calls_costs_no_retry(crew: RayCrew) -> None:
    """It is replaced before anything is asked of it."""
    play(crew, rounds.turns())
    member = next(one for one in crew.members() if one.ready)
    assert member.pulse is not None
    os.kill(member.pulse.process, signal.SIGKILL)
    gone, _ = ray.wait([member.handle.ping.remote()], timeout=30)
    assert gone
    check(play(crew, rounds.turns()), rounds.turns())


def test_actors_are_one_or_more() -> None:
    """A crew of nobody is refused before anything is started."""
    with pytest.raises(CallError, match="one actor"):
        RayCrew(Given({}), actors=0)


def test_what_can_not_be_pickled_is_told() -> None:
    """And what to do instead."""
    with pytest.raises(CallError, match=r"lock.*within the function, or .* actors=0"):
        RayCrew(Called(partial(print, threading.Lock()), ["ann"]), actors=1)


@pytest.mark.parametrize("address", ["http://10.0.0.7:6379", "10.0.0.7", ":1", "a:b"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    """Whatever else it is, is told before anything is started."""
    with pytest.raises(CallError, match=r"as 10\.0\.0\.7:6379"):
        _check_answers(address)


def test_a_cluster_that_is_not_there_is_told_at_once() -> None:
    """Ray would try for minutes, and print it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _check_answers(f"127.0.0.1:{port}")
    with pytest.raises(TransportError, match=f"no Ray at 127.0.0.1:{port}: .*refused"):
        _check_answers(f"127.0.0.1:{port}")


def test_marks_are_left(crew: RayCrew, folder: Path) -> None:
    """Harm was really done."""
    play(crew, [Turn("killed once"), Turn("stopped once")], retries=2)
    assert {path.name for path in folder.iterdir()} >= {"killed once", "stopped once"}
