"""Ctrl-C at any line of the worker's code."""

from __future__ import annotations

import sys

import torch

from obhut.protocol.messages import (
    Alias,
    Batch,
    Count,
    Failed,
    Fetch,
    Put,
    Ref,
    TensorData,
)
from obhut.worker.core import Worker
from obhut.worker.effects import Parcel
from obhut.worker.tensors import to_frame

FOLDER = Worker.__module__.rpartition(".")[0].replace(".", "/")


class CtrlC:
    """Raises KeyboardInterrupt at the n-th line of the worker's code that runs."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.before = sys.gettrace()

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def trace(self, frame, event, _):
        """Count a line, and interrupt at the last."""
        if FOLDER not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


def test_wherever_a_batch_is_cut_it_comes_to_its_end(opened, run):
    """Sent again, it has done nothing twice, and at most one request has failed.

    The interruption comes at each line of the worker's code in turn.
    """
    at, ended = 0, False
    while not ended:
        at += 1
        me = opened()
        me.hold(1, [1.0])
        requests = (
            run("aten.add_.Tensor", Ref(1), 1.0, grad=False),
            Fetch(1),
            run("aten.add.Tensor", Ref(1), 10.0, out=2),
            Put(3, TensorData("float32", (1,), 0)),
            Fetch(2),
            Alias(3, 4),
            Count(),
        )
        frames = [to_frame(torch.tensor([3.0]))]
        me.number += 1
        parcel = Parcel(Batch("s", me.number, requests), tuple(frames))
        try:
            # Not even a finally clause is safe from Ctrl-C: keep this test's own mode.
            with torch.set_grad_enabled(True), CtrlC(at):
                me.worker.handle("me", parcel, 0.0)
            ended = True
        except KeyboardInterrupt:
            pass
        # Also checks that the reply names the frames that it has.
        reply = me.batch(*requests, frames=frames, number=me.number)
        cut = {answer.origin for answer in reply.answers if isinstance(answer, Failed)}
        assert len(cut) <= 1
        indices = [answer.index for answer in reply.answers]
        assert len(set(indices)) == len(indices)
        assert {1, 4, 6} <= set(indices)
        value = me.value(1).item()
        assert value == 2.0 or (value == 1.0 and cut == {0})
        again = me.batch(*requests, frames=frames, number=me.number - 1)
        assert again.kind == "RemoteProtocolError"
    assert at > 50
