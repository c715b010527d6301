"""Runs operators at an aggregator, which adds and does nothing else.

Rules:

- Nothing is computed: an operator makes a new sum of contributions out of others,
  or is refused. So no kernel runs on what owners delivered, until a release.
- What is refused depends on operators, shapes and coefficients, never on values.
- Errors of shape and dtype are PyTorch's own, found on meta tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, TypeAlias

import torch

from obhut.errors import CallError, OpNotAdmittedError, RemoteProtocolError
from obhut.guard import coefficients
from obhut.guard.kinds import Combining
from obhut.protocol.messages import NOWHERE, Aggregate, Inline, Ref, Run, Symbol, Value

from .evaluation import ELEMENTWISE
from .executor import operator
from .objects import Objects
from .shapes import Spec, dense, infer
from .sums import Contribution, Stack, Sum, combined
from .tensors import DTYPES, SYMBOLS, from_frame

Summed: TypeAlias = Sum | Stack
"""What an aggregator's objects are."""

Argument: TypeAlias = Any
"""A sum, a number, a list, a dtype: an operator's argument as its handler takes it."""


class Adder:
    """Runs requests on the sums of one session.

    Args:
        store: the session's objects.
    """

    def __init__(self, store: Objects[Summed]) -> None:
        self._store = store

    def run(self, request: Run) -> None:
        """Make the sum that an operator's result stands for.

        Raises:
            OpNotAdmittedError: if the result would be no sum.
        """
        handler = _HANDLERS.get(request.op)
        if handler is None:
            raise OpNotAdmittedError(request.op, _ONLY_SUMS)
        args = [self._resolved(value) for value in request.args]
        kwargs = {name: self._resolved(v) for name, v in request.kwargs.items()}
        look = _inferred(request.op, args, kwargs)
        result = handler(request.op, look, args, kwargs)
        if request.op in _VIEWS and isinstance(result, Sum):
            result = replace(result, shared=True)
            self.share(request.args[0])
        if request.op.split(".")[1].endswith("_"):
            self._write(request.args[0], result)
        elif request.out != NOWHERE:
            self._store[request.out] = result

    def aggregate(self, request: Aggregate) -> None:
        """Let a named aggregator combine contributions; at release it runs once.

        Raises:
            CallError: if there is nothing to combine, or it does not fit together.
        """
        held = [self._store[id] for id in request.ids]
        sums = [one for one in held if isinstance(one, Sum)]
        if not sums or len(sums) != len(held):
            raise CallError("expected contributions to combine, got something else")
        if request.kind == "sum":
            made = self._weighted(request, sums)
        else:
            made = self._elementwise(request, sums)
        self._store[request.out] = made

    def _weighted(self, request: Aggregate, sums: Sequence[Sum]) -> Sum:
        fractions, dtype = check_sum(request, sums)
        if dtype not in _SUMMED | {torch.bool}:
            raise OpNotAdmittedError("sum", f"{dtype} is no dtype for sums")
        long = not all(map(coefficients.fits, fractions))
        if long and sum(fractions) == 1 and min(request.weights) >= 0:
            # Shortened, it is still a mean.
            weights = coefficients.apportioned(request.weights, _SHARES)
            fractions = [Fraction(weight, _SHARES) for weight in weights]
        numbers = [
            replace(one, dtype=torch.uint8) if one.dtype is torch.bool else one
            for one in sums
        ]
        parts = [(_sum("sum", n), f) for n, f in zip(numbers, fractions, strict=True)]
        made = _linear(dense(sums[0].shape, dtype), parts)
        kept = all(f.denominator == 1 for f in fractions) and not any(
            one.dtype.is_floating_point for one in sums
        )
        whole = not dtype.is_floating_point and not dtype.is_complex
        return replace(made, finish="round" if whole and not kept else "")

    def _elementwise(self, request: Aggregate, sums: Sequence[Sum]) -> Sum:
        for one in sums:
            if [f for f in one.terms.values() if f] != [1] or not one.open:
                raise CallError(
                    f"{request.kind[:80]} combines contributions as they came; scale "
                    "them where they are, before they move"
                )
        kind = check_elementwise(request, sums)
        terms = combined((one, Fraction(1)) for one in sums)
        if len(terms) != len(sums):
            raise CallError("expected each contribution once")
        self._check_whose(terms)
        return Sum(terms, sums[0].shape, sums[0].dtype, str(kind))

    def _check_whose(self, terms: Iterable[Contribution]) -> None:
        """Check that owners' contributions are combined with owners' only.

        What a requester adds of their own would be left out in place of an owner's
        value, and two results would tell it.
        """
        if len({bool(contribution.owner) for contribution in terms}) > 1:
            raise CallError(
                "expected what owners delivered, got what you sent yourself among it; "
                "combine the two after get()"
            )

    def share(self, name: Value) -> None:
        """Note that an object has more than one name: it is not written any more."""
        if isinstance(name, Ref):
            held = self._store[name.id]
            if isinstance(held, Sum) and not held.shared:
                self._store.replace(name.id, replace(held, shared=True))

    def _write(self, target: Value, result: Summed) -> None:
        held = self._store[target.id] if isinstance(target, Ref) else None
        if not isinstance(target, Ref) or not isinstance(held, Sum) or held.shared:
            raise OpNotAdmittedError(
                "writing into a tensor that has other names",
                f"{_ONLY_SUMS}; write total = total + x instead of total += x",
            )
        self._store.replace(target.id, result)

    def _resolved(self, value: Value) -> Argument:
        match value:
            case Ref(id=id):
                return self._store[id]
            case list():
                return [self._resolved(leaf) for leaf in value]
            case Symbol(name=name):
                if name not in SYMBOLS:
                    raise RemoteProtocolError(f"no constant is called {name[:80]!r}")
                return SYMBOLS[name]
            case Inline(dtype=dtype, shape=shape, data=data) if not shape:
                return _Number(from_frame(data, dtype, shape))
            case None | bool() | int() | float() | str():
                return value
            case _:
                raise OpNotAdmittedError(
                    "a local tensor at an aggregator", "send it there first"
                )


