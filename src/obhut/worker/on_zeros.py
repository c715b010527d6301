"""What the real kernel says, asked with a few zeros, where meta tensors do not tell.

A meta kernel multiplies a matrix of float64 by one of float32, or takes targets of any
integer type; the real kernel fails. Of bfloat16 it saves statistics as float32. It
writes to memory that several elements share. And its words are often not PyTorch's.

::

    checked(overload, [matrix, layer], {}, results)    # RuntimeError, or results
    in_words(overload, [matrix, layer], {}, error)     # the same error, as told by CPUs

Rules:

- The real kernel runs on zeros, of the dtypes that the arguments have: what it says
  depends on no value. Nothing large is allocated: large sizes are cut to 2, or nothing
  is asked.
- An error is believed if it speaks of dtypes, and if zeros all of float32 do not raise
  the same: else it is about sizes, or about zeros.
- Nothing is remembered here: an answer depends on this question only.
- What draws random numbers is not asked: it would draw some. Nor are derivatives, and
  what else trusts its arguments: indices in them are values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .aftermath import Made
from .overloads import Overload
from .shapes import Part, Spec, dense, extent, outside_dispatch, run_on_meta, spec

# Any below: operators take and return whatever their schema says.

SMALL = 1 << 17
"""Bytes that the zeros and the results on them may take; a number in arguments, too."""

SHARED = 1 << 24
"""Bytes that memory may take of which an operator reads one part and writes another."""

_TOLD = re.compile(
    r"dtype|data ?type|scalar ?type|not implemented for '|type as|same type"
    r"|be (?:of )?(?:type|long|integ|float|bool|byte)|tensors? of type|tensors used as"
    r"|(?:Float|Double|Half|Int|Long|Bool|Byte|Char|Short|BFloat16|ComplexFloat)Type"
    r"|(?:float|floating|integer|integral|complex|boolean|bool)[- ](?:point )?"
    r"(?:tensor|input|type|value)|result type|promot",
    re.IGNORECASE,
)
"""What errors about dtypes say."""

_USUAL = (frozenset((torch.float32,)), frozenset((torch.float64,)))
"""What every operator takes that takes anything."""


def checked(
    overload: Overload,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    results: Any,
) -> Any:
    """Return an operator's results with the dtypes that they really have.

    Args:
        overload: the operator.
        args: its arguments, with a ``Spec`` or a ``Part`` for each tensor.
        kwargs: likewise.
        results: what it returns, with a ``Made`` for each tensor.

    Raises:
        RuntimeError: in PyTorch's words, if it does not take such arguments.
    """
    looks = _looks((args, kwargs))
    dtypes = frozenset(look.dtype for look in looks)
    if not dtypes or not overload.asked or dtypes in _USUAL:
        return results
    made = [one.look for one in _leaves(results, Made)]
    told = _ask(overload, args, kwargs, [*looks, *made])
    if isinstance(told, str):
        raise _error(told)
    return results if told is None else _corrected(results, iter(told))


def check_memory(
    overload: Overload, args: Sequence[object], kwargs: Mapping[str, object]
) -> None:
    """Check that nothing is written of which elements share their memory.

    Args:
        overload: the operator.
        args: its arguments, with a ``Part`` for each tensor where some share memory.
        kwargs: likewise.

    Raises:
        RuntimeError: in PyTorch's words, if something is.
    """
    if not (overload.writes and overload.asked):
        return
    tensors = _leaves((args, kwargs), Spec, Part)
    if any(isinstance(one, Part) or _overlaps(one) for one in tensors):
        sizes = [
            one.nbytes if isinstance(one, Part) else extent(one, 0) for one in tensors
        ]
        if sum(sizes) <= SHARED:
            said = _said(overload.call, (list(args), dict(kwargs)))
            if isinstance(said, str) and "single memory location" in said:
                raise RuntimeError(said)


def in_words(
    overload: Overload,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    error: RuntimeError,
) -> RuntimeError:
    """Return what the real kernel says where a meta kernel has raised an error.

    Not where sizes are large, since what the real kernel does not refuse it does.
    """
    looks = _looks((args, kwargs))
    small = looks and sum(look.nbytes for look in looks) <= SMALL
    numbers = [abs(one) for one in _leaves((args, kwargs), int)]
    if overload.asked and small and max(numbers, default=0) <= SMALL:
        said = _said(overload.call, (list(args), dict(kwargs)))
        if isinstance(said, str):
            return _error(said)
    return error


def _error(said: str) -> RuntimeError:
    """Return an error of the class that PyTorch raises with such words."""
    missing = "not implemented for '" in said
    return NotImplementedError(said) if missing else RuntimeError(said)


def _overlaps(look: Spec) -> bool:
    """Tell whether several elements are in one place, as those of ``expand`` are."""
    return any(
        n > 1 and not step for n, step in zip(look.shape, look.stride, strict=True)
    )


def _corrected(results: Any, dtypes: Iterator[torch.dtype | None]) -> Any:
    """Return nested results with these dtypes, in order."""
    if isinstance(results, Made):
        look, dtype = results.look, next(dtypes, None)
        if dtype is None or dtype is look.dtype or results.same:
            return results
        right = spec(look.shape, look.stride, dtype, bits=look.bits)
        return results._replace(look=right, nbytes=None)
    if isinstance(results, list):
        return [_corrected(one, dtypes) for one in results]
    if isinstance(results, tuple):
        return tuple(_corrected(one, dtypes) for one in results)
    return results


def _leaves(tree: object, *kinds: type) -> list[Any]:
    leaves = pytree.tree_leaves(tree, is_leaf=lambda one: isinstance(one, kinds))
    return [leaf for leaf in leaves if isinstance(leaf, kinds)]


def _looks(tree: object) -> list[Spec]:
    """Return the specifications in arguments or results."""
    return [
        leaf if isinstance(leaf, Spec) else leaf.spec
        for leaf in _leaves(tree, Spec, Part)
    ]


def _ask(
    overload: Overload,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    looks: Sequence[Spec],
) -> str | tuple[torch.dtype | None, ...] | None:
    """Return what the operator says of such dtypes, or which its results have.

    None if it can't be told.
    """
    cut = sum(look.nbytes for look in looks) > SMALL
    small = _mapped((list(args), dict(kwargs)), _smaller(cut, None))
    if cut and not _fits(overload, small):
        return None
    said = _said(overload.call, small)
    if not isinstance(said, str):
        return said
    usual = _mapped(small, _smaller(False, torch.float32))
    return said if _TOLD.search(said) and _said(overload.call, usual) != said else None


def _said(call: Callable[..., Any], given: Any) -> str | tuple[torch.dtype | None, ...]:
    """Return the error that an operator raises on zeros, or its results' dtypes."""
    with (
        torch._C.DisableTorchFunction(),
        outside_dispatch(),
        torch.no_grad(),
    ):
        zeros = _mapped(given, _zeros())
        try:
            result = call(*zeros[0], **zeros[1])
        except Exception as error:
            return str(error).split("\nException raised from")[0]
    leaves = pytree.tree_leaves(result)
    return tuple(one.dtype for one in leaves if isinstance(one, torch.Tensor))


