"""Runs operators behind a guard: whether one fails on values does not show.

Leak: a requester sees errors, and sizes, dtypes and requires_grad of results. Rules:

- What may be told is found before an operator runs, from its row, from checks of its
  arguments and on meta tensors: it depends on sizes, dtypes and numbers only.
- What is raised afterwards depends on values, or may. The results are then NaN (zero
  where there is no NaN) with the sizes, dtypes and the graph of a success; only the
  owner's log says so, and names the operator and the kind of error.
- The graph of a success is had by running the operator on harmless values in place of
  the failed ones; where none are harmless, on nothing: a graph to the same inputs.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.autograd.function import Function
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils import _pytree as pytree

from obhut.errors import CallError, RemoteProtocolError
from obhut.ops.table import Flag, Kind, admitted

from .argument_checks import CHECKS, UNFIT
from .packed import takes_sizes
from .shapes import Inferred, Spec, spec_of

# Any below: operators take and return whatever their schema says.


class Guarded:
    """What a guard must know of an operator.

    Attributes:
        name: its name.
        call: the operator itself.
        names: its arguments' names, in order.
        written: names of the arguments that it changes.
        reshapes: whether its results may have other sizes than what it changes.
        returns: how many results it has, by its schema.
        out: whether it writes its results into ``out`` arguments.
        holds: whether its results are new objects.
        info: which result says whether a factorization succeeded; None if none does.
        check: a check of its arguments' looks, or None.
        unfit: a look at its arguments' values, or None.
        plain: whether nothing but its results has to be looked at.
    """

    __slots__ = (
        "call",
        "check",
        "holds",
        "info",
        "name",
        "names",
        "out",
        "plain",
        "reshapes",
        "returns",
        "unfit",
        "written",
    )

    def __init__(self, name: str) -> None:
        row = admitted(name, guarded=True)
        namespace, packet, overload = name.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        arguments = found._schema.arguments
        self.name = name
        self.call: Callable[..., Any] = takes_sizes(name, found._op)
        self.names = tuple(a.name for a in arguments)
        self.written = tuple(
            a.name for a in arguments if a.alias_info and a.alias_info.is_write
        )
        self.returns = len(found._schema.returns)
        self.out = row.kind is Kind.OUT
        # What a function changes beside its results has sizes of its own.
        self.reshapes = Flag.RESHAPES in row.flags or row.kind is Kind.FUNCTION
        self.holds = row.kind not in (Kind.INPLACE, Kind.OUT, Kind.VALUE)
        results = [r.name for r in found._schema.returns]
        self.info = results.index("info") if "info" in results else None
        self.check = CHECKS.get(name)
        self.unfit = UNFIT.get(name)
        looks = (self.check, self.unfit, self.info)
        self.plain = not self.out and looks == (None, None, None)

    def check_targets(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], known: Inferred
    ) -> None:
        """Check that what is written fits into what is changed in place.

        Raises:
            RuntimeError: in PyTorch's own words.
        """
        if self.out or self.reshapes or not self.written:
            return
        target = self.bind(args, kwargs).get(self.written[0])
        look = known.results[0] if known.results else None
        if isinstance(target, torch.Tensor) and look and target.shape != look.shape:
            raise RuntimeError(
                f"output with shape {list(target.shape)} doesn't match the broadcast "
                f"shape {list(look.shape)}"
            )

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Check what its kernel would trust, of those operators that have a check.

        Raises:
            CallError: if it does not hold.
        """
        if self.check is not None:
            _check(self.check, self.bind(args, kwargs))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


@functools.cache
def guarded(name: str) -> Guarded:
    """Return what a guard must know of the operator of that name.

    Raises:
        OpNotAdmittedError: if the op table does not admit it behind a guard.
    """
    return Guarded(name)


class UnfitError(Exception):
    """Values that a kernel can not take."""


