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
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from obhut.errors import CallError, ObhutError, OpNotAdmittedError, ProgramError
from obhut.programs import program as programs
from obhut.programs.checks import check, check_optimizer
from obhut.programs.fitting import BranchError, divisor_of, fit
from obhut.programs.program import Input, Kind, Line, Program, Result
from obhut.programs.requests import line_of
from obhut.programs.text import digest, read, write
from obhut.protocol.messages import (
    AnyRequest,
    Describe,
    Free,
    Option,
    ReadGrad,
    Ref,
    Request,
    WriteData,
)
from obhut.worker.shape_only import shape_only
from obhut.worker.shapes import Spec, dense
from obhut.worker.stepping import hyperparameters
from obhut.worker.tensors import DTYPE_NAMES

from .bincounts import Counting
from .call_site import CallSite, current_call_site, raised_at
from .forwards import place
from .held import Held
from .modules import copy_module
from .ratio import Ratio
from .remote_tensor import RemoteTensor
from .taps import VALUE, Mark, at, worker_without_values

# Any below: what the recorded function takes and returns.

Given: TypeAlias = Mapping[str, Any]
"""Arguments by name: modules, optimizers, and what is no tensor."""

_SIZES = (29, 31, 37)
"""Rows of the batches that are recorded: no layer is so wide by chance."""

_LARGE = 64
"""Rows of a batch for which it is recorded again, and compared."""

_SMALL = (16, 8, 4, 2, 1)
"""Likewise, down to the first of another program."""