def _fits(overload: Overload, small: Any) -> bool:
    """Tell whether an operator's results on smaller arguments are small too."""
    try:
        ran = run_on_meta(overload.call, small[0], small[1], grad=False)
    except Exception:
        return False
    leaves = pytree.tree_leaves(ran.result)
    made = [one for one in leaves if isinstance(one, torch.Tensor)]
    return sum(one.nbytes for one in made) <= SMALL


def _mapped(tree: Any, change: Callable[[Spec | Part], object]) -> Any:
    """Return nested arguments with other things in place of specifications."""
    if isinstance(tree, Spec | Part):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _mapped(value, change) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_mapped(value, change) for value in tree]
    return torch.device("cpu") if isinstance(tree, torch.device) else tree


def _smaller(cut: bool, dtype: torch.dtype | None) -> Callable[[Spec | Part], object]:
    """Return a function that makes specifications smaller, and of one dtype."""

    def smaller(given: Spec | Part) -> Spec:
        look = given if isinstance(given, Spec) else given.spec
        kind = dtype or look.dtype
        if not cut:
            return spec(look.shape, look.stride, kind)
        return dense(tuple(min(size, 2) for size in look.shape), kind)

    return smaller


def _zeros() -> Callable[[Spec | Part], object]:
    """Return a function that makes zeros, in the same memory where memory is shared."""
    memory: dict[int, torch.Tensor] = {}

    def zeros(given: Spec | Part) -> torch.Tensor:
        if isinstance(given, Part):
            look = given.spec
            flat = memory.get(given.storage)
            if flat is None:
                flat = torch.zeros(given.nbytes, dtype=torch.uint8, device="cpu")
                memory[given.storage] = flat
            made = torch.empty(0, dtype=look.dtype, device="cpu")
            storage = flat.untyped_storage()
            return made.set_(storage, given.offset, look.shape, look.stride)
        flat = torch.zeros(extent(given, 0), dtype=torch.uint8, device="cpu")
        made = torch.empty(0, dtype=given.dtype, device="cpu")
        return made.set_(flat.untyped_storage(), 0, given.shape, given.stride)

    return zeros
