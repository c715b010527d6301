"""Ctrl-C at any line of the worker's code."""

from __future__ import annotations

import sys

import pytest
import torch

from obhut.protocol.messages import (
    Alias,
    Backward,
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
        # Not even a finally clause is safe from Ctrl-C.
        while torch._C._len_torch_dispatch_stack():
            torch._C._pop_torch_dispatch_stack(None)

    def trace(self, frame, event, _):
        """Count a line, and interrupt at the last."""
        if FOLDER not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


@pytest.mark.unrecorded("Ctrl-C comes in the middle, which is no message")
def test_wherever_an_owners_batch_is_cut_both_agree(owners, run):
    """What high has is what low says that it is, or missing; nothing is half done.

    The interruption comes at each line of the worker's code in turn.
    """
    at, ended, missing = 0, False, 0
    while not ended:
        at += 1
        me = owners()
        me.hold(1, [1.0])
        me.hold(2, torch.ones(1, requires_grad=True))
        requests = (
            run("aten.add_.Tensor", Ref(1), 1.0, grad=False),
            run("aten.mul.Tensor", Ref(1), Ref(2), out=3),
            Backward((3,), (None,), None, False, False),
            run("aten.add_.Tensor", Ref(1), 10.0, grad=False),
            Alias(1, 4),
        )
        me.number += 1
        try:
            with torch.set_grad_enabled(True), CtrlC(at):
                me.batch(*requests, number=me.number)
            ended = True
        except KeyboardInterrupt:
            pass
        reply = me.batch(*requests, number=me.number)
        cut = {answer.origin for answer in reply.answers if isinstance(answer, Failed)}
        assert len(cut) <= 1
        value = me.peek(1)
        missing += value is None
        assert value is None or value.item() == 12 - (0 in cut) - 10 * (3 in cut)
        if 4 not in cut:
            other = me.peek(4)
            assert other is None or torch.equal(other, value)
        me.hold(9, [9.0])
        assert me.peek(9).item() == 9.0
    assert at > 200
    assert 0 < missing < at / 2


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
