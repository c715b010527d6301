"""Attacks by what PyTorch does otherwise for some values than for others.

Whether an operator failed shows in graphs, in versions and in memory, wherever it can
be told from what is asked later; second derivatives branch on values by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import obhut
from obhut.protocol.messages import Aggregate, AnyRequest, Describe, Ref

from .attack import Attack, Family, Program
from .operators import LOW, TELLING, at_bob, run
from .stage import Remote, Stage

QUESTIONS = 26


def _sent(stage: Stage, values: torch.Tensor) -> Remote:
    return obhut.send(values, stage.at["bob"])


def _parameter(stage: Stage) -> Remote:
    return _sent(stage, torch.ones(1)).requires_grad_()


def _went(stage: Stage, loss: Remote) -> bool:
    """Tell whether a backward pass goes through."""
    try:
        loss.sum().backward()
        stage.at["bob"].wait()
    except Exception as error:
        stage.show(error)
        return False
    return True


def _zeroed(choose: Callable[[Remote, Remote], Remote]) -> Program:
    """Read a number by questions, each whether an index was in range.

    An index that was not is hidden before anybody looks at it again.
    """

    def program(stage: Stage) -> object:
        least, most = -16.0, 16.0
        for _ in range(QUESTIONS):
            middle = (least + most) / 2
            larger = stage.vector("bob")[TELLING] > middle
            index = larger.long().reshape(1)
            chosen = choose(_parameter(stage), index)
            index.zero_()
            went = _went(stage, chosen)
            least, most = (least, middle) if went else (middle, most)
        return least

    return program


def _written(write: Callable[[Stage, Remote], object], whole: bool = True) -> Program:
    """Fail to write into what a graph needs: its version counter tells."""

    def program(stage: Stage) -> object:
        needed = _sent(stage, torch.zeros(1, dtype=torch.int64 if whole else None))
        weight = _parameter(stage)
        result = weight.gather(0, needed) if whole else weight * needed
        with torch.no_grad(), stage.watched():
            write(stage, needed)
        return _went(stage, result)

    return program


def _divisor(stage: Stage) -> Remote:
    """Return an integer that is zero in one world."""
    return stage.vector("bob", "counts")[:1]


def _index(stage: Stage) -> Remote:
    """Return an index into one element that is in range in one world."""
    return (stage.vector("bob")[TELLING : TELLING + 1] > 0).long()


def _out_of(op: Callable[..., Remote]) -> Callable[[Stage, Remote], object]:
    return lambda stage, out: op(
        _sent(stage, torch.ones(1, dtype=torch.int64)), _divisor(stage), out=out
    )


def _picked(op: Callable[..., Remote]) -> Callable[[Stage, Remote], object]:
    return lambda stage, out: op(_sent(stage, torch.ones(1)), 0, _index(stage), out=out)


def _singular(stage: Stage) -> Remote:
    """Return a matrix that is singular in one world."""
    large = (stage.vector("bob")[TELLING] > 0).float()
    return (_sent(stage, torch.eye(3) + 0.25) * large).requires_grad_()


def _twice(call: Callable[[Remote], Remote]) -> Program:
    """Look at strides after a second derivative."""

    def program(stage: Stage) -> object:
        matrix = _singular(stage)
        result: Remote = call(matrix)
        (first,) = torch.autograd.grad(result.sum(), matrix, create_graph=True)
        stage.show(first.stride())
        (second,) = torch.autograd.grad(
            first.square().sum(), matrix, create_graph=True, allow_unused=True
        )
        return None if second is None else (second.stride(), second.grad_fn is None)

    return program


def _cumprod(stage: Stage) -> object:
    """Write into a product that a graph needs if no factor is zero."""
    large = (stage.vector("bob")[TELLING] > 0).float()
    factor = (_sent(stage, torch.ones(4)) * large).requires_grad_()
    product: Remote = factor.cumprod(0)
    seed = _sent(stage, torch.ones(4)).requires_grad_()
    (first,) = torch.autograd.grad(product, factor, seed, create_graph=True)
    with torch.no_grad():
        product.zero_()
    return _went(stage, first.square())


def _filling() -> list[AnyRequest]:
    """Requests that need room, if those before them have not failed."""
    requests: list[AnyRequest] = [run("zeros.default", [4, 1 << 18], out=10)]
    requests += [run("index_select.default", Ref(10), 0, Ref(3), out=11)]
    return [*requests, run("zeros.default", [1 << 20], out=12)]


def _drawn(stage: Stage) -> object:
    """Draw at an owner's, as often as values say, and then here."""
    noise = torch.poisson(stage.vector("bob").abs().clamp(0, 20))
    stage.show(noise.shape)
    stage.at["bob"].wait()
    return torch.rand(4)


def _branches(name: str, tries: str, program: Program) -> Attack:
    return Attack(name, tries, Family.OPERATORS, program, LOW)


def _writes(name: str, program: Program) -> Attack:
    tries = f"learn from a version counter whether {name} failed"
    return _branches(name, tries, program)


def _derives(name: str, call: Callable[[Remote], Remote]) -> Attack:
    tries = f"learn from second derivatives of {name} whether a matrix is singular"
    return _branches(f"{name} twice", tries, _twice(call))


ATTACKS = (
    _branches(
        "gather, index zeroed",
        f"read a number by {QUESTIONS} questions whether an index was in range",
        _zeroed(lambda values, index: values.gather(0, index)),
    ),
    _branches(
        "index, index zeroed",
        "the same, with another operator",
        _zeroed(lambda values, index: values[index]),
    ),
    _branches(
        "index_select, index zeroed",
        "the same, with a third operator",
        _zeroed(lambda values, index: values.index_select(0, index)),
    ),
    _writes("remainder out=", _written(_out_of(torch.remainder))),
    _writes("fmod out=", _written(_out_of(torch.fmod))),
    _writes("floor_divide out=", _written(_out_of(torch.floor_divide))),
    _writes("gather out=", _written(_picked(torch.gather), whole=False)),
    _writes("index_select out=", _written(_picked(torch.index_select), whole=False)),
    _writes(
        "remainder_",
        _written(lambda stage, out: out.remainder_(_divisor(stage))),
    ),
    _derives("det", torch.linalg.det),
    _derives("slogdet", lambda m: torch.linalg.slogdet(m).logabsdet),
    _derives("solve", lambda m: torch.linalg.solve(m, torch.ones_like(m))),
    _branches(
        "cumprod twice",
        "learn from a write into its result whether a factor is zero",
        _cumprod,
    ),
    _branches(
        "draws",
        "learn from one's own generator how much was drawn",
        _drawn,
    ),
    _branches(
        "room that failures leave",
        "learn from the memory that is left whether an operator failed",
        at_bob(*_filling()),
    ),
    _branches(
        "trimmed_mean at an owner",
        "learn from an aggregate over what failed whether it failed",
        at_bob(
            run("index_select.default", Ref(1), 0, Ref(3), out=10),
            Aggregate("trimmed_mean", (10, 10, 10), 1, 11),
            Describe(11),
        ),
    ),
    Attack(
        "lcm crashes",
        "learn from whether lcm of the least integer ends the worker's process",
        Family.OPERATORS,
        at_bob(
            run("full_like.default", Ref(4), 5, out=10),
            run("lcm.default", Ref(4), Ref(10), out=11),
        ),
        LOW,
        forked=True,
    ),
)