Settings: TypeAlias = Mapping[int, tuple[dict[str, Option], ...]]
"""Of each parameter group of an optimizer its hyperparameters, by stage."""


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
        optimizers: the optimizers that were passed, first in the program's order.
        settings: of each of a whole training's optimizers its hyperparameters, by the
            stage from which it has them.
    """

    program: Program
    text: str
    digest: str
    sites: tuple[CallSite | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    tensors: tuple[torch.Tensor, ...]
    optimizers: tuple[Optimizer, ...]
    settings: tuple[Settings, ...] = ()

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
        while _LARGE + divisor_of(program) - 1 > max(*made, _LARGE):
            for size in range(max(*made, _LARGE) + 1, _LARGE + divisor_of(program)):
                made[size] = _Recording(function, given, rows, size)
            program = fit({size: one.program for size, one in made.items()})
        if program.at(_LARGE) != _Recording(function, given, rows, _LARGE).program:
            raise BranchError(None, "what is done depends on the size of a batch")
    except BranchError as error:
        site = None if error.line is None else first.sites[error.line]
        raise at(site, f"{error}; do the same whatever the size") from None
    least = _LARGE
    with contextlib.suppress(ProgramError, RuntimeError, ValueError):
        # A normalization takes no single row, and few can't be divided by many.
        for size in _SMALL:
            if program.at(size) != _Recording(function, given, rows, size).program:
                break
            least = size
    return first.recorded(replace(program, least=least), first.sites, first.steppers)


_READS = ("aten._local_scalar_dense.default", "aten.is_nonzero.default")


class Recorder:
    """What a function is recorded with: a worker without values, and copies there.

    Attributes:
        originals: of each input that is no rows, the tensor that it is.
        tap: the way to the worker.
        shapes: of each result, the sizes of its numerator.
        dtypes: of each result, the dtype of what the function returned.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    def __init__(self) -> None:
        self._worker, self.tap = worker_without_values()
        self._names: dict[int, int] = {}  # of ids there, what they are in the program
        self._copies: dict[int, Any] = {}
        self._inputs: list[Input] = []
        self._optimizers: dict[int, tuple[Optimizer, programs.Optimizer]] = {}
        self.originals: list[torch.Tensor] = []

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The program's inputs."""
        return tuple(self._inputs)

    @property
    def steppers(self) -> tuple[Optimizer, ...]:
        """The optimizers, in the program's order."""
        return tuple(one for one, _ in self._optimizers.values())

    @property
    def optimizers(self) -> tuple[programs.Optimizer, ...]:
        """What the program says of them."""
        return tuple(one for _, one in self._optimizers.values())

    def recorded(
        self,
        program: Program,
        sites: Sequence[CallSite | None],
        optimizers: Sequence[Optimizer],
        settings: Sequence[Settings] = (),
    ) -> Recorded:
        """Return a program as a worker reads it, checked, and where it came from."""
        text = write(program)
        program = read(text)
        check(program)
        return Recorded(
            program,
            text,
            digest(text),
            tuple(sites),
            self.shapes,
            self.dtypes,
            tuple(self.originals),
            tuple(optimizers),
            tuple(settings),
        )

    # --- arguments ----------------------------------------------------------------

    def arguments(self, given: Given) -> dict[str, Any]:
        """Return copies of what is passed, at the worker."""
        modules = {k: v for k, v in given.items() if isinstance(v, nn.Module)}
        for label, module in modules.items():
            named = (*module.named_parameters(), *module.named_buffers())
            for name, tensor in named:
                if id(tensor) not in self._copies:
                    self._copies[id(tensor)] = self._tensor(f"{label}.{name}", tensor)
                    self.originals.append(tensor)
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
        made = self.input(Input(name, kind, DTYPE_NAMES[tensor.dtype], shape), look)
        if isinstance(tensor, nn.Parameter) or getattr(tensor, "_is_param", False):
            made._is_param = True
        return made

    def input(self, one: Input, look: Spec) -> RemoteTensor:
        """Return a remote tensor that is an input of the program."""
        self._inputs.append(one)
        made = self.tensor(look.tracked if one.kind is Kind.PARAMETER else look)
        self._names[made._held.id] = len(self._inputs)
        return made

    def tensor(self, look: Spec) -> RemoteTensor:
        """Return a remote tensor that is there."""
        session = self._worker.session
        id = session.new_id()
        self.tap.store[id] = shape_only(look)
        held = Held(session, id, look.plain)
        if look.requires_grad:
            held.tracked().become_leaf(True)
        return RemoteTensor._of(held)

    def _optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return a copy of an optimizer, of the copies of its parameters."""
        check_optimizer(type(optimizer).__name__)
        copied = object.__new__(type(optimizer))
        copied.__dict__.update(optimizer.__dict__)
        copied.__dict__.pop("step", None)  # a scheduler's, which steps the first
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
            try:
                groups = tuple(
                    tuple(self._names[one._held.id] for one in group["params"])
                    for group in optimizer.param_groups
                )
            except (KeyError, AttributeError):
                raise at(
                    current_call_site(),
                    f"{kind} steps parameters of no module that is passed: pass the "
                    "module too",
                ) from None
            self._optimizers[id(optimizer)] = (
                original,
                programs.Optimizer(kind, groups),
            )
        return list(self._optimizers).index(id(optimizer))

    # --- running ------------------------------------------------------------------

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run a function at the worker, whose errors have the user's line."""
        with self._worker, self._stepping(), Counting():
            try:
                yield
            except ProgramError:
                raise
            except ObhutError as error:
                read = isinstance(error, OpNotAdmittedError) and error.op in _READS
                text = VALUE if read else f"it can not be recorded: {error}"
                raise at(raised_at(error) or self.tap.now, text) from error

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        """Let steps of optimizers be written down, and not be taken."""
        thread = threading.get_ident()

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return None  # somebody else's step
            if len(args) > 1 or kwargs:
                raise at(current_call_site(), "a step that takes a closure")
            self.took_step(optimizer, self._number(optimizer, optimizer))
            idle = object.__new__(type(optimizer))
            idle.__dict__.update(optimizer.__dict__)
            idle.param_groups = []
            return (idle,), {}

        handle = register_optimizer_step_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()

    def took_step(self, optimizer: Optimizer, number: int) -> None:
        """Write down a step."""
        line = Line(programs.STEP, (number,))
        self.tap.log.append((line, current_call_site()))

    def line(self, request: AnyRequest, name: Callable[[int], Ref]) -> Line:
        """Return the line of a request, asked for by the user's line of the tap.

        Raises:
            ProgramError: if programs have nothing like it.
        """
        if isinstance(request, WriteData) and request.id in self._names:
            raise at(
                self.tap.now,
                "a parameter keeps its memory: write p.data.copy_(x) instead of "
                "p.data = x",
            )
        try:
            return line_of(request, name)
        except ProgramError as error:
            here = str(error).startswith(f"{self.tap.now}: ")
            raise at(None if here else self.tap.now, str(error)) from None

    def used(self, wanted: set[int]) -> set[int]:
        """Return places of what must stay: names of what is there can be left out."""
        used: set[int] = set()
        for index in reversed(range(len(self.tap.log))):
            entry = self.tap.log[index][0]
            if isinstance(entry, Free | Describe) or (
                isinstance(entry, ReadGrad) and entry.out not in wanted
            ):
                continue
            used.add(index)
            if isinstance(entry, Request):
                wanted.update(entry.reads())
        return used


