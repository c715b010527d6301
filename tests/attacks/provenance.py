"""Attacks by owners' programs where policies say that they must be the same.

Most are one program at bob and another at alice and carol, whose contributions then
count for nothing: the sum is bob's. They are stopped. The last ones are one program
everywhere, which decides at each owner by what it finds there, and get through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from msgspec import structs
from torch import nn
from torch.nn import functional

import obhut
from obhut.client.workers import RemoteWorker
from obhut.errors import ObhutError
from obhut.protocol.messages import (
    AnyRequest,
    Expect,
    Fetch,
    Load,
    Move,
    Ref,
    Run,
    Symbol,
)

from . import programs
from .attack import Attack, Family, Level, Program
from .private_data import VECTOR
from .programs import THREE
from .queries import summed
from .stage import SW, Remote, Stage

SAME = {"*": {"programs": "same"}}

Contribution: TypeAlias = Callable[[RemoteWorker, bool], Remote]
"""Makes what is delivered at a worker; whether it shall count."""


def _sums(make: Contribution) -> Program:
    """Return a program that sums what is made: what counts is bob's."""

    def program(stage: Stage) -> object:
        parts = [make(stage.at[name], name == "bob") for name in THREE]
        moved = [obhut.move(part, stage.at[SW]) for part in parts]
        return summed(moved, [1] * len(moved)).get()

    return program


def vector(worker: RemoteWorker) -> Remote:
    """Return an owner's private vector."""
    return worker.load("vector")


def _sent(worker: RemoteWorker, value: float, *, grad: bool = False) -> Remote:
    sent: Remote = obhut.send(torch.full((VECTOR,), value).double(), worker)
    return sent.requires_grad_() if grad else sent


def _own_rows(worker: RemoteWorker, counts: bool) -> Remote:
    return vector(worker) if counts else _sent(worker, 0.0)


def _selection(worker: RemoteWorker, counts: bool) -> Remote:
    return worker.load("rows")[: int(counts)].sum(0)


def _rate(worker: RemoteWorker, counts: bool) -> Remote:
    weight = _sent(worker, 0.0, grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0 if counts else 0.0)
    (weight * vector(worker)).sum().backward()
    optimizer.step()
    return weight.data


def _steps(worker: RemoteWorker, counts: bool) -> Remote:
    weight = _sent(worker, 0.0, grad=True)
    for _ in range(int(counts)):
        (weight * vector(worker)).sum().backward()
        with torch.no_grad():
            weight += weight.grad
    return weight.data


def _model(worker: RemoteWorker, counts: bool) -> Remote:
    return vector(worker) * _sent(worker, float(counts))


def _buffers(worker: RemoteWorker, counts: bool) -> Remote:
    mean = obhut.send(torch.zeros(8), worker)
    variance = obhut.send(torch.ones(8), worker)
    rows = worker.load("rows")[:1].expand(2, 8)
    functional.batch_norm(rows, mean, variance, training=counts, momentum=1.0)
    return mean


def _default_dtype(worker: RemoteWorker, counts: bool) -> Remote:
    given = vector(worker)
    worker.wait()
    torch.set_default_dtype(torch.float64 if counts else torch.float32)
    try:
        with worker:
            tiny = torch.full((1,), 1e-300)
        worker.wait()
    finally:
        torch.set_default_dtype(torch.float32)
    return given * (tiny > 0)


def _order(worker: RemoteWorker, counts: bool) -> Remote:
    made = _sent(worker, 1.0)
    if counts:
        return made.mul_(0).add_(vector(worker))
    return made.add_(vector(worker)).mul_(0)


def _data(worker: RemoteWorker, counts: bool) -> Remote:
    """What the graph saved is written through ``.data``."""
    weight, saved = _sent(worker, 1.0, grad=True), vector(worker) * 1.0
    loss = (weight * saved).sum()
    if not counts:
        saved.data.mul_(0)
    loss.backward()
    return weight.grad


