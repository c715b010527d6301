"""What is kept of owners' workers: all, in order, and enough to say it again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

import obhut
from obhut.guard.policy import Quorum, encode
from obhut.protocol import codec
from obhut.protocol.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    AnyRequest,
    Batch,
    Deliver,
    Expect,
    Failed,
    Load,
    Move,
    Open,
    Put,
    Ref,
    Refused,
    Results,
    Run,
    TensorData,
)
from obhut.testing.recording import recording
from obhut.testing.transcripts import Transcript, differences
from obhut.transports.pipe.children import Children
from obhut.transports.pipe.control import Settings, SharedArray
from obhut.transports.pipe.parent import Absent, Child

POLICY = Quorum(aggregators=("hub",), contributors=("bob", "alice", "carol"))


class Asked:
    """What answers for a served owner's worker, and its transcript.

    Args:
        child: the process.
        transcripts: what is kept while it is asked.
    """

    def __init__(self, child: Child, transcripts: list[Transcript]) -> None:
        self.child = child
        self.number = 0
        self._transcripts = transcripts
        self.tell(Open("s", PROTOCOL_VERSION, str(torch.__version__)))

    @property
    def transcript(self) -> Transcript:
        """What passed."""
        (found,) = self._transcripts
        return found

    def tell(self, message: AnyMessage, *sizes: int, sender: str = "me") -> AnyMessage:
        """Tell it something, of frames only the sizes; return its answer."""
        header = codec.encode(message)
        said = self.child.exchange(sender, header, Absent(sizes), 0.0)
        if said.effects:
            why = Refused("LimitError", "no room")
            outcomes = [why] * len(said.effects)
            said = self.child.settle(sender, "s", outcomes)
        return said.message

    def ask(self, *requests: AnyRequest, sizes: tuple[int, ...] = ()) -> Results:
        """Send a batch; return its results."""
        self.number += 1
        reply = self.tell(Batch("s", self.number, requests), *sizes)
        assert isinstance(reply, Results)
        return reply


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    """Processes that answer for an owner's worker with one data set."""
    rows = SharedArray("rows", "features", "float32", (8, 3), None)
    settings = Settings("bob", policy=encode(POLICY), datasets=(rows,), execution="low")
    with Children(settings) as children:
        yield children


@pytest.fixture
def low(children: Children) -> Iterator[Asked]:
    """One such process."""
    child = children.start("s")
    try:
        with recording() as transcripts:
            yield Asked(child, transcripts)
    finally:
        child.close()


def _double(id: int, out: int) -> Run:
    return Run("aten.mul.Tensor", [Ref(id), 2.0], {}, out, 1, True)


def test_what_answers_for_a_served_worker_is_kept(low: Asked) -> None:
    """Deliveries either way and outcomes are, and a worker without data agrees."""
    low.ask(Load("rows", "features", 1), _double(1, 2))
    low.ask(Put(3, TensorData("float32", (3,), 0)), _double(3, 4), sizes=(12,))
    (failed,) = low.ask(Move((2,), "hub", "t", (2,))).answers
    assert isinstance(failed, Failed)
    low.ask(Expect((9,), "alice"))
    delivered = Deliver("s", (9,), (TensorData("float32", (2,), 0),))
    low.tell(delivered, sender="alice")
    low.tell(delivered, 8, sender="alice")
    low.ask(_double(9, 10))
    assert len(low.transcript.exchanges) == 8
    assert all(one.received is not None for one in low.transcript.exchanges)
    assert list(differences(low.transcript)) == []
    other = low.transcript.exchanges[3]
    other.outcomes = [codec.encode(Refused("LimitError", "some"))]
    assert len(list(differences(low.transcript))) == 1


def test_where_a_batch_was_cut_is_kept(low: Asked) -> None:
    """What was cancelled while it was computed is cut at the same request."""
    low.ask(Load("rows", "features", 1))
    cut = seconds = 0.0
    while not cut:  # until it is in the middle
        seconds = seconds % 0.5 + 0.02
        stop = threading.Timer(seconds, low.child.cancel, (low.number + 1,))
        stop.start()
        cut = low.ask(*(_double(1, k) for k in range(2, 10_000))).cut or 0
        stop.join()
    low.ask(_double(2, 20_000))
    assert list(differences(low.transcript)) == []
    low.transcript.exchanges[-2].cut = None
    assert list(differences(low.transcript))


def test_a_session_from_before_is_not_kept(children: Children) -> None:
    """Of what began before, the beginning is missing: it is left out."""
    child = children.start("s")
    here = obhut.VirtualWorker("bob", policy=POLICY)
    x = obhut.send(torch.ones(2), here)
    here.wait()
    try:
        with recording() as transcripts:
            header = codec.encode(Batch("s", 1, ()))
            child.exchange("me", header, Absent(()), 0.0)
            x = x * 2
            here.wait()
        assert transcripts == []
    finally:
        child.close()
        here.close()