class Guard:
    """Runs operators so that a failure on values does not show.

    Args:
        log: takes a line for the owner, without values.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log

    def call(
        self,
        how: Guarded,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        known: Inferred,
        count: int,
    ) -> Any:
        """Run an operator.

        Args:
            how: the operator.
            args: its arguments.
            kwargs: likewise.
            known: what its results look like.
            count: how many results the client expects; 0 if it does not say.

        Raises:
            CallError, RemoteProtocolError: whatever the values.
        """
        if how.out:
            given = how.bind(args, kwargs)
            looks = [
                (t, tuple(t.shape), t.stride(), int(t.storage_offset()))
                for t in _tensors([given.get(name) for name in how.written])
            ]
            try:
                return self._call(how, args, kwargs, known, count)
            finally:
                for look in looks:
                    _restore(*look)
        return self._call(how, args, kwargs, known, count)

    def _call(
        self,
        how: Guarded,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        known: Inferred,
        count: int,
    ) -> Any:
        expected = known.results
        if count and how.holds and count != len(expected):
            raise RemoteProtocolError(
                f"expected {count} results, {how.name} returns {len(expected)}"
            )
        if how.out:
            _check_outs(how, how.bind(args, kwargs), known)
            _check_no_graph(how, args, kwargs)
        how.check_arguments(args, kwargs)
        try:
            if how.unfit is not None and how.unfit(how.bind(args, kwargs)):
                raise UnfitError
            result = how.call(*args, **kwargs)
        except Exception as error:
            return self.failed(how, args, kwargs, known, error)
        return self.looked(how, args, kwargs, known, result) if how.holds else result

    def looked(
        self,
        how: Guarded,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        known: Inferred,
        result: Any,
    ) -> Any:
        """Return results that look as they must, or what stands for others."""
        if not _as_known(result, known.results):
            return self.failed(how, args, kwargs, known, UnfitError())
        if how.info is not None:
            result[how.info].siblings = [weakref.ref(r) for r in result]
        return result

    def failed(
        self,
        how: Guarded,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        known: Inferred,
        error: Exception,
    ) -> Any:
        """Return what stands for the results of an operator that failed.

        Raises:
            CallError, RuntimeError: where it fails whatever the values.
        """
        given = how.bind(args, kwargs)
        if not _tensors(given):
            raise error  # no value but the client's own
        written = _tensors([given.get(name) for name in how.written])
        if torch.is_grad_enabled():
            _check_written(written)
        told = _structural(how, args, kwargs, written)
        if told is not None:
            raise told
        self.log(f"{how.name} failed: {type(error).__name__}; its results are NaN")
        if not how.returns and not written:
            _spoil_siblings(given)
            return None
        for tensor in written:
            spoil(tensor)  # so that its own values can't fail again
        result = _replay(how, args, kwargs, known, written)
        for tensor in written:
            spoil(tensor)
        if how.holds:
            return result
        if not how.returns:
            return None
        return written[0] if how.returns == 1 else tuple(written)


def _check(check: Callable[[Mapping[str, Any]], None], given: dict[str, Any]) -> None:
    """Check arguments; what a check can not even read is refused too."""
    try:
        check(given)
    except CallError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CallError("behind a guard expected other arguments") from error


def _as_known(result: Any, expected: Sequence[Spec | None]) -> bool:
    """Tell whether results look as they must."""
    leaves = pytree.tree_leaves(result)
    if len(leaves) != len(expected):
        return False
    for leaf, look in zip(leaves, expected, strict=True):
        if look is None:
            if isinstance(leaf, torch.Tensor):
                return False
        elif leaf.shape != look.shape or leaf.dtype is not look.dtype:
            return False
    return True


def _check_outs(how: Guarded, given: dict[str, Any], known: Inferred) -> None:
    """Check that an operator's targets have its results' sizes already.

    Otherwise a failure could leave them with others than a success.
    """
    for argument, look in zip(how.written, known.results, strict=False):
        target = given.get(argument)
        if (
            isinstance(target, torch.Tensor)
            and look is not None
            and target.shape != look.shape
        ):
            raise CallError(
                f"behind a guard out= must have the result's shape: expected "
                f"{look.shape}, got {tuple(target.shape)}"
            )


def _restore(
    target: torch.Tensor, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    """Give a target of ``out=`` its look back, which some kernels change."""
    if target.shape == shape and target.stride() == stride:
        return
    with torch.no_grad():
        values = target.clone()
        target.as_strided_(shape, stride, offset)
        if values.shape == shape:
            target.copy_(values)
        else:
            spoil(target)


def _check_no_graph(
    how: Guarded, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Refuse ``out=`` where autograd records; PyTorch does too, if not always.

    Source: throw_error_out_requires_grad in VariableTypeUtils.h.
    """
    given = how.bind(args, kwargs)
    targets = pytree.tree_leaves([given.get(name) for name in how.written])
    if (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in _tensors(given))
        and any(t.is_floating_point() or t.is_complex() for t in _tensors(targets))
    ):
        raise RuntimeError(
            "functions with out=... arguments don't support automatic "
            "differentiation, but one of the arguments requires grad."
        )