def check_sum(
    request: Aggregate, values: Sequence[torch.Tensor] | Sequence[Sum]
) -> tuple[list[Fraction], torch.dtype]:
    """Check that values can be added; return their coefficients and the sum's dtype.

    Raises:
        CallError: if they can not.
    """
    looks = {(tuple(one.shape), one.dtype.is_complex) for one in values}
    if len(looks) != 1:
        raise CallError("expected values to add, of one shape, complex all or none")
    dtype = DTYPES.get(request.dtype) if request.dtype else values[0].dtype
    if dtype is None or dtype.is_complex != values[0].dtype.is_complex:
        raise CallError(f"{request.dtype[:80]!r} is no dtype for such a sum")
    weights = request.weights or (1,) * len(values)
    if len(weights) != len(values) or request.divisor < 1:
        raise CallError(
            f"expected {len(values)} weights and a divisor of 1 or more, got "
            f"{len(weights)} and {request.divisor}"
        )
    return [Fraction(weight, request.divisor) for weight in weights], dtype


def check_elementwise(
    request: Aggregate, values: Sequence[torch.Tensor] | Sequence[Sum]
) -> Combining:
    """Check that values can be combined otherwise than to a sum; return how.

    Raises:
        CallError: if they can not.
    """
    if request.kind not in ELEMENTWISE:
        raise CallError(f"no aggregator is called {request.kind[:80]!r}")
    looks = {(tuple(one.shape), one.dtype) for one in values}
    if len(looks) != 1 or not next(iter(looks))[1].is_floating_point:
        raise CallError("expected floating-point values of one shape and dtype")
    kind = Combining(request.kind, request.trim)
    if kind.traits.trims and not 0 < 2 * kind.trim < len(values):
        raise CallError(
            "expected to leave out at least 1 at each end, and less than half of "
            f"{len(values)}, got {request.trim}"
        )
    return kind


