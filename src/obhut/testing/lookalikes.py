"""PyTorch's own samples, run on tensors without values against tensors with values.

Rules:

- Both start from tensors that look alike, in storages of their own.
- Compared is what a requester, or what runs later, could tell apart: sizes, strides,
  dtypes, bits, offsets, requires_grad, leaves, names of nodes, views, whether what was
  given was written to, which tensors share a storage; of results, first and second
  gradients.
- What fails with values says nothing and is skipped.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils import _python_dispatch as python_dispatch
from torch.utils import _pytree as pytree

from obhut.errors import OpNotAdmittedError
from obhut.worker.shape_only import like
from obhut.worker.shape_only_calls import shape_only_mode

from .databases import _implementations, _into, _on_a_copy, _takes, module_inputs
from .pairs import seeded

# Any below: PyTorch's databases have no usable types.

Seen: TypeAlias = list[tuple[str, list[Any]]]
"""What was seen at each phase, tensor by tensor."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How samples compare.

    Attributes:
        equal: how many look the same.
        strides: how many differ only in strides or offsets.
        refused: the operators that some were refused for.
        differences: what else differs, as ``phase:aspect``, each with an example.
    """

    equal: int = 0
    strides: int = 0
    refused: frozenset[str] = frozenset()
    differences: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Compared) -> Compared:
        return Compared(
            self.equal + other.equal,
            self.strides + other.strides,
            self.refused | other.refused,
            (*self.differences, *other.differences),
        )


Place: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Makes a tensor of a sample's look, with values or without."""


def with_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy, laid out alike, of a version that begins anew.

    Raises:
        ValueError: if its layout is not that of a dense tensor.
    """
    if tensor.layout is not torch.strided:
        raise ValueError("only dense tensors have strides")
    plain = tensor.detach().resolve_conj().resolve_neg()
    made = torch.empty_like(plain).copy_(plain)
    return made.data.requires_grad_(tensor.requires_grad)


def without_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor without values that looks like such a copy."""
    return like(with_values(tensor))


def compare_call(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    to_graded: Callable[[Any], Any] = lambda result: result,
) -> Compared:
    """Call a function on tensors with values and without, and compare.

    Args:
        call: the function.
        args: its arguments.
        kwargs: its arguments by name.
        to_graded: takes from a result what is differentiated.
    """

    def run(place: Place) -> Seen:
        given, named = _placed((tuple(args), kwargs), place)
        with seeded():
            result = call(*given, **named)
            tensors = _tensors((given, named))
            seen = _seen(result, tensors)
            return seen + _derivatives(_tensors(to_graded(result)), tensors)

    return _compare(run)


def compare_looks(
    op: Any,
    samples: int,
    variant: str = "function",
    dtype: torch.dtype = torch.float32,
) -> Compared:
    """Compare an entry of ``op_db`` on its first samples.

    Args:
        op: the entry.
        samples: how many at most.
        variant: ``function``, ``inplace``, or ``out``.
        dtype: of the samples; the first one that it takes where it takes no such.
    """
    call: Callable[..., Any] | None = op.op
    if variant == "inplace":
        call = op.inplace_variant and _on_a_copy(op.inplace_variant)
    if call is None or (variant == "out" and not op.supports_out):
        return Compared()
    others = (torch.int64, torch.bool, torch.complex64, torch.float64)
    kind = next((one for one in (dtype, *others) if one in op.dtypes), None)
    if kind is None:
        return Compared()
    real = kind.is_floating_point or kind.is_complex
    tracked = op.supports_autograd and real and variant != "out"
    with seeded():
        made = op.sample_inputs_func(op, "cpu", kind, requires_grad=tracked)
        inputs = list(itertools.islice(made, samples))
    total = Compared()
    for one in inputs:
        given = (one.input, *one.args)
        if variant == "out":
            total += _compare_out(op.op, given, one.kwargs)
        else:
            total += compare_call(call, given, one.kwargs, one.output_process_fn_grad)
    return total


