"""Attacks that let a private value pass as something else.

At an owner's, all that is there is private, however it came about; so these are
stopped by what stops the plainest fetch. Each shows one way that would open if
somebody tracked values instead of places.
"""

from __future__ import annotations

import torch

import obhut
from obhut.protocol.messages import (
    Backward,
    Count,
    Describe,
    Differentiate,
    Fetch,
    Find,
    Inline,
    Label,
    Put,
    ReadGrad,
    Ref,
    RetainGrad,
    Run,
    SetRequiresGrad,
    TensorData,
    WriteData,
    WriteGrad,
)
from obhut.worker.tensors import to_frame

from .attack import Attack, Family, Program
from .direct import FETCH
from .operators import private, run
from .private_data import VECTOR
from .stage import MINE, SW, RawClient, Stage


def _public(
    client: RawClient, id: int, values: torch.Tensor, grad: bool = False
) -> None:
    """Send a tensor of one's own to an owner."""
    name = str(values.dtype).removeprefix("torch.")
    data = TensorData(name, tuple(values.shape), 0, grad)
    client.ask(Put(id, data), frames=[to_frame(values)])


def _zeros() -> torch.Tensor:
    return torch.zeros(VECTOR, dtype=torch.float64)


def _written(stage: Stage) -> object:
    client = private(stage)
    _public(client, 10, _zeros())
    client.ask(run("copy_.default", Ref(10), Ref(1), out=0))
    return client.ask(Fetch(10)).message


def _viewed(stage: Stage) -> object:
    client = private(stage)
    _public(client, 10, _zeros())
    client.ask(run("view.default", Ref(10), [8, 8], out=11))
    client.ask(run("view.default", Ref(1), [8, 8], out=12))
    client.ask(run("add_.Tensor", Ref(11), Ref(12), out=0))
    return client.ask(Fetch(10)).message


def _out(stage: Stage) -> object:
    client = private(stage)
    _public(client, 10, _zeros())
    client.ask(Run("aten.neg.out", [Ref(1)], {"out": Ref(10)}, 0, 0, False))
    return client.ask(Fetch(10)).message


def _strided(stage: Stage) -> object:
    client = private(stage)
    client.ask(run("as_strided.default", Ref(1), [32], [2], out=10))
    return client.ask(Fetch(10)).message


def _data(stage: Stage) -> object:
    client = private(stage)
    _public(client, 10, _zeros())
    client.ask(WriteData(10, 1))
    return client.ask(Fetch(10)).message


def _grad(stage: Stage) -> object:
    client = private(stage)
    _public(client, 10, _zeros(), grad=True)
    client.ask(WriteGrad(10, 1), ReadGrad(10, 11))
    return client.ask(Fetch(11)).message


def _seed(stage: Stage) -> object:
    """A private vector as the gradient that a backward pass begins with."""
    client = private(stage)
    _public(client, 10, _zeros(), grad=True)
    client.ask(run("mul.Tensor", Ref(10), 2.0, out=11))
    client.ask(Backward((11,), (1,), None, False, False), ReadGrad(10, 12))
    return client.ask(Fetch(12)).message


def _double(stage: Stage) -> object:
    """The gradient of a gradient: of x * w * w / 2, that is x."""
    client = private(stage)
    _public(client, 10, _zeros(), grad=True)
    client.ask(
        run("mul.Tensor", Ref(10), Ref(10), out=11),
        run("mul.Tensor", Ref(11), Ref(1), out=12),
        run("sum.default", Ref(12), out=13),
        Differentiate((13,), (None,), (10,), 14, True, True),
        run("sum.default", Ref(14), out=15),
        Differentiate((15,), (None,), (10,), 16, False, False),
    )
    return client.ask(Fetch(16)).message


def _retained(stage: Stage) -> object:
    """The gradient of a result in the middle: that of w * x by w * 1 is x."""
    client = private(stage)
    _public(client, 10, _zeros(), grad=True)
    client.ask(
        run("mul.Tensor", Ref(10), 1.0, out=11),
        RetainGrad(11),
        run("mul.Tensor", Ref(11), Ref(1), out=12),
        run("sum.default", Ref(12), out=13),
        Backward((13,), (None,), None, False, False),
        ReadGrad(11, 14),
    )
    return client.ask(Fetch(14)).message


