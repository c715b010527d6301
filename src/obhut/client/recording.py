"""Records what a function does to one batch of rows, as a program.

::

    recorded = record(step, {"model": model, "optimizer": optimizer}, rows)
    recorded.program                             # what travels
    recorded.sites                               # of each line, the user's line

Rules:

- The function runs as it is, on copies, against a worker of this process that has no
  values. Nothing is sent, no data is there, and what is passed stays as it was.
- It runs twice for each size of a batch: the second time is what every batch does, and
  what it takes over from the first would be lost. It is recorded at several sizes, and
  what differs must be a number that follows from the size.
- A step of an optimizer is one line: what it does is the worker's.
- What can't be recorded is refused with the user's line.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from msgspec import structs
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from obhut.errors import CallError, ObhutError, OpNotAdmittedError, ProgramError
from obhut.guard.policy import Quorum
from obhut.programs import program as programs
from obhut.programs.checks import check, check_optimizer
from obhut.programs.fitting import BranchError, fit
from obhut.programs.program import Input, Kind, Line, Program, Result
from obhut.programs.requests import line_of
from obhut.programs.text import digest, read, write
from obhut.protocol.codec import Frame
from obhut.protocol.limits import INLINE_BYTES
from obhut.protocol.messages import (
    AnyMessage,
    AnyRequest,
    Batch,
    Describe,
    Described,
    Fetch,
    Free,
    Inline,
    Put,
    ReadGrad,
    Ref,
    Results,
    Run,
)
from obhut.transports.local import Arrived, LocalNetwork, LocalShell, LocalTransport
from obhut.worker.core import Worker
from obhut.worker.roles import Owner
from obhut.worker.shape_only import shape_only
from obhut.worker.shapes import Spec, dense
from obhut.worker.tensors import DTYPE_NAMES, DTYPES

from .call_site import CallSite, current_call_site, raised_at
from .forwards import place
from .held import Held
from .modules import copy_module
from .ratio import Ratio
from .remote_tensor import RemoteTensor
from .workers import RemoteWorker

# Any below: what the recorded function takes and returns.

Given: TypeAlias = Mapping[str, Any]
"""Arguments by name: modules, optimizers, and what is no tensor."""

_SIZES = (29, 31, 37)
"""Rows of the batches that are recorded: no layer is so wide by chance."""

_LARGE = 64
"""Rows of a batch for which it is recorded again, and compared."""

_SMALL = (16, 8, 4, 2, 1)
"""Likewise, down to the first of another program."""


class Rows(NamedTuple):
    """What each row of an argument looks like.

    Attributes:
        dtype: the dtype.
        shape: the sizes of one row.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]