class _Number:
    """A local 0-dim tensor, which acts as a number of its dtype."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


_ONLY_SUMS = (
    "an aggregator forms sums of what owners delivered: +, -, multiplication and "
    "division by numbers, stack with mean or sum, reshapes. Compute anything else at "
    "the owners before the move, or here after get()"
)


def single(contribution: Contribution, requires_grad: bool) -> Sum:
    """Return a contribution as a sum of one term."""
    tensor = contribution.tensor
    return Sum(
        {contribution: Fraction(1)},
        tuple(tensor.shape),
        tensor.dtype,
        requires_grad=requires_grad,
    )


def _inferred(
    op: str, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Spec:
    """Return what an operator's one result looks like, by PyTorch's own rules."""

    def described(value: Argument) -> object:
        if isinstance(value, Sum | Stack):
            return dense(value.shape, value.dtype)
        if isinstance(value, list):
            return [described(item) for item in value]
        return value.tensor if isinstance(value, _Number) else value

    named = {name: described(value) for name, value in kwargs.items()}
    results = infer(
        operator(op).call, [described(a) for a in args], named, grad=False
    ).results
    if len(results) != 1 or results[0] is None:
        raise OpNotAdmittedError(op, _ONLY_SUMS)
    return results[0]


# --- what the operators make ------------------------------------------------------
#
# Each takes the overload, what its result looks like, and its arguments.


def _sum(op: str, value: Argument) -> Sum:
    """Return an argument that must be a sum which can take part in another."""
    if not isinstance(value, Sum) or not value.open:
        raise OpNotAdmittedError(op, _ONLY_SUMS)
    if value.dtype not in _SUMMED:
        raise OpNotAdmittedError(
            op, f"sums are made of numbers, and {value.dtype} is no dtype for them"
        )
    return value


def _factor(op: str, value: Argument) -> Fraction:
    """Return a number as an exact fraction, the simplest that rounds to it."""
    if isinstance(value, _Number):
        bits = _DIGITS.get(value.tensor.dtype, 53)
        value = value.tensor.item()
    else:
        bits = 53
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OpNotAdmittedError(op, _ONLY_SUMS)
    if isinstance(value, int):
        return Fraction(value)
    if not math.isfinite(value):
        raise CallError(f"{op}: expected a finite number, got {value}")
    return coefficients.simplest(value, bits)


_SUMMED = frozenset(
    (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.complex128,
        torch.complex64,
    )
)
"""What can be added."""

_SHARES = 2**32 - 1
"""What weights sum to whose shares were too long for an audit."""

_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
"""Binary digits of a dtype's numbers; of any other as many as float64 has."""


def _linear(look: Spec, parts: Sequence[tuple[Sum, Fraction]]) -> Sum:
    for part, _ in parts:
        if part.dtype.is_complex != look.dtype.is_complex:
            raise CallError(
                "expected complex numbers only or real ones only, got "
                + " and ".join(str(p.dtype) for p, _ in parts)
            )
        if math.prod(part.shape) != math.prod(look.shape):
            raise CallError(
                "expected tensors of one shape at an aggregator, got "
                + " and ".join(str(list(p.shape)) for p, _ in parts)
            )
    terms = combined(parts)
    for fraction in terms.values():
        coefficients.check(fraction)
    return Sum(terms, look.shape, look.dtype)


