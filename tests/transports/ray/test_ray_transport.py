"""A worker in an actor, as a transport reaches it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import ray
import torch

from obhut.errors import RemoteExecutionError, TransportError, WorkerClosedError
from obhut.protocol.messages import (
    Batch,
    Count,
    Counted,
    Load,
    Ref,
    Refused,
    Results,
    Welcome,
)
from obhut.testing.transports import Client, Host, TransportConformance, run
from obhut.transports.ray.actor import Actor
from obhut.transports.ray.crew import RayCrew
from obhut.transports.ray.engine import Engine
from obhut.transports.ray.transport import RayTransport
from obhut.transports.sources import Given
from obhut.worker.tasks import DATASET

from . import rounds


class RayHost:
    """A worker in one of a crew's actors, new in each test."""

    def __init__(self, crew: RayCrew, id: str) -> None:
        self.crew, self.id = crew, id
        self.tell(lambda actor, id: actor._shells.pop(id, None) and None)

    def tell(self, call: Callable[[Actor, str], None]) -> None:
        """Call a function in the actor's process."""
        handle = self.crew.home(self.id).handle
        ray.get(handle.__ray_call__.remote(call, self.id), timeout=60)

    def connect(self, principal: str) -> RayTransport:
        """Return a way to the worker."""
        return RayTransport(self.crew, self.id, principal)

    def close(self) -> None:
        """Close the worker."""
        self.tell(lambda actor, id: actor._shell(id).close())


class TestRay(TransportConformance):
    """Two workers in two actors."""

    @pytest.fixture(autouse=True)
    def _crew(self, crew: RayCrew) -> None:
        self.crew = crew

    def host(self, id: str) -> Host:
        """Return a new worker."""
        return RayHost(self.crew, id)


def test_a_client_has_its_data(crew: RayCrew) -> None:
    """It is found as a worker's, and what is written there changes nobody else's."""
    name = rounds.NAMES[2]
    client = Client(RayTransport(crew, name), "data")
    client.open()
    client.ask(Load(DATASET, "features", 1))
    assert torch.equal(client.value(1), rounds.data()[name]["features"])
    client.ask(run("aten.zero_.default", Ref(1), grad=False))
    client.ask(Load(DATASET, "target", 2))
    assert torch.equal(client.value(2), rounds.data()[name]["target"])
    turns = [turn for turn in rounds.turns() if turn.client == name]
    assert crew.play([rounds.task()], rounds.frames(), turns).narrow.any()


def test_data_that_is_not_there_is_an_error(crew: RayCrew) -> None:
    """It is raised where the first message's reply is wanted."""
    pending = RayTransport(crew, "broken").submit(Batch("s", 1, (Count(),)))
    with pytest.raises(RemoteExecutionError, match="no such file"):
        pending.result(timeout=60)


@pytest.mark.parametrize(
    "harm", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_a_session_is_lost_with_its_actor(crew: RayCrew, harm: int) -> None:
    """Whoever waits is told, and a new session at the same client works."""
    transport = RayTransport(crew, "dora")
    client = Client(transport, "mine")
    client.open()
    client.hold(1, torch.ones(2))
    before, member = transport.address, crew.home("dora")
    process = ray.get(member.handle.__ray_call__.remote(lambda actor: os.getpid()))
    os.kill(process, harm)
    pending = client.begin(Count())
    with pytest.raises(TransportError, match="is lost"):
        pending.result()
    assert pending.done()
    assert transport.progress("mine", 1) is None
    assert transport.address != before
    again = client.tell(Batch("mine", 2, (Count(),)))
    assert isinstance(again, Refused)
    fresh = Client(transport, "new")
    assert fresh.open() == Welcome(0)


def test_a_batch_is_cancelled_while_it_is_computed(crew: RayCrew) -> None:
    """What is left of it is not done; the session goes on."""
    client = Client(RayTransport(crew, "dora"), "long")
    client.open()
    client.hold(1, torch.ones(400, 400))
    product = run("aten.mm.default", Ref(1), Ref(1), out=2)
    pending = client.begin(*[product] * 20_000)
    pending.cancel()
    message = pending.result(timeout=60).message
    assert isinstance(message, Results)
    assert message.cut is not None
    assert message.cut < 20_000
    assert isinstance(client.ask(Count())[0], Counted)


def test_a_reply_that_does_not_come_in_time(crew: RayCrew) -> None:
    """It is a ``TimeoutError``, and comes later all the same."""
    client = Client(RayTransport(crew, "dora"), "slow")
    client.open()
    client.hold(1, torch.ones(200, 200))
    product = run("aten.mm.default", Ref(1), Ref(1), out=2)
    pending = client.begin(*[product] * 2_000)
    with pytest.raises(TimeoutError, match="no reply within"):
        pending.result(timeout=0)
    assert isinstance(pending.result().message, Results)


def test_a_closed_crew_has_no_clients(engine: Engine) -> None:
    """Its transports say so, and closing it again does nothing."""
    crew = RayCrew(Given(rounds.data()), actors=1)
    transport = crew.transport("dora")
    crew.close()
    crew.close()
    with pytest.raises(WorkerClosedError):
        transport.submit(Batch("s", 1, (Count(),)))
    with pytest.raises(WorkerClosedError):
        crew.play([rounds.task()], rounds.frames(), rounds.turns())