class Recorded(NamedTuple):
    """A program, and where it came from.

    Attributes:
        program: the program.
        text: its text.
        digest: the text's.
        sites: the user's line of each of its lines.
        shapes: of each result, the sizes of its numerator.
        dtypes: of each result, the dtype of what the function returned.
        tensors: of each input that is no rows, the parameter or buffer that it is.
        optimizers: the optimizers, in the program's order.
    """

    program: Program
    text: str
    digest: str
    sites: tuple[CallSite | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    tensors: tuple[torch.Tensor, ...]
    optimizers: tuple[Optimizer, ...]

    def __str__(self) -> str:
        return self.text.rstrip()


def record(
    function: Callable[..., Any], given: Given, rows: Mapping[str, Rows]
) -> Recorded:
    """Return the program of what a function does to one batch.

    Args:
        function: takes all that is given, by name. What it returns is a tensor, whose
            mean over the rows is meant; a ``Ratio``; or a dictionary of such.
        given: arguments that are the same for each batch.
        rows: arguments that are a batch of rows.

    Raises:
        ProgramError: if it can not be recorded, with the user's line.
    """
    made = {size: _Recording(function, given, rows, size) for size in _SIZES}
    first = made[_SIZES[0]]
    try:
        program = fit({size: one.program for size, one in made.items()})
        if program.at(_LARGE) != _Recording(function, given, rows, _LARGE).program:
            raise BranchError(None, "what is done depends on the size of a batch")
    except BranchError as error:
        site = None if error.line is None else first.sites[error.line]
        raise _at(site, f"{error}; do the same whatever the size") from None
    least = _LARGE
    with contextlib.suppress(ProgramError, RuntimeError, ValueError):
        # A normalization takes no single row, and few can't be divided by many.
        for size in _SMALL:
            if program.at(size) != _Recording(function, given, rows, size).program:
                break
            least = size
    program = replace(program, least=least)
    text = write(program)
    program = read(text)
    check(program)
    return Recorded(
        program,
        text,
        digest(text),
        first.sites,
        first.shapes,
        first.dtypes,
        first.originals,
        first.steppers,
    )


_READS = ("aten._local_scalar_dense.default", "aten.is_nonzero.default")

_VALUE = (
    "a value is read here, and a program has none: compute with the tensor itself, or "
    "return it"
)


def _at(site: CallSite | None, text: str) -> ProgramError:
    return ProgramError(f"{site}: {text}" if site else text)


class _Recording:
    """One recording, for batches of one size.

    Attributes:
        program: what was recorded.
        sites: the user's line of each of its lines.
        shapes: of each result, the sizes of its numerator.
        dtypes: of each result, the dtype of what the function returned.
        originals: of each input that is no rows, the tensor that it is.
        steppers: the optimizers, in the program's order.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        given: Given,
        rows: Mapping[str, Rows],
        size: int,
    ) -> None:
        self._worker, self._tap = _worker()
        self._names: dict[int, int] = {}  # of ids there, what they are in the program
        self._copies: dict[int, Any] = {}
        self._inputs: list[Input] = []
        self._input_ids: list[int] = []
        self._optimizers: dict[int, tuple[Optimizer, programs.Optimizer]] = {}
        originals: list[torch.Tensor] = []
        with torch.enable_grad():
            arguments = self._arguments(given, originals)
            batch = {
                name: self._input(
                    Input(
                        name,
                        Kind.ROWS,
                        DTYPE_NAMES[one.dtype],
                        (size, *one.shape),
                    ),
                    dense((size, *one.shape), one.dtype),
                )
                for name, one in rows.items()
            }
            before = [_parts(one) for one in arguments.values()]
            results = self._run(function, {**arguments, **batch})
            if before != [_parts(one) for one in arguments.values()]:
                raise ProgramError(
                    "the module gets other parameters or buffers while it runs"
                )
        self.originals = tuple(originals)
        self.shapes = tuple(tuple(one.numerator.shape) for one in results.values())
        self.steppers = tuple(one for one, _ in self._optimizers.values())
        lines, self.sites = self._lines(results)
        self.program = Program(
            tuple(self._inputs),
            tuple(one for _, one in self._optimizers.values()),
            lines,
            tuple(
                Result(
                    name,
                    self._name(_id(ratio.numerator)),
                    ratio.denominator
                    if isinstance(ratio.denominator, int | float)
                    else self._name(_id(ratio.denominator)),
                )
                for name, ratio in results.items()
            ),
        )

    # --- arguments ----------------------------------------------------------------

    def _arguments(self, given: Given, originals: list[torch.Tensor]) -> dict[str, Any]:
        """Return copies of what is passed, at the worker."""
        modules = {k: v for k, v in given.items() if isinstance(v, nn.Module)}
        for label, module in modules.items():
            named = (*module.named_parameters(), *module.named_buffers())
            for name, tensor in named:
                if id(tensor) not in self._copies:
                    self._copies[id(tensor)] = self._tensor(f"{label}.{name}", tensor)
                    originals.append(tensor)
        arguments = dict(given)
        for label, module in modules.items():
            arguments[label] = copy_module(module, self._copies)
            place(arguments[label], self._worker.session)
        for label, value in given.items():
            if isinstance(value, Optimizer):
                arguments[label] = self._optimizer(value)
        return arguments

    def _tensor(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        kind = Kind.PARAMETER if tensor.requires_grad else Kind.CONSTANT
        shape = tuple(tensor.shape)
        look = dense(shape, tensor.dtype)
        made = self._input(Input(name, kind, DTYPE_NAMES[tensor.dtype], shape), look)
        if isinstance(tensor, nn.Parameter) or getattr(tensor, "_is_param", False):
            made._is_param = True
        return made

    def _input(self, one: Input, look: Spec) -> RemoteTensor:
        """Return a remote tensor that is an input of the program."""
        session = self._worker.session
        id = session.new_id()
        tracked = one.kind is Kind.PARAMETER
        self._tap.store[id] = shape_only(look.tracked if tracked else look)
        self._inputs.append(one)
        self._input_ids.append(id)
        self._names[id] = len(self._inputs)
        held = Held(session, id, look)
        if tracked:
            held.tracked().become_leaf(True)
        return RemoteTensor._of(held)

    def _optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return a copy of an optimizer, of the copies of its parameters."""
        check_optimizer(type(optimizer).__name__)
        copied = object.__new__(type(optimizer))
        copied.__dict__.update(optimizer.__dict__)
        copied.state = defaultdict(dict)
        copied.param_groups = []
        for group in optimizer.param_groups:
            try:
                params = [self._copies[id(one)] for one in group["params"]]
            except KeyError:
                raise ProgramError(
                    f"{type(optimizer).__name__} steps parameters of no module that "
                    "is passed: pass the module too"
                ) from None
            copied.param_groups.append({**group, "params": params})
        self._number(copied, optimizer)
        return copied

    def _number(self, optimizer: Optimizer, original: Optimizer) -> int:
        """Return an optimizer's number in the program."""
        if id(optimizer) not in self._optimizers:
            kind = type(optimizer).__name__
            check_optimizer(kind)
            groups = tuple(
                tuple(self._names[one._held.id] for one in group["params"])
                for group in optimizer.param_groups
            )
            self._optimizers[id(optimizer)] = (
                original,
                programs.Optimizer(kind, groups),
            )
        return list(self._optimizers).index(id(optimizer))

    # --- running ------------------------------------------------------------------

    def _run(self, function: Callable[..., Any], arguments: Given) -> dict[str, Ratio]:
        """Run the function; leave what it asked for in the log of the tap."""
        results: dict[str, Ratio] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._worker)
            stack.enter_context(self._stepping())
            for _ in range(2):
                self._tap.log.clear()
                try:
                    returned = function(**arguments)
                    results = _ratios(returned, len_of(arguments))
                    self.dtypes = _dtypes(returned)
                except ProgramError:
                    raise
                except ObhutError as error:
                    read = isinstance(error, OpNotAdmittedError) and error.op in _READS
                    text = _VALUE if read else f"it can not be recorded: {error}"
                    raise _at(raised_at(error), text) from error
        return results

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        """Let steps of optimizers be written down, and not be taken."""

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            if len(args) > 1 or kwargs:
                raise _at(current_call_site(), "a step that takes a closure")
            number = self._number(optimizer, optimizer)
            line = Line(programs.STEP, (number,))
            self._tap.log.append((line, current_call_site()))
            idle = object.__new__(type(optimizer))
            idle.__dict__.update(optimizer.__dict__)
            idle.param_groups = []
            return (idle,), {}

        handle = register_optimizer_step_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()

    # --- lines --------------------------------------------------------------------

    def _name(self, id: int) -> Ref:
        """Return what an id is called in the program."""
        if id not in self._names:
            raise _at(
                self._tap.now,
                "something of an earlier batch is used; a program keeps nothing from "
                "batch to batch but parameters, buffers and what optimizers keep",
            )
        return Ref(self._names[id])

    def _lines(
        self, results: Mapping[str, Ratio]
    ) -> tuple[tuple[Line, ...], tuple[CallSite | None, ...]]:
        """Return what was asked for, less what is never used, in the program's ids."""
        wanted = {
            _id(one)
            for ratio in results.values()
            for one in ratio
            if isinstance(one, RemoteTensor)
        }
        used = self._used(wanted)
        lines: list[Line] = []
        sites: list[CallSite | None] = []
        after = len(self._inputs) + 1
        for index, (entry, site) in enumerate(self._tap.log):
            if index not in used:
                continue
            self._tap.now = site
            line = entry if isinstance(entry, Line) else line_of(entry, self._name)
            if line.count:
                ids = range(line.out, line.out + line.count)
                self._names.update(
                    zip(ids, range(after, after + line.count), strict=True)
                )
                line = Line(
                    line.name, line.args, line.kwargs, after, line.count, line.grad
                )
                after += line.count
            lines.append(line)
            sites.append(site)
        return tuple(lines), tuple(sites)

    def _used(self, wanted: set[int]) -> set[int]:
        """Return places of what must stay: names of what is there can be left out."""
        used: set[int] = set()
        for index in reversed(range(len(self._tap.log))):
            entry = self._tap.log[index][0]
            if isinstance(entry, Free | Describe) or (
                isinstance(entry, ReadGrad) and entry.out not in wanted
            ):
                continue
            used.add(index)
            if not isinstance(entry, Line):
                wanted.update(entry.reads())
        return used


