"""PyTorch's own databases of samples, each entry run remotely against locally.

The databases are shipped in PyTorch's wheel, under ``torch.testing._internal``.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

import obhut

from .conformance import (
    Half,
    Outcome,
    Place,
    Verdict,
    compare,
    compare_call,
    virtual,
    worst,
)
from .pairs import Layout, Pairs, seeded

# Any below: PyTorch's databases have no usable types.


def operators() -> dict[str, Any]:
    """Return the entries of ``op_db`` that take float32, by name."""
    module = importlib.import_module(
        "torch.testing._internal.common_methods_invocations"
    )
    return {op.full_name: op for op in module.op_db if torch.float32 in op.dtypes}


def compare_operator(
    op: Any,
    samples: int,
    variant: str = "function",
    layout: Layout = Layout.ROW_MAJOR,
    place: Place | None = None,
    twice: bool = False,
) -> Outcome:
    """Run an operator on its first samples, remotely and locally.

    In the grad mode that it is called in; with gradients if that is on.

    Args:
        op: an entry of ``op_db``.
        samples: how many at most.
        variant: how it is called: ``function``, ``method`` or ``inplace``.
        layout: how the elements of tensors lie.
        place: makes the worker; by default a virtual one.
        twice: whether to compare gradients of gradients too.
    """
    call: Callable[..., Any] | None = {
        "function": op.op,
        "method": op.method_variant,
        "inplace": op.inplace_variant,
    }[variant]
    if call is None:
        return Outcome(Verdict.SKIPPED, samples=0)
    if variant == "inplace":
        call = _on_a_copy(call)
    made: list[Any] = []
    with seeded():
        # Not op.sample_inputs: that looks through the stack for each sample.
        inputs = op.sample_inputs_func(
            op, "cpu", torch.float32, requires_grad=op.supports_autograd
        )
        made.extend(itertools.islice(inputs, samples))
    return worst(
        [
            compare_call(
                call,
                (sample.input, *sample.args),
                sample.kwargs,
                to_graded=(
                    sample.output_process_fn_grad if torch.is_grad_enabled() else None
                ),
                uninitialised="empty" in op.name,
                blocking=_restores_the_generator(op.op),
                layout=layout,
                place=place,
                twice=twice,
            )
            for sample in made
        ]
    )


def compare_operator_out(op: Any, samples: int, place: Place | None = None) -> Outcome:
    """Let an operator write into given tensors: of the right shape, and empty ones.

    Args:
        op: an entry of ``op_db``.
        samples: how many at most.
        place: makes the worker; by default a virtual one.
    """
    if not op.supports_out or "empty" in op.name:
        return Outcome(Verdict.SKIPPED, samples=0)
    with seeded():
        inputs = op.sample_inputs_func(op, "cpu", torch.float32, requires_grad=False)
        made = list(itertools.islice(inputs, samples))
    outcomes: list[Outcome] = []
    for sample in made:
        result: Any = None
        # Whatever a sample raises locally, it shows nothing.
        with seeded(), contextlib.suppress(Exception):
            result = op.op(sample.input, *sample.args, **sample.kwargs)
        tensors = list(result) if isinstance(result, list | tuple) else [result]
        if not all(isinstance(one, torch.Tensor) for one in tensors):
            continue
        outcomes += [
            compare_call(
                _into(op.op, single=isinstance(result, torch.Tensor)),
                (out, sample.input, *sample.args),
                sample.kwargs,
                blocking=_restores_the_generator(op.op),
                place=place,
            )
            for out in (
                [torch.zeros(one.shape, dtype=one.dtype) for one in tensors],
                [torch.empty(0, dtype=one.dtype) for one in tensors],
            )
        ]
    return worst(outcomes)


def _into(func: Callable[..., Any], single: bool) -> Callable[..., Any]:
    """Return a function that passes its first argument on as ``out``."""

    def call(out: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        result = func(*args, **kwargs, out=out[0] if single else tuple(out))
        return result, [tuple(one.shape) for one in out]

    return call


def _restores_the_generator(func: Callable[..., Any]) -> bool:
    """Tell whether an entry's function seeds, runs, and puts the generator back.

    Then what runs later draws other numbers than what runs at once.
    """
    code = getattr(func, "__code__", None)
    return code is not None and "wrapper_set_seed" in code.co_names


def _on_a_copy(change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that changes a copy of its first argument.

    A leaf that requires a gradient can not be changed in place.
    """

    def call(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        copy = first.clone()
        return copy, change(copy, *args, **kwargs)

    return call


def modules() -> dict[str, Any]:
    """Return the entries of ``module_db``, by name."""
    module = importlib.import_module("torch.testing._internal.common_modules")
    return {info.name: info for info in module.module_db}


def module_inputs(info: Any, training: bool) -> Any:
    """Return the samples of an entry of ``module_db``, the same each time."""
    with seeded():
        return info.module_inputs_func(
            info,
            device="cpu",
            dtype=torch.float32,
            requires_grad=True,
            training=training,
        )


def compare_module(
    info: Any,
    samples: int,
    *,
    grad: bool = True,
    place: Place | None = None,
    twice: bool = False,
) -> Outcome:
    """Run a module on its first samples, in training and not.

    Args:
        info: an entry of ``module_db``.
        samples: how many at most of each.
        grad: with gradients; else, not in training and under ``torch.no_grad()``.
        place: makes the worker; by default a virtual one.
        twice: whether to compare gradients of gradients too.
    """
    outcomes: list[Outcome] = []
    for training in (True, False) if grad else (False,):
        made = module_inputs(info, training)
        with torch.set_grad_enabled(grad):
            outcomes += [
                _one_module(info, one, training, place, twice) for one in made[:samples]
            ]
    return worst(outcomes)


def _one_module(
    info: Any, sample: Any, training: bool, place: Place | None, twice: bool
) -> Outcome:
    worker = (place or virtual)(None)
    pairs = Pairs(worker)
    given = sample.constructor_input
    forward = (tuple(sample.forward_input.args), sample.forward_input.kwargs)

    def build() -> nn.Module:
        with seeded():
            # A constructor may take modules, which it would share.
            args, kwargs = copy.deepcopy((given.args, given.kwargs))
            module: nn.Module = info.module_cls(*args, **kwargs)
            return module.to(torch.float32).train(training)

    def local() -> Half:
        module = build()
        args, kwargs = pairs.local_one(forward)
        return Half(
            lambda: module(*args, **kwargs), lambda: [*pairs.local, *_state(module)]
        )

    def remote() -> Half:
        module = obhut.send(build(), worker)
        args, kwargs = pairs.remote_one(forward)
        return Half(
            lambda: module(*args, **kwargs), lambda: [*pairs.remote, *_state(module)]
        )

    try:
        whole = (lambda result: result) if torch.is_grad_enabled() else None
        return compare(
            local(),
            remote,
            to_graded=whole,
            draws_alike=worker.session.shared,
            twice=twice,
        )
    finally:
        worker.close()


def _state(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def optimizers() -> dict[str, Any]:
    """Return the entries of ``optim_db``, by name."""
    module = importlib.import_module("torch.testing._internal.common_optimizers")
    return {info.optim_cls.__name__: info for info in module.optim_db}


STEPS = 4
"""How many steps an optimizer makes."""


def compare_optimizer(info: Any, place: Place | None = None) -> Outcome:
    """Let an optimizer make a few steps with each of its samples' settings.

    Args:
        info: an entry of ``optim_db``.
        place: makes the worker; by default a virtual one.
    """
    with seeded():
        samples = info.optim_inputs_func(device="cpu")
    return worst(
        [
            _one_optimizer(info, {**sample.kwargs, **how}, place)
            for sample in samples
            for how in _implementations(info)
        ]
    )


def _implementations(info: Any) -> Iterator[dict[str, bool]]:
    """Yield how an optimizer can be told to carry out its steps."""
    yield {}
    if "foreach" in info.supported_impls:
        yield {"foreach": False}
        yield {"foreach": True}
    if "fused" in info.supported_impls and "cpu" in info.supports_fused_on:
        yield {"fused": True}


def _one_optimizer(info: Any, settings: dict[str, Any], place: Place | None) -> Outcome:
    worker = (place or virtual)(None)

    def build(send: bool) -> Half:
        with seeded():
            model = (
                nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten())
                if info.only_supports_sparse_grads
                else nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
            )
            data = (
                torch.tensor([[0], [3]])
                if info.only_supports_sparse_grads
                else torch.randn(2, 3)
            )
            target = torch.randn(2, 3)
        if send:
            obhut.send(model, worker)
            data, target = obhut.send(data, worker), obhut.send(target, worker)
        parameters = [p for p in model.parameters() if _takes(info, p)]
        optimizer = info.optim_cls(parameters, **copy.deepcopy(settings))
        losses: list[torch.Tensor] = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = ((model(data) - target) ** 2).mean()
            loss.backward()
            losses.append(loss)
            return loss

        def run() -> Sequence[torch.Tensor]:
            for _ in range(STEPS):
                if info.step_requires_closure:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
            return losses

        return Half(run, lambda: list(model.parameters()))

    try:
        return compare(
            build(send=False),
            lambda: build(send=True),
            draws_alike=worker.session.shared,
        )
    finally:
        worker.close()


def _takes(info: Any, parameter: torch.Tensor) -> bool:
    """Tell whether an optimizer takes a parameter; Muon takes matrices only."""
    return parameter.dim() == 2 or info.optim_cls is not torch.optim.Muon