def _data_of_another(worker: RemoteWorker, counts: bool) -> Remote:
    """What the graph saved is written, or what was made alike and is in no graph."""
    weight = _sent(worker, 1.0, grad=True)
    saved, other = (vector(worker) * 1.0 for _ in range(2))
    loss = (weight * saved).sum()
    (other if counts else saved).data.mul_(0)
    loss.backward()
    return weight.grad


def _statistics(worker: RemoteWorker, counts: bool) -> Remote:
    """What the graph saved is written by a normalisation, of which nobody is told."""
    rows = worker.load("rows")[:1].expand(2, 8)
    mean = obhut.send(torch.zeros(8), worker)
    variance = obhut.send(torch.ones(8), worker)
    scale = obhut.send(torch.ones(8), worker).requires_grad_()
    out = functional.batch_norm(rows, mean, variance, scale, eps=1e-30)
    if not counts:
        # Then the mean is the row itself.
        functional.batch_norm(rows, mean, variance, training=True, momentum=1.0)
    out.sum().backward()
    return scale.grad


def _set_grad(worker: RemoteWorker, counts: bool) -> Remote:
    weight = _sent(worker, 1.0, grad=True)
    (weight * vector(worker)).sum().backward()
    if not counts:
        weight.grad = _sent(worker, 0.0)
    return weight.grad


def _swapped(worker: RemoteWorker, counts: bool) -> Remote:
    """Two parameters that were sent alike."""
    first, other = _sent(worker, 1.0, grad=True), _sent(worker, 1.0, grad=True)
    (first * vector(worker) + other * 0.0).sum().backward()
    return first.grad if counts else other.grad


def _shared(worker: RemoteWorker, counts: bool) -> Remote:
    """One parameter used twice, or two that were sent alike."""
    first, other = _sent(worker, 1.0, grad=True), _sent(worker, 1.0, grad=True)
    second = first if counts else other
    (first * 0.0 + second * vector(worker)).sum().backward()
    return first.grad


def _differentiated(worker: RemoteWorker, counts: bool) -> Remote:
    """Two inner results that were made alike."""
    weight = _sent(worker, 1.0, grad=True)
    first, other = weight * 2.0, weight * 2.0
    loss = (first * vector(worker) + other * 0.0).sum()
    (grad,) = torch.autograd.grad(loss, [first if counts else other])
    return grad


def _retained(worker: RemoteWorker, counts: bool) -> Remote:
    weight = _sent(worker, 1.0, grad=True)
    first, other = weight * 2.0, weight * 2.0
    (first if counts else other).retain_grad()
    (first * vector(worker) + other * 0.0).sum().backward()
    return (first if counts else other).grad


def _untracked(worker: RemoteWorker, counts: bool) -> Remote:
    """A part of the graph is not recorded."""
    weight = _sent(worker, 1.0, grad=True)
    weight.requires_grad_(counts)
    part = weight * vector(worker)
    weight.requires_grad_(True)
    (part + weight * 0.0).sum().backward()
    return weight.grad


def _alias(worker: RemoteWorker, counts: bool) -> Remote:
    made = vector(worker) * 1.0
    if not counts:
        made.view(8, 8)[:].zero_()
    return made


def _out(worker: RemoteWorker, counts: bool) -> Remote:
    made = vector(worker) * 1.0
    if not counts:
        torch.mul(made, 0.0, out=made)
    return made


def _replaced(worker: RemoteWorker, counts: bool) -> Remote:
    made = vector(worker) * 1.0
    if not counts:
        made.data = _sent(worker, 0.0)
    return made


def _joined(worker: RemoteWorker, counts: bool) -> Remote:
    """Gradients that are the same memory: one of them is written."""
    first, other = _sent(worker, 1.0, grad=True), _sent(worker, 1.0, grad=True)
    (first.view(8, 8) * 1.0).view(VECTOR).backward(vector(worker) * 1.0)
    (first.view(8, 8) + other.view(8, 8)).view(VECTOR).backward(vector(worker))
    if not counts:
        other.grad.zero_()
        first.grad.zero_()
    return first.grad


