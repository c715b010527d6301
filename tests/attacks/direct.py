"""Attacks that ask an owner, or somebody else, for a private value."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import torch

import obhut
from obhut.protocol.messages import (
    Alias,
    Expect,
    Fetch,
    Find,
    Label,
    Load,
    Move,
    ReadData,
    Ref,
    Run,
)

from .attack import Attack, Family
from .private_data import VECTOR
from .stage import MINE, RawClient, Remote, Stage

FETCH = ("owner: fetch", "gate: reply")
VALUE = ("owner: low", "op: guard_refused", "gate: reply")
MOVE = ("owner: move", "gate: delivery", "receiver: aggregates")


def _row(stage: Stage) -> Remote:
    return stage.vector("bob")[3]


def _model(stage: Stage) -> tuple[Remote, Remote]:
    """Train one step at bob's; return the model there and the loss."""
    model = torch.nn.Linear(8, 1)
    remote = obhut.send(model, stage.at["bob"])
    rows = stage.at["bob"].load("rows")
    loss = ((remote(rows) - stage.at["bob"].load("rows", "target")) ** 2).sum()
    loss.backward()
    return remote, loss


def _first(stage: Stage, worker: str = "bob") -> RawClient:
    """Return a client with bob's private vector as object 1."""
    client = stage.client(worker)
    client.ask(Load("vector", "features", 1))
    return client


def _state(stage: Stage) -> object:
    model, _ = _model(stage)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return {name: value.get() for name, value in model.state_dict().items()}


def _saved(stage: Stage) -> object:
    file = io.BytesIO()
    torch.save(stage.vector("bob").get(), file)
    return file.getvalue().hex()


def _gradient(stage: Stage) -> object:
    x = stage.vector("bob")
    w: Remote = obhut.send(torch.ones(VECTOR, dtype=torch.float64), stage.at["bob"])
    w.requires_grad_()
    (w * x).sum().backward()
    return w.grad.get()


def _optimizer_state(stage: Stage) -> object:
    x = stage.vector("bob")
    w: Remote = obhut.send(torch.zeros(VECTOR, dtype=torch.float64), stage.at["bob"])
    w.requires_grad_()
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.9)
    (w * x).sum().backward()
    optimizer.step()
    return optimizer.state[w]["momentum_buffer"].get()


def _buffers(stage: Stage) -> object:
    remote: Remote = obhut.send(torch.nn.BatchNorm1d(VECTOR), stage.at["bob"])
    remote.running_mean.copy_(stage.vector("bob"))
    return remote.running_mean.get()


def _future(stage: Stage) -> object:
    return stage.vector("bob").get(wait=False).result()


def _searched(stage: Stage) -> object:
    stage.vector("bob").tag("mine")
    (found,) = stage.at["bob"].search("mine")
    return found.get()


def _to_mine(stage: Stage) -> object:
    return obhut.move(stage.vector("bob"), stage.at[MINE]).get()


def _to_owner(stage: Stage) -> object:
    moved = obhut.move(stage.vector("bob"), stage.at["alice"])
    return obhut.move(moved, stage.at[MINE]).get()


def _misnamed(stage: Stage) -> object:
    # Its policy names the attacker's worker, which is no aggregator.
    return obhut.move(stage.vector("bob"), stage.at[MINE]).get()


def _raw(*requests: Callable[[RawClient], object]) -> Callable[[Stage], object]:
    """Return a program that sends requests about bob's vector, object 1."""

    def program(stage: Stage) -> object:
        client = _first(stage)
        return [client.ask(one(client)).message for one in requests]  # type: ignore[arg-type]

    return program


def _run(op: str, *args: object, out: int = 2, describe: bool = False) -> Run:
    return Run(f"aten.{op}", list(args), {}, out, 1, False, describe)  # type: ignore[arg-type]


def _fetches(name: str, tries: str, program: Callable[[Stage], object]) -> Attack:
    return Attack(name, tries, Family.EGRESS, program, FETCH, refused="place")


def _values(name: str, tries: str, program: Callable[[Stage], object]) -> Attack:
    return Attack(name, tries, Family.EGRESS, program, VALUE)


