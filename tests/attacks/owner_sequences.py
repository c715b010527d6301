"""Random operators on one owner's tensors, and whether low alone answers the same.

Whatever fails on values, and whatever is asked afterwards, a worker that never had the
values says the same to the byte: errors, sizes, strides, which tensors have gradients,
headers of what is delivered.

Judge: the transcript, reproduced without the data.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from hypothesis import strategies as st

from obhut.protocol.messages import (
    AnyMessage,
    AnyRequest,
    Backward,
    Count,
    Describe,
    Described,
    Differentiate,
    Expect,
    Free,
    Load,
    Move,
    ReadData,
    ReadGrad,
    Ref,
    Results,
    RetainGrad,
    Run,
    SetRequiresGrad,
    Symbol,
    Value,
    WriteData,
    WriteGrad,
)

from .attack import Attack, Family
from .private_data import Values
from .running import differing, run
from .searching import simplest
from .stage import SW, Stage

Step: TypeAlias = tuple[int, int, int, bool, bool]
"""Which request, on which two objects, the grad mode, and whether the next request
goes in the same batch."""


class _Slot(enum.Enum):
    """What stands for an object."""

    ONE = 1
    TWO = 2
    INDEX = 3


_ONE, _TWO, _INDEX = _Slot

_LEAF, _COUNTS = 4, 5
"""A parameter (8, 8), and private integers (64,), the least and largest among them."""

_OPS: Sequence[tuple[Any, ...]] = (
    ("mul.Tensor", _ONE, _TWO),
    ("add.Tensor", _ONE, _TWO),
    ("exp.default", _ONE),
    ("sigmoid.default", _ONE),
    ("cos.default", _ONE),
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
    ("_linalg_slogdet.default", _ONE),
    ("_linalg_solve_ex.default", _ONE, _TWO),
    ("linalg_eig.default", _ONE),
    ("abs.default", _ONE),
    ("neg.default", _ONE),
    ("cumsum.default", _ONE, 0),
    ("bitwise_left_shift.Tensor", _ONE, _TWO),
    ("pow.Tensor_Scalar", _ONE, 3),
    ("masked_fill_.Scalar", _ONE, _TWO, 1.0),
    ("index.Tensor", _ONE, [_INDEX]),
    ("index_put_.default", _ONE, [_INDEX], _TWO),
    ("mul.out", _ONE, _ONE, {"out": _TWO}),
    ("exp.out", _ONE, {"out": _TWO}),
    ("cumprod.out", _ONE, 0, {"out": _TWO}),
    ("gather.out", _ONE, 0, _INDEX, {"out": _TWO}),
    ("index_select.out", _ONE, 0, _INDEX, {"out": _TWO}),
    # These end the process for some integers.
    ("remainder.Tensor", _ONE, _TWO),
    ("remainder.Tensor_out", _ONE, _INDEX, {"out": _TWO}),
    ("floor_divide.default", _ONE, _INDEX),
    ("lcm.default", _ONE, _INDEX),
    ("gcd.default", _ONE, _TWO),
)
"""Operators, with places for two objects and for private integers."""

_DEADLY = 5
"""How many of them, the last ones, may end the process."""

_CURVED: Sequence[str] = (
    "_linalg_det.default",
    "_linalg_slogdet.default",
    "linalg_cholesky_ex.default",
    "linalg_inv_ex.default",
    "linalg_qr.default",
    "linalg_eig.default",
    "prod.default",
    "sqrt.default",
    "logsumexp.default",
)
"""Operators that are differentiated twice."""


def _curved(which: int, one: int, out: int, written: bool) -> list[AnyRequest]:
    """Differentiate twice, and write into what the graph may need in between."""
    op = _CURVED[which]
    args: list[Value] = [Ref(one)]
    if op == "logsumexp.default":
        args.append([0])
    requests: list[AnyRequest] = [
        Run(f"aten.{op}", args, {}, out, 0, True, describe=True),
        Run("aten.sum.default", [Ref(out)], {}, out + 4, 1, True),
        Differentiate((out + 4,), (None,), (one,), out + 5, True, True),
        Run("aten.zero_.default", [Ref(out)], {}, 0, 0, False),
        Run("aten.sum.default", [Ref(out + 5)], {}, out + 6, 1, True),
        Differentiate((out + 6,), (None,), (one,), out + 7, True, True),
    ]
    if not written:
        del requests[3]
    return requests


def _requests(which: int, one: int, two: int, out: int, grad: bool) -> list[AnyRequest]:
    if which < len(_CURVED):
        return _curved(which, _LEAF if two % 2 else one, out, grad)
    which -= len(_CURVED)
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
        Move((one,), SW, "sums", (out,)),
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
    if which < len(others):
        return [others[which]]
    op, *args = _OPS[which - len(others)]
    stands: Mapping[object, Any] = {_ONE: Ref(one), _TWO: Ref(two), _INDEX: Ref(3)}

    def given(value: Any) -> Any:
        if isinstance(value, list):
            return [given(item) for item in value]
        return stands[value] if isinstance(value, _Slot) else value

    named = args.pop() if isinstance(args[-1], dict) else {}
    kwargs = {name: given(value) for name, value in named.items()}
    at = 0 if named else out
    return [Run(f"aten.{op}", given(args), kwargs, at, 0, grad, describe=True)]


_OTHERS = 17
_KINDS = len(_CURVED) + _OTHERS + len(_OPS)

_place = st.integers(0, 9)


def _sequences(kinds: int) -> st.SearchStrategy[list[Step]]:
    step: st.SearchStrategy[Step] = st.tuples(
        st.integers(0, kinds - 1), _place, _place, st.booleans(), st.booleans()
    )
    return st.lists(step, min_size=1, max_size=14)


SEQUENCES = _sequences(_KINDS)
"""Sequences, the simplest first."""


def alarms(steps: Sequence[Step], off: frozenset[str] = frozenset()) -> Iterator[str]:
    """Play a sequence; yield where low alone would have said something else.

    Args:
        steps: the sequence.
        off: the rules that are off.
    """

    def program(stage: Stage) -> None:
        sums = stage.client(SW, session="sums")
        client = stage.client("bob")
        client.ask(
            Load("rows", "features", 1),
            Load("rows", "target", 2),
            Load("labels", "features", 3),
            Load("counts", "features", _COUNTS),
            Run("aten.mul.Scalar", [Ref(1), 0.5], {}, _LEAF, 1, False),
            SetRequiresGrad(_LEAF, True),
        )
        known = [_COUNTS, 3, 2, 1, _LEAF]
        batch: list[AnyRequest] = []
        for number, (which, one, two, grad, more) in enumerate(steps, start=1):
            out = 10 * number
            first, second = (known[-1 - place % len(known)] for place in (one, two))
            asked = _requests(which, first, second, out, grad)
            if any(isinstance(request, Move) for request in asked):
                with stage.watched():
                    sums.ask(Expect((out,), "bob"))
            batch += asked
            if not more or number == len(steps):
                with stage.watched():
                    known += _made(batch, client.ask(*batch).message)
                gone = {id for one in batch for id in _freed(one)}
                known = [id for id in known if id not in gone] or [_LEAF]
                batch = []

    attack = Attack("a sequence", "", Family.OPERATORS, program, forked=not off)
    yield from differing(run(attack, off, Values.ODD))


def _made(requests: Sequence[AnyRequest], reply: AnyMessage) -> Iterator[int]:
    """Yield the ids of what requests have made."""
    for answer in reply.answers if isinstance(reply, Results) else ():
        request = requests[answer.index]
        if isinstance(answer, Described) and isinstance(
            request, Run | Differentiate | ReadGrad
        ):
            for place, look in enumerate(answer.specs):
                if look is not None and request.out:
                    yield request.out + place
    for request in requests:
        if isinstance(request, ReadData):
            yield request.out


def _freed(request: AnyRequest) -> tuple[int, ...]:
    """Return the ids that a request forgets."""
    return request.ids if isinstance(request, Free | Move) else ()


def search(count: int, off: frozenset[str] = frozenset()) -> list[Step] | None:
    """Try so many sequences; return the simplest one that low alone doesn't answer."""
    tried = _sequences(_KINDS - _DEADLY) if off else SEQUENCES
    return simplest(tried, lambda steps: any(alarms(steps, off)), count)


def report(count: int) -> int:
    """Try so many sequences, and print what came of it; return how much is wrong."""
    found = search(count)
    if found is None:
        print(  # noqa: T201
            f"{count:,} random sequences at an owner; low alone answers all of them"
        )
        return 0
    print(f"WRONG  low alone differs: {next(alarms(found))}\n{found}")  # noqa: T201
    return 1