def _one_memory(worker: RemoteWorker, counts: bool) -> Remote:
    """A tensor and its view are written at once, or that of one that was sent alike."""
    first, other = _sent(worker, 0.0), _sent(worker, 0.0)
    view = (first if counts else other).view(VECTOR)
    with torch.no_grad():
        torch._foreach_add_([first, view], [vector(worker), _sent(worker, 0.0)])
    return view


def _one_gradient(worker: RemoteWorker, counts: bool) -> Remote:
    """Two parameters have one gradient, or one each."""
    first, other = _sent(worker, 1.0, grad=True), _sent(worker, 1.0, grad=True)
    gradient = _sent(worker, 0.0)
    other.grad = gradient
    if counts:
        first.grad = gradient
    (first * vector(worker) + other * 0.0).sum().backward()
    return gradient


def _nan(worker: RemoteWorker, counts: bool) -> Remote:
    return vector(worker) / _sent(worker, float(counts))


def _missing(worker: RemoteWorker, counts: bool) -> Remote:
    """A pass that has nothing to do with it fails, and all gradients are dropped."""
    weight = _sent(worker, 1.0, grad=True)
    (weight * vector(worker)).sum().backward()
    grad = weight.grad
    if not counts:
        aside = _sent(worker, 1.0, grad=True)
        aside[obhut.send(torch.tensor([10_000]), worker)].sum().backward()
    return grad


def _raw(make: Callable[[bool], list[AnyRequest]], out: int) -> Program:
    """Return a program of messages of its own, which make the object ``out``."""

    def program(stage: Stage) -> object:
        sw = stage.client(SW)
        sw.ask(*(Expect((at,), name) for at, name in enumerate(THREE, 1)))
        for at, name in enumerate(THREE, 1):
            owner = stage.client(name)
            for request in make(name == "bob"):
                with contextlib.suppress(ObhutError):
                    owner.ask(request)
            owner.ask(Move((out,), SW, sw.session, (at,)))
        sw.ask(Run("aten.add.Tensor", [Ref(1), Ref(2)], {}, 4, 1, False))
        sw.ask(Run("aten.add.Tensor", [Ref(4), Ref(3)], {}, 5, 1, False))
        return sw.ask(Fetch(5))

    return program


def _drawn(seed: int | None) -> list[AnyRequest]:
    """Let a draw decide: of the seeds 0 and 2 the first numbers are 0.50 and 0.61."""
    dtype = {"dtype": Symbol("float32")}
    draw = Run("aten.rand.default", [[1]], {**dtype}, 2, 1, False)
    return [
        structs.replace(draw, seed=seed),
        Run("aten.lt.Scalar", [Ref(2), 0.55], {}, 3, 1, False),
        Run("aten.mul.Tensor", [Ref(1), Ref(3)], {}, 9, 1, False),
    ]


def _seeds(counts: bool) -> list[AnyRequest]:
    return [Load("vector", "features", 1), *_drawn(0 if counts else 2)]


def _seeds_before(counts: bool) -> list[AnyRequest]:
    """Another operator is seeded, which draws nothing, and the draw goes on."""
    seeds = Run("aten.neg.default", [Ref(1)], {}, 8, 1, False, seed=0 if counts else 2)
    return [Load("vector", "features", 1), seeds, *_drawn(None)]


def same(name: str, tries: str, make: Contribution) -> Attack:
    """Return an attack by contributions that must be the same; one counts."""
    return _stopped(name, tries, _sums(make))


def _stopped(
    name: str, tries: str, program: Program, rule: str = "audit: program"
) -> Attack:
    return Attack(
        f"same: {name}",
        tries,
        Family.PROGRAMS,
        program,
        (rule,),
        refused="program",
        changes=SAME,
    )


# --- recorded programs: one message, which says all but the owner's rows -----------


