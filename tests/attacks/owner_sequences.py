"""Random operators on one owner's tensors, in worlds that differ in their values.

Whatever fails on values, and whatever is asked afterwards, what comes back must be the
same to the byte: errors, sizes, strides, which tensors have gradients.

Judge: twin worlds.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from hypothesis import strategies as st

from obhut.protocol.messages import (
    AnyRequest,
    Backward,
    Count,
    Describe,
    Differentiate,
    Free,
    Load,
    ReadData,
    ReadGrad,
    Ref,
    RetainGrad,
    Run,
    SetRequiresGrad,
    Symbol,
    Value,
    WriteData,
    WriteGrad,
)

from . import comparison
from .attack import Attack, Family
from .private_data import Values
from .running import run
from .searching import simplest
from .stage import Stage

Step: TypeAlias = tuple[int, int, int, int, bool]
"""Which request, on which objects, into which one, and the grad mode."""


class _Slot(enum.Enum):
    """What stands for an object."""

    ONE = 1
    TWO = 2
    INDEX = 3


_ONE, _TWO, _INDEX = _Slot

_OPS: Sequence[tuple[Any, ...]] = (
    ("mul.Tensor", _ONE, _TWO),
    ("add.Tensor", _ONE, _TWO),
    ("exp.default", _ONE),
    ("sigmoid.default", _ONE),
    ("square.default", _ONE),
    ("sum.default", _ONE),
    ("prod.default", _ONE),
    ("sqrt.default", _ONE),
    ("log.default", _ONE),
    ("cumprod.default", _ONE, 0),
    ("mm.default", _ONE, _TWO),
    ("t.default", _ONE),
    ("view.default", _ONE, [64]),
    ("select.int", _ONE, 0, 1),
    ("index_select.default", _ONE, 0, _INDEX),
    ("gather.default", _ONE, 0, _INDEX),
    ("embedding.default", _ONE, _INDEX),
    ("index_add.default", _ONE, 0, _INDEX, _TWO),
    ("linalg_cholesky_ex.default", _ONE),
    ("linalg_inv_ex.default", _ONE),
    ("_linalg_eigh.default", _ONE),
    ("_linalg_svd.default", _ONE),
    ("_linalg_det.default", _ONE),
    ("linalg_qr.default", _ONE),
    ("linalg_lu_factor_ex.default", _ONE),
    ("bernoulli.default", _ONE),
    ("multinomial.default", _ONE, 3),
    ("max.default", _ONE),
    ("sort.default", _ONE),
    ("nll_loss_forward.default", _ONE, _INDEX, None, 1, -100),
    ("_log_softmax.default", _ONE, 1, False),
    ("mul_.Tensor", _ONE, _TWO),
    ("exp_.default", _ONE),
    ("scatter_.value", _ONE, 0, _INDEX, 1.0),
    ("index_fill_.int_Scalar", _ONE, 0, _INDEX, 1.0),
    ("index_copy_.default", _ONE, 0, _INDEX, _TWO),
    ("index_add_.default", _ONE, 0, _INDEX, _TWO),
    ("clamp_.default", _ONE, 0.0, 1.0),
    ("copy_.default", _ONE, _TWO),
    ("zero_.default", _ONE),
    ("bernoulli_.Tensor", _ONE, _TWO),
)
"""Operators, with places for two objects and for private integers."""


def _requests(step: Step) -> AnyRequest:
    which, one, two, out, grad = step
    one, two, out = one + 1, two + 1, out + 4
    if which < len(_OPS):
        op, *args = _OPS[which]
        stands: Mapping[object, Any] = {
            _ONE: Ref(one),
            _TWO: Ref(two),
            _INDEX: Ref(3),
        }
        given: list[Value] = [
            stands.get(a, a) if isinstance(a, _Slot) else a for a in args
        ]
        return Run(f"aten.{op}", given, {}, out, 0, grad, describe=True)
    others: Sequence[AnyRequest] = (
        Backward((one,), (None,), None, grad, False),
        Backward((one,), (two,), None, grad, grad),
        Backward((one,), (None,), (two,), grad, False),
        Differentiate((one,), (None,), (two,), out, grad, grad),
        Differentiate((one,), (two,), (two,), out, True, True),
        ReadGrad(one, out, describe=True),
        ReadGrad(one, out),
        WriteGrad(one, two),
        ReadData(one, out),
        WriteData(one, two),
        RetainGrad(one),
        SetRequiresGrad(one, grad),
        Describe(one),
        Free((one,)),
        Count(),
        Run(
            "aten._to_copy.default",
            [Ref(one)],
            {"dtype": Symbol("int64" if grad else "float32")},
            out,
            0,
            grad,
            describe=True,
        ),
    )
    return others[which - len(_OPS)]


_id = st.integers(0, 9)
_STEP: st.SearchStrategy[Step] = st.tuples(
    st.integers(0, len(_OPS) + 15), _id, _id, _id, st.booleans()
)
SEQUENCES = st.lists(_STEP, min_size=1, max_size=14)
"""Sequences, the simplest first."""


def alarms(steps: Sequence[Step], off: frozenset[str] = frozenset()) -> Iterator[str]:
    """Play a sequence in all worlds; yield how they can be told apart.

    Args:
        steps: the sequence.
        off: the rules that are off.
    """

    def program(stage: Stage) -> None:
        client = stage.client("bob")
        client.ask(
            Load("rows", "features", 1),
            Load("rows", "target", 2),
            Load("labels", "features", 3),
            Run("aten.mul.Scalar", [Ref(1), 0.5], {}, 4, 1, False),
            SetRequiresGrad(4, True),
        )
        for number, step in enumerate(steps):
            request = _requests((*step[:3], number + 2, step[4]))
            with stage.watched():
                client.ask(request)

    attack = Attack("a sequence", "", Family.OPERATORS, program)
    first = run(attack, off, Values.FIRST)
    for world in (Values.OTHER, Values.ODD):
        other = run(attack, off, world)
        yield from comparison.alarms(first, other, strict=True)


def search(count: int, off: frozenset[str] = frozenset()) -> list[Step] | None:
    """Try so many sequences; return the simplest one that tells worlds apart."""
    return simplest(SEQUENCES, lambda steps: any(alarms(steps, off)), count)


def report(count: int) -> int:
    """Try so many sequences, and print what came of it; return how much is wrong."""
    found = search(count)
    if found is None:
        print(  # noqa: T201
            f"{count:,} random sequences at an owner; none tells worlds apart"
        )
        return 0
    print(f"WRONG  worlds differ: {next(alarms(found))}\n{found}")  # noqa: T201
    return 1