def _leaf(stage: Stage) -> object:
    client = private(stage)
    client.ask(SetRequiresGrad(1, True), Describe(1))
    return client.ask(Fetch(1)).message


def _inline(stage: Stage) -> object:
    """A number of one's own, into which a private one is added."""
    client = private(stage)
    client.ask(run("select.int", Ref(1), 0, 3, out=10))
    zero = Inline("float64", (), b"\0" * 8)
    client.ask(run("add.Tensor", zero, Ref(10), out=11))
    return client.ask(Fetch(11)).message


def _optimizer(stage: Stage) -> object:
    x = stage.vector("bob")
    w = obhut.send(_zeros(), stage.at["bob"]).requires_grad_()
    adam = torch.optim.Adam([w], lr=1.0, betas=(0.0, 0.0))
    (w * x).sum().backward()
    adam.step()
    return [adam.state[w][name].get() for name in ("exp_avg", "exp_avg_sq")]


def _found(stage: Stage) -> object:
    client = private(stage)
    client.ask(run("neg.default", Ref(1), out=10), Label(10, ("x",), "public"), Count())
    client.ask(Find(("x",)))
    return client.ask(Fetch(10)).message


def _in_one_batch(stage: Stage) -> object:
    """All in one batch, so that what is fetched was public when the batch came."""
    client = private(stage)
    _public(client, 10, _zeros())
    return client.ask(
        Fetch(10), run("copy_.default", Ref(10), Ref(1), out=0), Fetch(10)
    ).message


def _again(stage: Stage) -> object:
    """Send a batch twice that was refused."""
    client = private(stage)
    client.ask(Fetch(1))
    client._number -= 1
    return client.ask(Fetch(1)).message


def _reused(stage: Stage) -> object:
    """Let an id that was public name something private."""
    client = private(stage)
    _public(client, 10, _zeros())
    client.ask(Fetch(10))
    client.ask(
        Run("aten.mul.Scalar", [Ref(1), 1.0], {}, 10, 1, False),
        Run("aten.mul.Scalar", [Ref(1), 1.0], {}, 11, 1, False),
    )
    return client.ask(Fetch(10), Fetch(11)).message


def _broken(stage: Stage) -> object:
    """Fetch what is missing, since it failed on private values."""
    client = private(stage)
    client.ask(
        run("index_select.default", Ref(2), 0, Ref(3), out=10),
        run("mul.Scalar", Ref(1), 0.5, out=11),
    )
    return client.ask(Fetch(10), Fetch(11)).message


def _moved_on(stage: Stage) -> object:
    """Let an aggregator move what one owner delivered to where it can be fetched."""
    moved = obhut.move(stage.vector("bob"), stage.at[SW])
    return obhut.move(moved, stage.at[MINE]).get()


def _laundered(name: str, tries: str, program: Program) -> Attack:
    return Attack(name, tries, Family.LAUNDERING, program, FETCH, refused="place")


ATTACKS = (
    _laundered("copy_", "copy it into a tensor of one's own", _written),
    _laundered("view of mine", "add it into a view of one's own tensor", _viewed),
    _laundered("out=", "have a result written into one's own tensor", _out),
    _laundered("as_strided", "read it with other strides", _strided),
    _laundered("set data", "make it the .data of one's own tensor", _data),
    _laundered("set grad", "make it the .grad of one's own tensor", _grad),
    _laundered("backward seed", "begin a backward pass with it", _seed),
    _laundered("double backward", "differentiate twice until it is left", _double),
    _laundered("retain_grad", "keep the gradient of a result in between", _retained),
    _laundered("leaf", "let it be a parameter", _leaf),
    _laundered("number of mine", "add one element to one's own number", _inline),
    _laundered("Adam", "read an optimizer's averages", _optimizer),
    _laundered("label", "give it another description and find it", _found),
    _laundered("one batch", "fetch before and after it was written", _in_one_batch),
    _laundered("sent again", "send a refused batch again", _again),
    _laundered("id reused", "fetch by an id that was public", _reused),
    _laundered("failure", "fetch the result of an operator that failed", _broken),
    Attack(
        "moved on",
        "let an aggregator move one owner's tensor to one's own worker",
        Family.LAUNDERING,
        _moved_on,
        ("sums: only", "gate: delivery"),
        refused="release",
    ),
)