def _tensors(tree: object) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(tree) if isinstance(t, torch.Tensor)]


def _check_written(written: Sequence[torch.Tensor]) -> None:
    """Raise what autograd refuses to write to, because of how it came about.

    Source: check_inplace in VariableTypeUtils.h.
    """
    for tensor in written:
        base = tensor._base
        if tensor.requires_grad and tensor.is_leaf:
            raise RuntimeError(
                "a leaf Variable that requires grad is being used in an in-place "
                "operation."
            )
        if base is not None and base.requires_grad and base.is_leaf:
            raise RuntimeError(
                "a view of a leaf Variable that requires grad is being used in an "
                "in-place operation."
            )


# --- in place of what failed ------------------------------------------------------


class _Instead(Function):
    """Other values in a tensor's place; its gradient passes as if they were its own."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, other: torch.Tensor) -> Any:
        ctx.keeps_nothing = True
        return other.view_as(other)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _Nothing(Function):
    """NaN that looks as told, with a graph to the inputs; gradients are NaN too."""

    @staticmethod
    def forward(ctx: Any, look: Spec, *inputs: torch.Tensor) -> Any:
        ctx.save_for_backward(*inputs)
        return nothing(look)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        inputs = ctx.saved_tensors
        looks = [spec_of(i).plain for i in inputs]
        reached = [t for t in (*inputs, *grads) if t.requires_grad]
        return (
            None,
            *(
                _Nothing.apply(look, *reached)  # type: ignore[no-untyped-call]
                if needed
                else None
                for look, needed in zip(looks, ctx.needs_input_grad[1:], strict=True)
            ),
        )


def nothing(look: Spec) -> torch.Tensor:
    """Return NaN, or zeros, that looks as told."""
    made = torch.empty_strided(look.shape, look.stride, dtype=look.dtype)
    spoil(made)
    return made


def spoil(tensor: torch.Tensor) -> None:
    """Fill a tensor with NaN, or zeros; autograd does not notice."""
    for dim, (size, step) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if step == 0 and size > 1:
            tensor = tensor.detach().narrow(dim, 0, 1)
    with torch.no_grad(), _unsafe_preserve_version_counter(tensor):
        if tensor.is_floating_point() or tensor.is_complex():
            tensor.fill_(float("nan"))
        else:
            tensor.zero_()


def _spoil_siblings(given: dict[str, Any]) -> None:
    """Spoil what an operator returned beside a report of failure."""
    for ref in getattr(given.get("info"), "siblings", ()):
        tensor = ref()
        if tensor is not None and tensor is not given["info"]:
            spoil(tensor)


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    made = torch.zeros_like(tensor)
    if tensor.dim() >= 2:
        made.diagonal(dim1=-2, dim2=-1).fill_(1)
    else:
        made.fill_(1)
    return made


def _filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def fill(tensor: torch.Tensor) -> torch.Tensor:
        return torch.full_like(tensor, value)

    return fill


_HARMLESS: Sequence[
    tuple[
        Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]
    ]
] = (
    (_filled(0.5), _filled(0)),
    (_identity, _filled(0)),
    (_identity, _filled(1)),
    (_filled(0.5), _filled(1)),
    (_filled(0.0), _filled(0)),
)
"""What is tried in place of floating-point tensors and of all others, in order."""


_STRUCTURAL = re.compile(
    r"not implemented for '\w+'"
    r"|is not differentiable with respect to argument"
    r"|the derivative for '\w+' is not implemented"
    r"|refers? to a single memory location"
)
"""What kernels say of dtypes, derivatives and overlapping memory, never of values."""


def _structural(
    how: Guarded,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    written: Sequence[torch.Tensor],
) -> Exception | None:
    """Return why an operator fails whatever the values, or None.

    It is run on harmless values only, in memory that overlaps where the arguments'
    does: what it says then depends on no value.
    """
    targets = {id(t) for t in written}
    found: Exception | None = None
    for number in (0, 1):
        memory: dict[tuple[int, torch.dtype], torch.Tensor] = {}

        def harmless(
            value: Any,
            number: int = number,
            memory: dict[tuple[int, torch.dtype], torch.Tensor] = memory,
        ) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            storage = value.untyped_storage()
            key = (storage._cdata, value.dtype)
            if key not in memory:
                size = storage.nbytes() // value.dtype.itemsize
                memory[key] = torch.full((size,), number, dtype=value.dtype)
            made = memory[key].as_strided(
                value.shape, value.stride(), value.storage_offset()
            )
            tracks = value.requires_grad and id(value) not in targets
            return made.requires_grad_() if tracks else made

        try:
            attempt = pytree.tree_map(harmless, (list(args), dict(kwargs)))
            how.call(*attempt[0], **attempt[1])
        except Exception as error:
            if _STRUCTURAL.search(str(error)) is None:
                return None
            found = found or error
        else:
            return None
    return None if found is None else RuntimeError(str(found).splitlines()[0])


def _replay(
    how: Guarded,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    known: Inferred,
    written: Sequence[torch.Tensor],
) -> Any:
    """Return NaN for the results, with the graph that they would have."""
    if how.out:
        return None
    kept = {id(t) for t in written}
    for attempt in _attempts(args, kwargs, kept):
        try:
            result = how.call(*attempt[0], **attempt[1])
            if not how.holds:
                return None
            if not _as_known(result, known.results):
                continue
            for tensor in _tensors(result):
                spoil(tensor)
        except Exception:  # noqa: S112 # whatever it is, there is another attempt
            continue
        return result
    inputs = [
        t
        for t in pytree.tree_leaves((args, kwargs))
        if isinstance(t, torch.Tensor) and t.requires_grad and id(t) not in kept
    ]
    if not how.holds:
        if torch.is_grad_enabled() and inputs:
            for target in written:
                if target.is_floating_point() or target.is_complex():
                    target.copy_(_graphed(spec_of(target).plain, inputs))
        return None
    made = [None if look is None else _graphed(look, inputs) for look in known.results]
    return made[0] if len(made) == 1 and how.returns == 1 else made


def _graphed(look: Spec, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    if torch.is_grad_enabled() and inputs and look.differentiable:
        made: torch.Tensor = _Nothing.apply(look, *inputs)  # type: ignore[no-untyped-call]
        return made
    return nothing(look)


def _attempts(
    args: Sequence[Any], kwargs: Mapping[str, Any], kept: set[int]
) -> Iterator[tuple[Sequence[Any], Mapping[str, Any]]]:
    """Yield arguments with harmless values in place of those that failed."""
    for floats, others in _HARMLESS:
        made: dict[int, torch.Tensor] = {}

        def harmless(
            value: Any,
            floats: Callable[[torch.Tensor], torch.Tensor] = floats,
            others: Callable[[torch.Tensor], torch.Tensor] = others,
            made: dict[int, torch.Tensor] = made,
        ) -> Any:
            if not isinstance(value, torch.Tensor) or id(value) in kept:
                return value
            if id(value) not in made:
                real = value.is_floating_point() or value.is_complex()
                with torch.no_grad():
                    other = (floats if real else others)(value.detach())
                made[id(value)] = (
                    _Instead.apply(value, other)  # type: ignore[no-untyped-call]
                    if value.requires_grad
                    else other
                )
            return made[id(value)]

        try:
            attempt = pytree.tree_map(harmless, (list(args), dict(kwargs)))
        except RuntimeError:
            return  # there is no memory for it
        yield attempt