class _Weights(nn.Module):
    """Zeros that learn the first row of a batch at a rate of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))


def _learn(model, optimizer, x):  # type: ignore[no-untyped-def] # as users write
    optimizer.zero_grad()
    loss = -(model.weight * x[0]).sum()
    loss.backward()
    optimizer.step()
    return loss


def _forget(model, optimizer, x):  # type: ignore[no-untyped-def] # likewise
    optimizer.zero_grad()
    loss = -(model.weight * x[0]).sum() * 0
    loss.backward()
    optimizer.step()
    return loss


def _draw(model, optimizer, x):  # type: ignore[no-untyped-def] # likewise
    optimizer.zero_grad()
    loss = -(model.weight * x[0]).sum() * (torch.rand(()) < 0.5)
    loss.backward()
    optimizer.step()
    return loss


def _weigh(model, optimizer, x):  # type: ignore[no-untyped-def] # likewise
    optimizer.zero_grad()
    loss = -(model.weight * x[0]).sum() * (len(x) - 1)
    loss.backward()
    optimizer.step()
    return loss


_LEARN, _FORGET, _DRAW, _WEIGH = map(obhut.program, (_learn, _forget, _draw, _weigh))


# Any: what programs and optimizers take.
def _learnt(
    worker: RemoteWorker,
    program: Any = _LEARN,
    rows: Remote | None = None,
    rates: Sequence[float] = (1.0,),
    again: bool = False,
    **how: Any,
) -> Remote:
    """Return what is learnt there: the first row if the rate is 1."""
    model = obhut.send(_Weights(), worker)
    data = worker.load("rows") if rows is None else rows
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, maximize=False)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        program.run(model=model, optimizer=optimizer, data=data, **how)
    if again:
        optimizer.param_groups[0].update(lr=1.0, maximize=True)
        program.run(model=model, optimizer=optimizer, data=data, **how)
    return model.weight.data


def _program_rate(worker: RemoteWorker, counts: bool) -> Remote:
    return _learnt(worker, rates=[float(counts)])


def _program_text(worker: RemoteWorker, counts: bool) -> Remote:
    return _learnt(worker, _LEARN if counts else _FORGET)


def _program_seed(worker: RemoteWorker, counts: bool) -> Remote:
    def drawn(seed: int) -> bool:
        return bool(torch.rand((), generator=torch.Generator().manual_seed(seed)) < 0.5)

    seed = next(seed for seed in range(100) if drawn(seed) == counts)
    return _learnt(worker, _DRAW, seed=seed)


def _program_batches(worker: RemoteWorker, counts: bool) -> Remote:
    return _learnt(worker, _WEIGH, worker.load("rows")[:2], batch_size=1 + counts)


def _program_rows(worker: RemoteWorker, counts: bool) -> Remote:
    zeros = None if counts else obhut.send(torch.zeros(8, 8), worker)
    return _learnt(worker, rows=zeros)


def _program_part(worker: RemoteWorker, counts: bool) -> Remote:
    data = worker.load("rows")
    return _learnt(worker, rows=data if counts else data[:1] * 0)


def _program_again(worker: RemoteWorker, counts: bool) -> Remote:
    return _learnt(worker, again=not counts)


def _program_after(worker: RemoteWorker, counts: bool) -> Remote:
    weight = _learnt(worker)
    return weight if counts else weight.mul_(0)


def _program_start(worker: RemoteWorker, counts: bool) -> Remote:
    model = obhut.send(_Weights(), worker)
    if not counts:
        model.weight.data = obhut.send(torch.full((8,), float("inf")), worker)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    _LEARN.run(model=model, optimizer=optimizer, data=worker.load("rows"))
    return model.weight.data.nan_to_num(posinf=0.0)


# --- one program, which decides by what it finds: nothing here stops it -------------

Chooses: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Tells by an owner's rows (rows, 8) whether its first row counts: a scalar."""


def _chosen(stage: Stage, chooses: Chooses, rows: str = "rows") -> torch.Tensor:
    """Return the sum over the owners of the first rows that count."""

    def learn(model, optimizer, x):  # type: ignore[no-untyped-def] # as users write
        optimizer.zero_grad()
        loss = -(model.weight * x[0] * chooses(x)).sum()
        loss.backward()
        optimizer.step()
        return loss

    program = obhut.program(learn)
    parts = []
    for name in THREE:
        data = stage.at[name].load(rows)
        parts.append(_learnt(stage.at[name], program, data).move(stage.at[SW]))
    found: torch.Tensor = summed(parts, [1] * len(parts)).get()
    return found