def _parts(value: Any) -> list[tuple[str, int]]:
    """Return the names of a module's parameters and buffers, and which they are."""
    if not isinstance(value, nn.Module):
        return []
    named = (*value.named_parameters(), *value.named_buffers())
    return [(name, id(tensor)) for name, tensor in named]


def _id(tensor: Any) -> int:
    id: int = tensor._held.id
    return id


def len_of(arguments: Given) -> int:
    """Return how many rows a batch has, by its last argument."""
    return len(list(arguments.values())[-1])


def _ratios(returned: Any, rows: int) -> dict[str, Ratio]:
    """Return what a function returned as ratios by name.

    Raises:
        ProgramError: if it is nothing that a batch can add to.
    """
    if isinstance(returned, Mapping):
        if not returned or not all(isinstance(name, str) for name in returned):
            raise ProgramError(
                "a program's results have names, and there is one or more"
            )
        return {name: _ratio(one, rows) for name, one in returned.items()}
    return {"": _ratio(returned, rows)}


def _dtypes(returned: Any) -> tuple[torch.dtype, ...]:
    several = returned.values() if isinstance(returned, Mapping) else (returned,)
    return tuple(
        (one.numerator if isinstance(one, Ratio) else one).dtype for one in several
    )


def _ratio(value: Any, rows: int) -> Ratio:
    if isinstance(value, Ratio):
        above, below = value
    else:
        above, below = value, rows
        if isinstance(above, RemoteTensor):
            above = above.detach().to(torch.float64) * rows
    if isinstance(below, RemoteTensor) and below.dim():
        raise ProgramError(
            f"expected a scalar below a ratio, got shape {list(below.shape)}"
        )
    if not isinstance(above, RemoteTensor) or isinstance(below, bool):
        raise ProgramError(
            "expected a function that returns a tensor, a Ratio or a dictionary of "
            f"such, got a {type(value).__name__}"
        )
    if not isinstance(below, RemoteTensor | int | float):
        raise ProgramError(f"no denominator is a {type(below).__name__}")
    return Ratio(
        above.detach(), below.detach() if isinstance(below, RemoteTensor) else below
    )