def _compare_out(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> Compared:
    """Let an operator write into tensors of the right size, none, and too large."""
    result: Any = None
    with seeded(), contextlib.suppress(Exception):
        result = func(*args, **kwargs)
    tensors = list(result) if isinstance(result, list | tuple) else [result]
    total = Compared()
    if not all(isinstance(one, torch.Tensor) for one in tensors):
        return total
    for shape in (lambda s: s, lambda s: (0,), lambda s: (*s, 2)):
        outs = [torch.zeros(shape(one.shape), dtype=one.dtype) for one in tensors]
        call = _into(func, single=isinstance(result, torch.Tensor))
        total += compare_call(call, (outs, *args), kwargs)
    return total


def compare_module_looks(info: Any, samples: int) -> Compared:
    """Compare an entry of ``module_db``, in training and not.

    Args:
        info: the entry.
        samples: how many at most of each.
    """
    total = Compared()
    for training in (True, False):
        for one in module_inputs(info, training)[:samples]:
            total += _compare(_module_run(info, one, training))
    return total


def _module_run(info: Any, sample: Any, training: bool) -> Callable[[Place], Seen]:
    given = sample.constructor_input
    forward = sample.forward_input

    def run(place: Place) -> Seen:
        # Copies of tensors that a constructor takes have values; place takes them.
        with seeded(), python_dispatch._disable_current_modes():
            args, kwargs = copy.deepcopy((given.args, given.kwargs))
            module = info.module_cls(*args, **kwargs).to(torch.float32).train(training)
        _replace(module, place)
        args, kwargs = _placed((tuple(forward.args), forward.kwargs), place)
        with seeded():
            result = module(*args, **kwargs)
            state = [*_state(module), *_tensors((args, kwargs))]
            outputs = [one for one in _tensors(result) if one.requires_grad]
            if outputs:
                ones = [torch.ones_like(one.detach()) for one in outputs]
                torch.autograd.backward(outputs, ones)
            grads = [one.grad for one in state if one.is_leaf]
            return [*_seen(result, state), ("grad", _described(grads))]

    return run


def compare_optimizer_looks(info: Any) -> Compared:
    """Compare an entry of ``optim_db``: a few steps with each of its settings."""
    total = Compared()
    with seeded():
        samples = info.optim_inputs_func(device="cpu")
    for sample in samples:
        for how in _implementations(info):
            total += _compare(_optimizer_run(info, {**sample.kwargs, **how}))
    return total


def _optimizer_run(info: Any, settings: dict[str, Any]) -> Callable[[Place], Seen]:
    def run(place: Place) -> Seen:
        with seeded():
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
            data, target = place(torch.randn(2, 3)), place(torch.randn(2, 3))
            _replace(model, place)
            taken = [one for one in _state(model) if _takes(info, one)]
            optimizer = info.optim_cls(taken, **settings)

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss: torch.Tensor = ((model(data) - target) ** 2).mean()
                loss.backward()
                return loss

            for _ in range(3):
                if info.step_requires_closure:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
            states = [list(one.values()) for one in optimizer.state.values()]
            return _seen([one.grad for one in taken], [*taken, *_tensors(states)])

    return run


def _state(module: nn.Module) -> list[torch.Tensor]:
    found = [
        one
        for part in module.modules()
        for one in (*part._parameters.values(), *part._buffers.values())
        if one is not None
    ]
    return list({id(one): one for one in found}.values())


def _replace(module: nn.Module, place: Place) -> None:
    """Put tensors of a place where a module has its parameters and buffers."""
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, one in list(tensors.items()):
                if one is None or nn.parameter.is_lazy(one):
                    continue
                if id(one) not in made:
                    made[id(one)] = place(one)
                tensors[name] = made[id(one)]  # type: ignore[assignment] # no Parameter


def _compare(run: Callable[[Place], Seen]) -> Compared:
    """Run with values and without, and compare what is seen."""
    try:
        here = run(with_values)
    except Exception:
        return Compared()
    try:
        with shape_only_mode():
            there = run(without_values)
    except OpNotAdmittedError as error:
        return Compared(refused=frozenset((error.op,)))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return Compared(differences=(("raised", said),))
    found = list(_differences(here, there))
    if not found:
        return Compared(equal=1)
    if all(what.partition(":")[2] in ("stride", "offset") for what, _ in found):
        return Compared(strides=1)
    return Compared(differences=tuple(found))


def _differences(here: Seen, there: Seen) -> Iterator[tuple[str, str]]:
    if [phase for phase, _ in here] != [phase for phase, _ in there]:
        yield "phases", f"{there[-1]}, not {here[-1]}"
        return
    for (phase, ours), (_, theirs) in zip(here, there, strict=True):
        if len(ours) != len(theirs):
            yield f"{phase}:count", f"{len(theirs)}, not {len(ours)}"
            continue
        for mine, other in zip(ours, theirs, strict=True):
            if not isinstance(mine, dict) or not isinstance(other, dict):
                if mine != other:
                    yield f"{phase}:value", f"{other!r}, not {mine!r}"
                continue
            for aspect, value in mine.items():
                if value != other[aspect]:
                    yield f"{phase}:{aspect}", f"{other[aspect]}, not {value}"


def _seen(result: Any, given: list[torch.Tensor]) -> Seen:
    tensors = [*_tensors(result), *given]
    numbers: dict[int, int] = {}
    sharing = [
        numbers.setdefault(one.untyped_storage()._cdata, len(numbers))
        for one in tensors
    ]
    written = [one._version > 0 for one in given]
    return [
        ("forward", _described(pytree.tree_leaves(result))),
        ("given", _described(given)),
        ("given", [{"written": one} for one in written]),
        ("all", [{"sharing": sharing}]),
    ]


def _derivatives(outputs: list[torch.Tensor], given: list[torch.Tensor]) -> Seen:
    """Return how first and second gradients look."""
    seen: Seen = []
    inputs = list({id(t): t for t in given if t.requires_grad and t.is_leaf}.values())
    roots = [one for one in outputs if one.requires_grad]
    for phase, again in (("grad", True), ("second grad", False)):
        if not roots or not inputs:
            break
        ones = [torch.ones_like(one.detach()) for one in roots]
        try:
            grads = torch.autograd.grad(
                roots, inputs, ones, create_graph=again, allow_unused=True
            )
        except OpNotAdmittedError:
            raise
        except RuntimeError as error:
            if again:
                raise
            seen.append((phase, [str(error).split("\n", maxsplit=1)[0]]))
            break
        seen.append((phase, _described(grads)))
        roots = [one for one in grads if one is not None and one.grad_fn is not None]
    return seen


def _described(leaves: Sequence[Any]) -> list[Any]:
    return [
        {
            "shape": tuple(one.shape),
            "stride": tuple(one.stride()) if one.numel() else (),
            "offset": one.storage_offset() if one.numel() else 0,
            "dtype": one.dtype,
            "bits": (one.is_conj(), one.is_neg()),
            "requires_grad": one.requires_grad,
            "is_leaf": one.is_leaf,
            "grad_fn": one.grad_fn.name() if one.grad_fn is not None else None,
            "is_view": one._is_view(),
        }
        if isinstance(one, torch.Tensor)
        else one
        for one in leaves
    ]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [one for one in pytree.tree_leaves(tree) if isinstance(one, torch.Tensor)]


def _placed(tree: Any, place: Place) -> Any:
    """Return a nested value with tensors of a place, the same for the same."""
    made: dict[int, torch.Tensor] = {}

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = place(tensor)
        return made[id(tensor)]

    return pytree.tree_map_only(torch.Tensor, one, tree)
