"""Attacks by operators: by the size of a result, by a failure, by a crash."""

from __future__ import annotations

from collections.abc import Callable

import torch

from obhut.protocol.messages import (
    AnyRequest,
    Fetch,
    Free,
    Load,
    Put,
    Ref,
    Run,
    Symbol,
    TensorData,
    Value,
)
from obhut.worker.tensors import to_frame

from .attack import Attack, Family
from .stage import MINE, RawClient, Stage

SIZES = ("op: dynamic", "owner: low")

LOW = ("owner: low",)

TELLING = 6
"""An element of the vector that has another sign in another world."""


def run(op: str, *args: Value, out: int, **kwargs: Value) -> Run:
    """Return a request to run an operator, and to say what its results look like."""
    return Run(f"aten.{op}", list(args), kwargs, out, 0, True, describe=True)


def at_bob(*requests: AnyRequest) -> Callable[[Stage], object]:
    """Return a program of requests at bob's.

    There 1 is a private vector, 2 private rows (8, 8), 3 private labels (8,) and 4
    private integers (64,).
    """

    def program(stage: Stage) -> object:
        client = private(stage)
        return [client.ask(one).message for one in requests]

    return program


def private(stage: Stage) -> RawClient:
    """Return a client of bob's worker with private tensors as 1, 2, 3 and 4."""
    client = stage.client("bob")
    for id, name in enumerate(("vector", "rows", "labels", "counts"), start=1):
        client.ask(Load(name, "features", id))
    return client


def _size(name: str, *requests: AnyRequest) -> Attack:
    tries = f"learn values from the size of {name}'s result"
    program = at_bob(*requests)
    return Attack(name, tries, Family.OPERATORS, program, SIZES)


def _failure(name: str, *requests: AnyRequest) -> Attack:
    return Attack(
        f"{name} fails",
        f"learn from whether {name} fails on private values",
        Family.OPERATORS,
        at_bob(*requests),
        LOW,
    )


def _crash(name: str, *requests: AnyRequest, also: str = "") -> Attack:
    return Attack(
        f"{name} crashes",
        f"learn from whether {name} ends the worker's process",
        Family.OPERATORS,
        at_bob(*requests),
        (*LOW, also) if also else LOW,
        forked=True,
    )


def _phase(stage: Stage) -> object:
    """Fail backward if a private element is positive: its matrix turns then."""
    sign = stage.vector("bob")[TELLING].sign().float()
    zero, one = sign * 0, sign * 0 + 1
    matrix = torch.stack([torch.stack([zero, sign]), torch.stack([-one, zero])])
    matrix.requires_grad_()
    vectors = torch.linalg.eig(matrix).eigenvectors
    torch.view_as_real(vectors)[..., 0].sum().backward()
    stage.at["bob"].wait()
    return "it did not fail"


def _leftover(stage: Stage) -> object:
    """Read what somebody else's tensor has left in an open worker's memory."""
    secret = torch.randn(4096, dtype=torch.float64, generator=_draw())
    stage.evidence.private["victim"] = [secret]
    victim = stage.client(MINE, "victim")
    data = TensorData("float64", (4096,), 0)
    victim.ask(Put(1, data), frames=[to_frame(secret)])
    victim.ask(Run("aten.mul.Scalar", [Ref(1), 1.0], {}, 2, 1, False))
    victim.ask(Free((1, 2)))
    eve = stage.client(MINE, "eve")
    dtype: dict[str, Value] = {"dtype": Symbol("float64")}
    eve.ask(Run("aten.empty.memory_format", [[4096]], dtype, 1, 1, False))
    return eve.ask(Fetch(1)).message


def _borrowed(stage: Stage) -> object:
    """Ask in the name of a session that somebody else has opened."""
    secret = torch.randn(64, dtype=torch.float64, generator=_draw())
    stage.evidence.private["victim"] = [secret]
    victim = stage.client(MINE, "victim")
    data = TensorData("float64", (64,), 0)
    victim.ask(Put(1, data), frames=[to_frame(secret)])
    eve = stage.client(MINE, "eve", session=victim.session)
    eve._number = victim._number
    return eve.ask(Fetch(1)).message


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(5)