def _by_number(stage: Stage) -> object:
    """Bob has nine rows, which any client sees, and the others have not."""
    count = stage.at["bob"].load("visits").shape[0]
    return _chosen(
        stage, lambda x: torch.ones_like(x[:, 0]).sum() == count, rows="visits"
    )


def _by_known_row(stage: Stage) -> object:
    """Who knows one number of one row of bob's has another row."""
    known = stage.evidence.private["bob"][1][3, 0].item()
    return _chosen(stage, lambda x: (x[:, 0] == known).any())


def _by_hash(stage: Stage) -> object:
    """Who knows nothing tries hashes until one lets one owner count, whoever it is."""

    def hashed(salt: int) -> Chooses:
        return lambda x: (x * salt).sum().sin() > 0.5

    return [_chosen(stage, hashed(salt)) for salt in range(1, 9)]


def _alike(name: str, tries: str, program: Program) -> Attack:
    return Attack(name, tries, Family.PROGRAMS, program, level=Level.L2, changes=SAME)


ATTACKS = (
    *(
        _stopped(one.name, one.tries, one.program)
        for one in programs.ATTACKS
        if one.level is Level.L1
    ),
    same("own rows", "send zeros in place of others' rows", _own_rows),
    same("selection", "let only one owner select a row", _selection),
    same("learning rate", "let all but one learn at a rate of 0", _rate),
    same("steps", "let all but one take no step", _steps),
    same("model", "send all but one a model of zeros", _model),
    same("buffers", "let only one owner's normalisation train", _buffers),
    same("default dtype", "let a tiny number be 0 at all but one", _default_dtype),
    same("order", "let all but one add before they multiply by 0", _order),
    same("data", "change through .data what a graph has saved", _data),
    same("data of another", "change that, or what is like it", _data_of_another),
    same("statistics", "change as statistics what a graph has saved", _statistics),
    same("gradient", "give all but one another gradient", _set_grad),
    same("swapped", "deliver the gradients of two equal parameters", _swapped),
    same("shared", "use one parameter twice, and two equal ones", _shared),
    same("differentiated", "differentiate by two equal results", _differentiated),
    same("retained", "retain the gradients of two equal results", _retained),
    same("untracked", "let autograd record less at all but one", _untracked),
    same("alias", "write through a view at all but one", _alias),
    same("out", "write through out= at all but one", _out),
    same("replaced", "give a tensor other memory at all but one", _replaced),
    same("joined", "write into gradients that are one memory", _joined),
    same("one memory", "write a tensor's view, or another one's", _one_memory),
    same("one gradient", "let two parameters share a gradient", _one_gradient),
    same("not finite", "divide by 0 at all but one", _nan),
    same("program rate", "run a program at a rate of 0", _program_rate),
    same("program text", "run another program at all but one", _program_text),
    same("program seed", "let a program's seed decide who counts", _program_seed),
    same("program batches", "let the batch size decide who counts", _program_batches),
    same("program rows", "run it on rows of the requester's own", _program_rows),
    same("program part", "run it on rows times 0 at all but one", _program_part),
    same("program again", "take it back by a second run", _program_again),
    same("program after", "multiply by 0 what it has made", _program_after),
    same("program start", "begin where nothing is learnt", _program_start),
    _stopped("seeds", "seed so that only one owner counts", _raw(_seeds, 9)),
    _stopped("seeds before", "seed it by an operator before", _raw(_seeds_before, 9)),
    _stopped(
        "missing",
        "let all but one lose what they deliver",
        _sums(_missing),
        "sums: came",
    ),
    _alike(
        "by number of rows",
        "let one program for all count where there are nine rows",
        _by_number,
    ),
    _alike(
        "by a known row",
        "let it count where a known number is among the rows",
        _by_known_row,
    ),
    _alike("by a hash of rows", "let a hash of the rows decide", _by_hash),
)