class _Recording(Recorder):
    """One recording, for batches of one size.

    Attributes:
        program: what was recorded.
        sites: the user's line of each of its lines.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        given: Given,
        rows: Mapping[str, Rows],
        size: int,
    ) -> None:
        super().__init__()
        with torch.enable_grad():
            arguments = self.arguments(given)
            for name, one in rows.items():
                shape = (size, *one.shape)
                input = Input(name, Kind.ROWS, DTYPE_NAMES[one.dtype], shape)
                arguments[name] = self.input(input, dense(shape, one.dtype))
            results: dict[str, Ratio] = {}
            before = parts_of(arguments)
            with self.running():
                for _ in range(2):
                    self.tap.log.clear()
                    returned = function(**arguments)
                    results = ratios(returned, size)
            check_parts(arguments, before)
        self.dtypes = dtypes_of(returned)
        self.shapes = tuple(tuple(one.numerator.shape) for one in results.values())
        lines, self.sites = self._lines(results)
        self.program = Program(
            self.inputs,
            self.optimizers,
            lines,
            tuple(
                Result(
                    name,
                    self._name(id_of(ratio.numerator)),
                    ratio.denominator
                    if isinstance(ratio.denominator, int | float)
                    else self._name(id_of(ratio.denominator)),
                )
                for name, ratio in results.items()
            ),
        )

    # --- lines --------------------------------------------------------------------

    def _name(self, id: int) -> Ref:
        """Return what an id is called in the program."""
        if id not in self._names:
            raise at(
                self.tap.now,
                "something of an earlier batch is used; a program keeps nothing from "
                "batch to batch but parameters, buffers and what optimizers keep",
            )
        return Ref(self._names[id])

    def _lines(
        self, results: Mapping[str, Ratio]
    ) -> tuple[tuple[Line, ...], tuple[CallSite | None, ...]]:
        """Return what was asked for, less what is never used, in the program's ids."""
        wanted = {
            id_of(one)
            for ratio in results.values()
            for one in ratio
            if isinstance(one, RemoteTensor)
        }
        used = self.used(wanted)
        lines: list[Line] = []
        sites: list[CallSite | None] = []
        after = len(self._inputs) + 1
        for index, (entry, site) in enumerate(self.tap.log):
            if index not in used or isinstance(entry, Mark):
                continue
            self.tap.now = site
            line = entry if isinstance(entry, Line) else self.line(entry, self._name)
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


def settings_of(optimizer: Optimizer) -> tuple[dict[str, Option], ...]:
    """Return the hyperparameters of each parameter group, by name.

    Raises:
        ProgramError: if one is no number.
    """
    known = hyperparameters(type(optimizer).__name__)
    return tuple(
        {name: _option(name, value) for name, value in group.items() if name in known}
        for group in optimizer.param_groups
    )


def _option(name: str, value: Any) -> Option:
    if isinstance(value, list | tuple):
        return tuple(float(one) for one in value)
    if isinstance(value, bool | int | float | None):
        return value
    raise ProgramError(f"expected {name} of an optimizer to be a number, got {value!r}")


def id_of(tensor: Any) -> int:
    """Return a remote tensor's id."""
    id: int = tensor._held.id
    return id


def ratios(returned: Any, rows: int = 0) -> dict[str, Ratio]:
    """Return what a function returned as ratios by name.

    Args:
        returned: a tensor, a ``Ratio``, or a dictionary of such.
        rows: of the batch, over which a tensor is a mean; 0 for a whole training.

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


def dtypes_of(returned: Any) -> tuple[torch.dtype, ...]:
    """Return the dtype of each result of a function."""
    several = returned.values() if isinstance(returned, Mapping) else (returned,)
    return tuple(
        (one.numerator if isinstance(one, Ratio) else one).dtype for one in several
    )


def parts_of(arguments: Given) -> list[tuple[str, int]]:
    """Return the names of modules' parameters and buffers, and which they are."""
    return [
        (name, id(tensor))
        for value in arguments.values()
        if isinstance(value, nn.Module)
        for name, tensor in (*value.named_parameters(), *value.named_buffers())
    ]


def check_parts(arguments: Given, before: Sequence[tuple[str, int]]) -> None:
    """Check that modules have the parameters and buffers that they had.

    Raises:
        ProgramError: if one has not.
    """
    if parts_of(arguments) != before:
        raise ProgramError("the module gets other parameters or buffers while it runs")


def _ratio(value: Any, rows: int) -> Ratio:
    if isinstance(value, Ratio):
        above, below = value
    else:
        above, below = value, rows or 1
        if isinstance(above, RemoteTensor) and rows:
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