ATTACKS = (
    _size("nonzero", run("nonzero.default", Ref(3), out=10)),
    _size("unique", run("_unique2.default", Ref(3), out=10)),
    _size("unique_consecutive", run("unique_consecutive.default", Ref(3), out=10)),
    _size(
        "unique_dim",
        run("unsqueeze.default", Ref(3), 1, out=10),
        run("unique_dim.default", Ref(10), 0, out=11),
    ),
    _size(
        "masked_select",
        run("gt.Scalar", Ref(1), 0.0, out=10),
        run("masked_select.default", Ref(1), Ref(10), out=11),
    ),
    _size(
        "bincount",
        run("abs.default", Ref(3), out=10),
        run("fmod.Scalar", Ref(10), 97, out=11),
        run("bincount.default", Ref(11), out=12),
    ),
    _size(
        "repeat_interleave",
        run("clamp.default", Ref(3), 0, 3, out=10),
        run("repeat_interleave.Tensor", Ref(10), out=11),
    ),
    Attack(
        "index by a mask",
        "learn how many elements a mask lets through",
        Family.OPERATORS,
        at_bob(
            run("gt.Scalar", Ref(1), 0.0, out=10),
            run("index.Tensor", Ref(1), [Ref(10)], out=11),
        ),
        ("op: guard_checked", "owner: low"),
    ),
    _failure("index_select", run("index_select.default", Ref(2), 0, Ref(3), out=10)),
    _failure("embedding", run("embedding.default", Ref(2), Ref(3), out=10)),
    _failure(
        "nll_loss",
        run("nll_loss_forward.default", Ref(2), Ref(3), None, 1, -100, out=10),
    ),
    _failure(
        "cholesky",
        run("nan_to_num.default", Ref(2), 0.0, 0.0, 0.0, out=10),
        run("linalg_cholesky_ex.default", Ref(10), out=11),
        run("linalg_inv_ex.default", Ref(10), out=14),
        Run(
            "aten._linalg_check_errors.default",
            [Ref(15), "inv"],
            {"is_matrix": True},
            0,
            0,
            False,
        ),
    ),
    _failure(
        "bernoulli",
        run("abs.default", Ref(2), out=10),
        run("clamp.default", Ref(10), 0.0, 8.0, out=11),
        run("div.Scalar", Ref(11), 8.0, out=12),
        run("bernoulli.default", Ref(12), out=13),
    ),
    _failure(
        "scatter",
        run("zeros_like.default", Ref(3), out=10),
        run("scatter_.value", Ref(10), 0, Ref(3), 1, out=0),
    ),
    Attack(
        "backward fails",
        "learn from whether a backward pass fails on private values",
        Family.OPERATORS,
        _phase,
        LOW,
    ),
    _crash(
        "ctc_loss",
        run("zeros.default", [24, 1, 4], out=10),
        run("unsqueeze.default", Ref(3), 0, out=11),
        run("_ctc_loss.default", Ref(10), Ref(11), [24], [8], out=12),
        also="op: guard_refused",
    ),
    _crash(
        "integer division",
        run("eq.Scalar", Ref(3), -5, out=10),
        run("_to_copy.default", Ref(10), out=11, dtype=Symbol("int64")),
        run("rsub.Scalar", Ref(11), 1, 2, out=12),
        run("full_like.default", Ref(3), -(2**63), out=13),
        run("div.Tensor_mode", Ref(13), Ref(12), out=14, rounding_mode="trunc"),
    ),
    _crash(
        "eigvals of NaN",
        run("zeros.default", [8], out=10, dtype=Symbol("complex64")),
        Run("aten.linalg_eigvals.out", [Ref(2)], {"out": Ref(10)}, 0, 0, False),
    ),
    Attack(
        "borrowed session",
        "fetch in a session that somebody else has opened",
        Family.EGRESS,
        _borrowed,
        ("sessions",),
        refused="WorkerClosedError",
    ),
    Attack(
        "memory limit",
        "learn a hidden result's size from how much is held",
        Family.LAUNDERING,
        at_bob(
            Run("aten.nonzero.default", [Ref(3)], {}, 10, 0, False),
            run("zeros.default", [10**8], out=11),
        ),
        SIZES,
    ),
    Attack(
        "leftover memory",
        "read another client's tensor out of unused memory",
        Family.OPERATORS,
        _leftover,
        ("op: zeroed",),
    ),
)