def _add(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Sum:
    sign = -1 if ".sub." in op else 1
    left, right = args
    alpha = sign * _factor(op, kwargs.get("alpha", 1))
    if isinstance(right, Sum) and isinstance(left, Sum):
        if left.shape != right.shape:
            raise CallError(
                "expected tensors of one shape at an aggregator, got "
                f"{list(left.shape)} and {list(right.shape)}"
            )
        return _linear(look, [(_sum(op, left), Fraction(1)), (_sum(op, right), alpha)])
    # sum([a, b, c]) begins with 0 + a.
    if not isinstance(right, Sum | Stack) and _factor(op, right) == 0:
        return _linear(look, [(_sum(op, left), Fraction(1))])
    raise OpNotAdmittedError(op, "add numbers at the owners, or after get()")


def _scale(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Sum:
    left, right = args
    factor = _factor(op, right)
    if ".div" in op:
        if not factor:
            raise CallError(f"{op}: division by zero")
        factor = 1 / factor
    return _linear(look, [(_sum(op, left), factor)])


def _negate(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Sum:
    return _linear(look, [(_sum(op, args[0]), Fraction(-1))])


def _zeros(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Sum:
    return Sum({}, look.shape, look.dtype)


def _same(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Summed:
    """The same elements in the same order, under another name or shape."""
    (value, *_) = args
    if isinstance(value, Stack):
        raise OpNotAdmittedError(op, _ONLY_SUMS)
    if not isinstance(value, Sum) or math.prod(value.shape) != math.prod(look.shape):
        raise OpNotAdmittedError(op, _ONLY_SUMS)
    return replace(value.looking(look.shape, look.dtype), requires_grad=False)


def _convert(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Sum:
    value = args[0]
    if (
        not isinstance(value, Sum)
        or not {value.dtype, look.dtype} <= _SUMMED
        or value.dtype.is_complex != look.dtype.is_complex
    ):
        raise OpNotAdmittedError(op, _ONLY_SUMS)
    cuts = value.dtype.is_floating_point and not look.dtype.is_floating_point
    finish = "trunc" if cuts and not value.finish else value.finish
    return replace(value.looking(look.shape, look.dtype), finish=finish)


def _round(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Sum:
    return replace(_sum(op, args[0]), finish="round")


def _stack(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Stack:
    sums = tuple(_sum(op, value) for value in args[0])
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return Stack(sums, dim % len(look.shape), look.shape, look.dtype)


def _collapse(
    op: str, look: Spec, args: Sequence[Argument], kwargs: Mapping[str, Argument]
) -> Sum:
    """The sum or mean of stacked sums, along the dimension they are stacked on."""
    stack, *rest = args
    if not isinstance(stack, Stack):
        raise OpNotAdmittedError(
            op,
            "at an aggregator, sum and mean go over contributions, "
            "as in torch.stack([a, b, c]).mean(0); sums within one are made at its "
            "owner",
        )
    dims = rest[0] if rest else kwargs.get("dim")
    wanted = {d % len(stack.shape) for d in dims} if dims else set()
    # All dimensions are this one where the sums are numbers.
    if wanted != {stack.dim} and not (not wanted and len(stack.shape) == 1):
        raise OpNotAdmittedError(op, f"contributions are stacked along {stack.dim}")
    share = Fraction(1, len(stack.sums)) if ".mean." in op else Fraction(1)
    return _linear(look, [(one, share) for one in stack.sums])


_VIEWS = frozenset(
    (
        "aten.alias.default",
        "aten.contiguous.default",
        "aten.detach.default",
        "aten.lift_fresh.default",
        "aten.squeeze.default",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.unsqueeze.default",
        "aten.view.default",
        "aten._unsafe_view.default",
        "aten.reshape.default",
        "aten.flatten.using_ints",
    )
)
"""Overloads whose result is another name for the same elements."""

_Handler: TypeAlias = Callable[
    [str, Spec, Sequence[Argument], Mapping[str, Argument]], Summed
]

_HANDLERS: Mapping[str, _Handler] = {
    **dict.fromkeys(
        (
            "aten.add.Tensor",
            "aten.add_.Tensor",
            "aten.sub.Tensor",
            "aten.sub_.Tensor",
        ),
        _add,
    ),
    **dict.fromkeys(
        (
            "aten.mul.Tensor",
            "aten.mul_.Tensor",
            "aten.mul.Scalar",
            "aten.div.Tensor",
            "aten.div_.Tensor",
            "aten.div.Scalar",
        ),
        _scale,
    ),
    "aten.neg.default": _negate,
    **dict.fromkeys(
        (
            "aten.zeros.default",
            "aten.zeros_like.default",
            "aten.new_zeros.default",
        ),
        _zeros,
    ),
    **dict.fromkeys(_VIEWS, _same),
    "aten.clone.default": _same,
    "aten._to_copy.default": _convert,
    "aten.round.default": _round,
    "aten.stack.default": _stack,
    **dict.fromkeys(
        (
            "aten.sum.default",
            "aten.sum.dim_IntList",
            "aten.mean.default",
            "aten.mean.dim",
        ),
        _collapse,
    ),
}
"""What each overload makes. Any other is refused."""
