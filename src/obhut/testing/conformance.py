"""The same code run twice, on remote tensors and on local ones, and compared.

Rules:

- Both runs get copies of the same values, dense and row-major, and the same seed;
  a virtual worker draws from this process's generator.
- Everything that a caller can observe is compared: results, what they claim to
  look like, what requires a gradient, the gradients themselves (that there is
  none, too), and what the inputs hold afterwards.
- A run that fails where the local one did not is *refused* if the error is
  obhut's own and names what it refuses. Anything else is *different*.
- What fails locally says nothing and is skipped.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.utils import _pytree as pytree

import obhut
from obhut import errors
from obhut.client.dispatch import describe, to_spec
from obhut.client.transfer import fetch
from obhut.client.virtual_worker import VirtualWorker
from obhut.client.workers import RemoteWorker
from obhut.errors import ObhutError

from .pairs import Layout, Pairs, seeded

# Any below: samples hold whatever PyTorch's functions take.


Place: TypeAlias = Callable[[bool | None], RemoteWorker]
"""Makes a worker, which waits after each request or does not. It is closed."""


def virtual(blocking: bool | None = None) -> RemoteWorker:
    """Return a new virtual worker."""
    return VirtualWorker(id="conformance", blocking=blocking)


class Verdict(enum.StrEnum):
    """How two runs compare.

    Attributes:
        EQUAL: nothing that was looked at differs.
        REFUSED: the remote run raised an error of obhut's that names why.
        DIFFERENT: something differs, or another error was raised.
        SKIPPED: the local run failed, or there was nothing to run.
    """

    EQUAL = "equal"
    REFUSED = "refused"
    DIFFERENT = "different"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the samples of one operator, module or optimizer compare.

    Attributes:
        verdict: the worst of its samples'.
        samples: how many were compared.
        error: the class of the error that refused one, or empty.
        detail: what differs, or the error's text; empty if equal.
    """

    verdict: Verdict
    samples: int = 1
    error: str = ""
    detail: str = ""

    def __str__(self) -> str:
        said = f"{self.error}: {self.detail}" if self.error else self.detail
        return f"{self.verdict}{': ' if said else ''}{said}"


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Return what the outcomes of several samples amount to."""
    compared = [one for one in outcomes if one.verdict is not Verdict.SKIPPED]
    samples = sum(one.samples for one in compared)
    for verdict in (Verdict.DIFFERENT, Verdict.REFUSED):
        for one in compared:
            if one.verdict is verdict:
                return Outcome(verdict, samples, one.error, one.detail)
    return Outcome(Verdict.EQUAL if compared else Verdict.SKIPPED, samples)


@dataclass(slots=True)
class Observed:
    """What a caller can observe of one run.

    Attributes:
        form: how the results are nested, by the classes of what holds them.
        values: the results, flattened; tensors as local ones.
        looks: for each tensor among them, its requires_grad and is_leaf.
        layouts: for each tensor among them, whether it is dense and row-major.
        claims: where a remote tensor looks otherwise than its worker says.
        graded: whether a backward pass was run.
        grads: for each input that requires one, its gradient.
        seconds: likewise, the gradient of these; None if nothing was differentiated
            twice.
        inputs: the inputs' values afterwards.
    """

    form: str = ""
    values: list[Any] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    claims: list[str] = field(default_factory=list)
    graded: bool = False
    grads: list[torch.Tensor | None] = field(default_factory=list)
    seconds: list[torch.Tensor | None] | None = None
    inputs: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Half:
    """One of two runs.

    Attributes:
        call: what is run; what it returns is compared.
        inputs: the tensors that it was given or holds, to be looked at afterwards.
    """

    call: Callable[[], Any]
    inputs: Callable[[], Sequence[torch.Tensor]]


def compare(
    local: Half,
    remote: Callable[[], Half],
    *,
    to_graded: Callable[[Any], Any] | None = None,
    uninitialised: bool = False,
    draws_alike: bool = True,
    twice: bool = False,
) -> Outcome:
    """Make two runs and compare all that can be observed.

    Args:
        local: the run that the other is held to.
        remote: makes the other, which may need what can not be sent.
        to_graded: makes of the results what is to be differentiated, for results
            that are unique only up to a sign or a phase. None: no gradients.
        uninitialised: whether locally the results are uninitialised memory, in
            whose place the worker gives zeros.
        draws_alike: whether the worker draws the random numbers that this process
            would. If not, what draws some is skipped.
        twice: whether to compare gradients of gradients too.
    """
    try:
        here = observe(local, to_graded, twice=twice)
    except Exception:  # whatever a sample raises locally, it shows nothing
        return Outcome(Verdict.SKIPPED)
    if not draws_alike and _drew():
        return Outcome(Verdict.SKIPPED, detail="it draws random numbers")
    if uninitialised:
        here.values = [
            torch.zeros_like(value) if isinstance(value, torch.Tensor) else value
            for value in here.values
        ]
    try:
        there = observe(remote(), to_graded, here, twice=twice)
    except ObhutError as error:
        verdict = Verdict.REFUSED if isinstance(error, _NAMING) else Verdict.DIFFERENT
        return Outcome(verdict, 1, type(error).__name__, str(error))
    except Exception as error:  # whatever it is, no local run raised it
        said = f"raised {type(error).__name__}: {error}"
        return Outcome(Verdict.DIFFERENT, detail=said)
    found = [*there.claims, *_differences(here, there)]
    if found:
        return Outcome(Verdict.DIFFERENT, detail="; ".join(found))
    return Outcome(Verdict.EQUAL)


def compare_call(
    call: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    to_graded: Callable[[Any], Any] | None = None,
    uninitialised: bool = False,
    blocking: bool = False,
    layout: Layout = Layout.ROW_MAJOR,
    place: Place | None = None,
    twice: bool = False,
) -> Outcome:
    """Call a function with local and with remote tensors and compare.

    Args:
        call: the function. Without tensors among its arguments its remote run is
            inside ``with worker:``.
        args: its arguments, all local.
        kwargs: its arguments by name.
        to_graded: as in ``compare``.
        uninitialised: as in ``compare``.
        blocking: run each operator at its line, for functions that put the
            generator back when they return.
        layout: how the elements of the arguments lie.
        place: makes the worker; by default a virtual one.
        twice: as in ``compare``.
    """
    worker = (place or virtual)(blocking)
    if blocking and not worker.session.shared:
        worker.close()
        return Outcome(Verdict.SKIPPED, 0, detail="it draws random numbers")
    pairs = Pairs(worker, layout)
    here, named_here = pairs.local_one((tuple(args), kwargs))

    def remote() -> Half:
        there, named_there = pairs.remote_one((tuple(args), kwargs))

        def run() -> Any:
            if pairs.remote:
                return call(*there, **named_there)
            with worker:
                return call(*there, **named_there)

        return Half(run, lambda: pairs.remote)

    try:
        return compare(
            Half(lambda: call(*here, **named_here), lambda: pairs.local),
            remote,
            to_graded=to_graded,
            uninitialised=uninitialised,
            draws_alike=worker.session.shared,
            twice=twice,
        )
    finally:
        worker.close()


def _drew() -> bool:
    """Tell whether random numbers were drawn since this process was last seeded."""
    now = torch.get_rng_state()
    with seeded():
        return not torch.equal(now, torch.get_rng_state())


_NAMING = (
    errors.LocationError,
    errors.NotSendableError,
    errors.OpNotAdmittedError,
    errors.RemoteExecutionError,
    errors.UnsupportedError,
)
"""Errors that name the operator, or what else they refuse."""


def observe(
    run: Half,
    to_graded: Callable[[Any], Any] | None,
    expects: Observed | None = None,
    *,
    twice: bool = False,
) -> Observed:
    """Run something and return all that its caller can observe.

    Args:
        run: what to run, and its inputs, local or remote.
        to_graded: as in ``compare``.
        expects: what a run before has shown to be possible; None to find out.
        twice: whether to differentiate gradients too.
    """
    seen = Observed()
    with seeded():
        result = run.call()
        leaves = pytree.tree_leaves(result)
        seen.form = _form(result)
        seen.looks = [
            f"requires_grad={leaf.requires_grad}, is_leaf={leaf.is_leaf}"
            for leaf in leaves
            if isinstance(leaf, torch.Tensor)
        ]
        seen.values = _values(leaves)
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                seen.layouts.append(_layout(leaf))
                seen.claims.extend(_false_claims(leaf))
        inputs = run.inputs()
        tracked = [one for one in inputs if one.requires_grad and one.is_leaf]
        if to_graded is not None and twice:
            try:
                seen.seconds = _values(_twice(to_graded(result), tracked))
            except Exception:  # as in compare
                if expects is not None and expects.seconds is not None:
                    raise
        if to_graded is not None and (expects is None or expects.graded):
            try:
                seen.graded = _backward(to_graded(result))
            except Exception:  # as in compare
                if expects is not None:
                    raise
        if seen.graded:
            seen.grads = _values([one.grad for one in tracked])
        seen.inputs = _values(inputs)
    return seen


def _backward(result: Any) -> bool:
    """Differentiate what can be; tell whether there was anything."""
    outputs = [
        leaf
        for leaf in pytree.tree_leaves(result)
        if isinstance(leaf, torch.Tensor) and leaf.requires_grad
    ]
    if not outputs:
        return False
    torch.autograd.backward(outputs, [_weights(output) for output in outputs])
    return True


def _twice(result: Any, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
    """Return what there is of the gradients' gradients."""
    roots = [leaf for leaf in pytree.tree_leaves(result) if _is_tracked(leaf)]
    grads: Sequence[Any] = ()
    for again in (True, False):
        if roots and inputs:
            weights = [_weights(root) for root in roots]
            grads = torch.autograd.grad(
                roots,
                inputs,
                weights,
                retain_graph=True,
                create_graph=again,
                allow_unused=True,
            )
        roots = [grad for grad in grads if _is_tracked(grad)]
        if not roots:
            return ()
    return grads