ATTACKS = (
    _fetches("get", "get() a private vector", lambda s: s.vector("bob").get()),
    _fetches("get a row", "get() one element", lambda s: _row(s).get()),
    _fetches("future", "get it later", _future),
    _fetches(
        "iterate",
        "get() each of its parts",
        lambda s: [part.get() for part in s.vector("bob")],
    ),
    _fetches(
        "deepcopy", "get() a deep copy", lambda s: copy.deepcopy(s.vector("bob")).get()
    ),
    _fetches("copy", "get() a copy", lambda s: obhut.copy(s.vector("bob")).get()),
    _fetches("torch.save", "save what get() brings", _saved),
    _fetches("state_dict", "get() a trained model's state", _state),
    _fetches(
        "model",
        "get() a trained model",
        lambda s: [p.detach() for p in obhut.get(_model(s)[0]).parameters()],
    ),
    _fetches("loss", "get() one owner's loss", lambda s: _model(s)[1].get()),
    _fetches("gradient", "get() a gradient that is the row", _gradient),
    _fetches("optimizer state", "get() a momentum that is the row", _optimizer_state),
    _fetches("buffers", "get() running statistics", _buffers),
    _fetches("search", "tag it, search for it and get() that", _searched),
    _fetches(
        "integers", "get() private integers", lambda s: s.vector("bob", "counts").get()
    ),
    _fetches(
        "negated", "get() it with another sign", lambda s: (-s.vector("bob")).get()
    ),
    _fetches(
        "scaled",
        "get() it times a power of two",
        lambda s: (s.vector("bob") * 0.25).get(),
    ),
    _fetches(
        "converted", "get() it in fewer digits", lambda s: s.vector("bob").float().get()
    ),
    _fetches(
        "alias", "fetch an alias", _raw(lambda c: Alias(1, 2), lambda c: Fetch(2))
    ),
    _fetches(
        "data", "fetch its .data", _raw(lambda c: ReadData(1, 2), lambda c: Fetch(2))
    ),
    _fetches(
        "labelled",
        "label it, find it, fetch it",
        _raw(lambda c: Label(1, ("a",)), lambda c: Find(("a",)), lambda c: Fetch(1)),
    ),
    _fetches(
        "view",
        "fetch a view of it",
        _raw(lambda c: _run("view.default", Ref(1), [8, 8]), lambda c: Fetch(2)),
    ),
    _values("item", "item() of an element", lambda s: _row(s).item()),
    _values("float", "float() of an element", lambda s: float(_row(s))),
    _values("bool", "truth of an element", lambda s: bool(_row(s) > 0)),
    _values("if", "branch on an element", lambda s: "yes" if _row(s) > 0 else "no"),
    _values("int", "int() of an integer", lambda s: int(s.vector("bob", "counts")[0])),
    _values("format", "format an element", lambda s: f"{_row(s).item():.12f}"),
    _values(
        "tolist",
        "tolist() of elements",
        lambda s: [one.item() for one in s.vector("bob")[:4]],
    ),
    _values("in", "in, with a guess", lambda s: 1.0 in s.vector("bob", "labels")),
    _values(
        "equal",
        "torch.equal with another vector",
        lambda s: torch.equal(
            s.vector("bob", "labels"), s.vector("bob", "labels").clamp(0, 3)
        ),
    ),
    _values(
        "allclose",
        "torch.allclose with a guess",
        lambda s: torch.allclose(s.vector("bob"), s.vector("bob") * 1),
    ),
    _values("max", "item() of the largest", lambda s: s.vector("bob").max().item()),
    _values("loss item", "item() of the loss", lambda s: _model(s)[1].item()),
    Attack(
        "move to mine",
        "move it to one's own worker and get() it there",
        Family.EGRESS,
        _to_mine,
        MOVE,
        refused="place",
    ),
    Attack(
        "move by message",
        "let bob deliver it into a session at one's own worker",
        Family.EGRESS,
        lambda s: _moved_by_message(s, MINE),
        MOVE,
    ),
    Attack(
        "by way of an owner",
        "move it to alice, and from there to one's own worker",
        Family.EGRESS,
        _to_owner,
        MOVE,
        refused="place",
    ),
    Attack(
        "named, and no aggregator",
        "move it to an open worker whom the policy names by mistake",
        Family.EGRESS,
        _misnamed,
        ("receiver: aggregates",),
        refused="policy",
        changes={"bob": {"aggregators": (MINE,)}},
    ),
)


def _moved_by_message(stage: Stage, to: str) -> object:
    there = stage.client(to)
    there.ask(Expect((1,), "bob"))
    bob = _first(stage)
    bob.ask(Move((1,), to, there.session, (1,)))
    return there.ask(Fetch(1)).message