# --- the worker without values ----------------------------------------------------


class _Tap(LocalTransport):
    """The way to the worker, which keeps what is asked for.

    Attributes:
        log: each request, or line of a step, with the user's line.
        now: the user's line of what is looked at.
    """

    def __init__(self, shell: LocalShell, core: Worker) -> None:
        super().__init__(shell)
        self.log: list[tuple[AnyRequest | Line, CallSite | None]] = []
        self.now: CallSite | None = None
        self._core = core

    @property
    def store(self) -> Any:
        """The tensors of the one session."""
        (session,) = self._core._sessions.values()
        return session.store

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Arrived:
        """Send a message, and keep what is asked for."""
        if not isinstance(message, Batch):
            return super().submit(message, frames)
        self.now = site = current_call_site()
        for request in message.requests:
            if isinstance(request, Fetch):
                raise _at(site, _VALUE)
        arrived = super().submit(message, frames)
        reply = arrived.result().message
        answers = reply.answers if isinstance(reply, Results) else ()
        described = {one.index: one for one in answers if isinstance(one, Described)}
        for index, request in enumerate(message.requests):
            found = described.get(index)
            if isinstance(request, Run) and request.describe and found:
                count = len(found.specs)
                request = structs.replace(request, describe=False, count=count)  # noqa: PLW2901
            if isinstance(request, ReadGrad) and request.describe:
                if found is None or found.specs[0] is None:
                    continue
                request = structs.replace(request, describe=False)  # noqa: PLW2901
            if isinstance(request, Put):
                self.log.append((_constant(request, frames, site), site))
            else:
                self.log.append((request, site))
        return arrived


def _constant(
    request: Put, frames: Sequence[Frame], site: CallSite | None
) -> AnyRequest:
    """Return what stands for a small tensor that the function wrote down."""
    data = request.data
    frame = bytes(frames[data.frame])
    if len(frame) > INLINE_BYTES or data.requires_grad:
        raise _at(
            site,
            f"a tensor of {len(frame):,} bytes is sent here, and a program has at most "
            f"{INLINE_BYTES:,}: let it be a buffer of the module",
        )
    inline = Inline(data.dtype, data.shape, frame)
    return Run("aten.clone.default", [inline], {}, request.out, 1, False)


_POLICY = Quorum(aggregators=("nobody",), contributors=("one", "two", "three"))


def _worker() -> tuple[RemoteWorker, _Tap]:
    core = Worker("a program", role=Owner(_POLICY))
    shell = LocalShell(core, encode=False, network=LocalNetwork())
    tap = _Tap(shell, core)
    worker = RemoteWorker(tap, blocking=True)
    worker.session.guarded()
    return worker, tap


def looks_of(tensors: Sequence[torch.Tensor]) -> list[Rows]:
    """Return what the rows of tensors look like.

    Raises:
        CallError: if one has no rows.
    """
    if any(not tensor.dim() for tensor in tensors):
        raise CallError("expected rows, got a single number")
    return [Rows(one.dtype, tuple(one.shape[1:])) for one in tensors]


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


__all__ = ["DTYPES", "Recorded", "Rows", "looks_of", "parameters_of", "record"]