def _is_tracked(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


def _weights(output: torch.Tensor) -> torch.Tensor:
    """Return the gradient to begin with: unequal, since a plain sum hides errors.

    The gradient of a sum is the same whatever the order of the elements, and zero
    for whatever is normalised.
    """
    weights = torch.linspace(0.5, 1.5, output.numel()).to(output.dtype)
    weights = weights.reshape(output.shape)
    if isinstance(output, obhut.RemoteTensor):
        return obhut.send(weights, output.location)
    return weights


def _form(value: Any) -> str:
    """Return how a result is nested, by the classes of what holds its parts."""
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return f"{type(value).__name__}({', '.join(map(_form, value))})"
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={_form(one)}' for key, one in value.items())})"
    return "Tensor" if isinstance(value, torch.Tensor) else type(value).__name__


def _values(leaves: Sequence[Any]) -> list[Any]:
    """Return detached local copies of tensors, and all else as it is."""
    # Detached, so that no gradient comes along.
    remote = [leaf.detach() for leaf in leaves if isinstance(leaf, obhut.RemoteTensor)]
    helds = [leaf._held for leaf in remote if isinstance(leaf, obhut.RemoteTensor)]
    fetched = iter(fetch(helds).result())
    return [
        next(fetched)
        if isinstance(leaf, obhut.RemoteTensor)
        else leaf.detach().clone()
        if isinstance(leaf, torch.Tensor)
        else leaf
        for leaf in leaves
    ]


def _layout(tensor: torch.Tensor) -> str:
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    return "row-major" if tensor.is_contiguous() else "other strides"


def _false_claims(tensor: torch.Tensor) -> list[str]:
    """Return in what a remote tensor looks otherwise than its worker says."""
    if not isinstance(tensor, obhut.RemoteTensor):
        return []
    true = to_spec(describe(tensor._held))
    claims: list[tuple[str, object, object]] = [
        ("shape", tuple(tensor.shape), true.shape),
        ("dtype", tensor.dtype, true.dtype),
        ("requires_grad", tensor.requires_grad, true.requires_grad),
        (
            "strides",
            _strides(tensor.shape, tensor.stride()),
            _strides(true.shape, true.stride),
        ),
    ]
    return [
        f"claims {what} {claimed}, the worker has {have}"
        for what, claimed, have in claims
        if claimed != have
    ]


def _strides(shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Return the strides that mean something: of sizes above 1."""
    if 0 in shape:
        return ()
    return tuple(step for size, step in zip(shape, stride, strict=True) if size > 1)


def _differences(here: Observed, there: Observed) -> list[str]:
    found: list[str] = []
    if here.form != there.form:
        found.append(f"the result is a {there.form}, not a {here.form}")
        return found
    for what, ours, theirs in (
        ("result", here.looks, there.looks),
        ("result", here.layouts, there.layouts),
    ):
        for position, (local, remote) in enumerate(zip(ours, theirs, strict=True)):
            if local != remote:
                found.append(f"{what} {position} has {remote}, not {local}")
    for what, locals_, remotes in (
        ("result", here.values, there.values),
        ("gradient", here.grads, there.grads),
        ("second gradient", here.seconds or [], there.seconds or []),
        ("input", here.inputs, there.inputs),
    ):
        if len(locals_) != len(remotes):
            found.append(f"{len(remotes)} {what}s, not {len(locals_)}")
            continue
        for position, (local, remote) in enumerate(zip(locals_, remotes, strict=True)):
            said = difference(local, remote)
            if said:
                found.append(f"{what} {position}: {said}")
    return found


def difference(local: Any, remote: Any) -> str:
    """Return in what two values differ, or an empty text."""
    if not isinstance(local, torch.Tensor) or not isinstance(remote, torch.Tensor):
        if type(local) is type(remote) and (
            local == remote
            or (isinstance(local, float) and math.isnan(local) and math.isnan(remote))
        ):
            return ""
        return f"{remote!r}, not {local!r}"
    if local.shape != remote.shape or local.dtype != remote.dtype:
        return (
            f"{list(remote.shape)} of {remote.dtype}, not {list(local.shape)} of "
            f"{local.dtype}"
        )
    if local.dtype is torch.complex32:  # it has no comparison of its own
        local, remote = local.to(torch.complex64), remote.to(torch.complex64)
    if torch.equal(local, remote):
        return ""
    try:
        torch.testing.assert_close(remote, local, equal_nan=True)
    except AssertionError as error:
        return str(error).split("\n", maxsplit=1)[0] + _where(local, remote)
    return ""


def _where(local: torch.Tensor, remote: torch.Tensor) -> str:
    off = ~torch.isclose(local, remote, equal_nan=True)
    count = int(off.sum())
    first = remote[off].flatten()[:1].tolist(), local[off].flatten()[:1].tolist()
    return (
        f" ({count} of {local.numel()} elements, the first {first[0]} not {first[1]})"
    )
