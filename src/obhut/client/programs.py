"""``obhut.program``: a function that runs where the rows are, in one message.

::

    @obhut.program
    def step(model, optimizer, x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    losses = step.run(model=model, optimizer=optimizer, data=data, batch_size=32)
    print(step.record(model=model, optimizer=optimizer, data=data))

Rules:

- Called as it is, a program is the plain function.
- It is recorded once for what its arguments look like, and a worker gets its text once.
- What a run returns is a ratio of sums over the rows, one an epoch, at the worker.
"""

from __future__ import annotations

import functools
import itertools
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from obhut.errors import CallError, LocationError, ProgramError
from obhut.protocol.limits import HIDDEN_ROWS
from obhut.protocol.messages import (
    DatasetRows,
    Option,
    RunProgram,
    Split,
    Stepping,
)
from obhut.worker.looks import Itself
from obhut.worker.shapes import dense

from .cancelling import interruptible
from .defining import define
from .held import Held
from .hidden_dataset import HiddenDataset
from .local_dataset import check_size
from .looping import record_training
from .ratio import Ratio
from .recording import (
    Recorded,
    Rows,
    Settings,
    looks_of,
    parameters_of,
    record,
    settings_of,
)
from .remote_dataset import RemoteDataset
from .remote_tensor import RemoteTensor
from .session import Session

# Any below: what the function takes and returns.


class Program:
    """A function of a model, its optimizers and a batch of rows.

    Args:
        function: its last parameters are the rows.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function
        functools.update_wrapper(self, function)
        self._parameters = parameters_of(function)
        self._recorded: dict[object, Recorded] = {}
        self._said: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function as it is."""
        return self.__wrapped__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<program {getattr(self.__wrapped__, '__qualname__', '')}>"

    def record(self, *, data: Any, **given: Any) -> Recorded:
        """Return the function as a program for such arguments; nothing is sent.

        Args:
            data: tensors of rows, here or there, in the order of the function's last
                parameters: one, several, or a data set, whose number of rows may be
                hidden.
            given: the other arguments, by name.

        Raises:
            ProgramError: if it can not be recorded, with the line that is why.
            CallError: if arguments are missing.
        """
        rows = _rows_of(data)
        names, looks = self._names(len(rows.looks), given), rows.looks
        key = _key(given, looks, self._is_whole)
        found = self._recorded.get(key)
        if found is None:
            if self._is_whole:
                found = record_training(self.__wrapped__, given, looks)
            else:
                by_name = dict(zip(names, looks, strict=True))
                found = record(self.__wrapped__, given, by_name)
            # Not with what it was recorded of, which is to go when its names go.
            self._recorded[key] = found._replace(tensors=(), optimizers=())
        return found._replace(
            tensors=tuple(_tensors(given)),
            optimizers=tuple(v for v in given.values() if isinstance(v, Optimizer)),
        )

    @property
    def _is_whole(self) -> bool:
        """Whether the function is a whole training, which loops over its data."""
        return self._parameters[-1:] == ["data"]

    def fall_back(self, error: ProgramError, data: Any) -> None:
        """Warn that the function runs line by line, and why; the same reason once.

        Args:
            error: why it is not recorded.
            data: the rows.

        Raises:
            ProgramError: if how many rows there are is hidden, so that it can't.
        """
        if isinstance(data, HiddenDataset):
            raise ProgramError(
                f"{error}; line by line it can not run, since how many rows "
                f"{data.rows.dataset!r} at {data.location.id} has is hidden"
            ) from error
        if str(error) not in self._said:
            self._said.add(str(error))
            warnings.warn(f"it runs line by line: {error}", stacklevel=3)

    @interruptible
    def run(
        self,
        *,
        data: Any,
        batch_size: int | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        schedulers: Sequence[LRScheduler] = (),
        **given: Any,
    ) -> Any:
        """Go through rows in batches where they are, and run the function on each.

        Models change in place. What optimizers keep stays at the worker for the next
        run, for as long as there is the optimizer.

        Args:
            data: as for ``record``, at a worker.
            batch_size: rows of a batch; the last may have fewer. None for all.
            epochs: how often it goes through the rows, by default once.
            steps: or how many batches it goes through, over and over again.
            shuffle: in a new order each time, which the worker draws for itself.
            drop_last: leave out what is left after the full batches.
            seed: of all that is drawn.
            schedulers: of optimizers that are passed: each steps after each epoch, or
                once after all steps, as in a loop of PyTorch's. They step here, so that
                the next run goes on.
            given: the other arguments, by name: modules at the same worker, and
                optimizers of their parameters.

        Returns:
            A ``Ratio`` of float64 tensors there, (epochs, ...) and (epochs,), or over
            all steps (1, ...) and (1,); or a dictionary of such, if the function
            returns one. Of a loss the numerator is its sum over the rows, the
            denominator their number. Where a part of the rows has none, both are 0 and
            nothing else is done.

        Raises:
            ProgramError: if the function can not be recorded, or batches are too small
                for it.
            LocationError: if the arguments are not at one worker.
            CallError: if arguments are missing, a batch would have too few rows, or
                both epochs and steps are given.
        """
        times = check_times(epochs, steps)
        said = (batch_size, shuffle, drop_last, schedulers, steps, times > 1)
        if self._is_whole and any(said):
            raise CallError(
                "a whole training says itself in which batches it runs: "
                "data.batches(32, shuffle=True)"
            )
        recorded, rows = self.record(data=data, **given), _rows_of(data)
        session = _session([*rows.tensors, *recorded.tensors], rows.session)
        if not self._is_whole and not (rows.only is not None and rows.number == 0):
            _check_batches(rows.number, batch_size, drop_last, recorded, session.worker)
        if schedulers:
            settings = _scheduled(recorded.optimizers, schedulers, times)
            recorded = recorded._replace(settings=settings)
        define(session, recorded.digest, recorded.text)
        results = recorded.program.results
        count = 2 * len(results)
        out = session.new_ids(count)
        session.post(
            RunProgram(
                recorded.digest,
                tuple(_held(one).id for one in recorded.tensors),
                rows.named or tuple(_held(one).id for one in rows.tensors),
                out,
                count,
                batch_size or 0,
                times,
                shuffle,
                drop_last,
                seed,
                _stepping(session, recorded),
                rows.only,
                steps or 0,
            )
        )

        def made(id: int, shape: tuple[int, ...]) -> RemoteTensor:
            sizes = shape if self._is_whole else (times, *shape)
            return RemoteTensor._of(Held(session, id, dense(sizes, torch.float64)))

        ratios = {
            one.name: Ratio(made(id, shape), made(id + 1, ()))
            for id, one, shape in zip(
                range(out, out + count, 2), results, recorded.shapes, strict=True
            )
        }
        return ratios.get("", ratios or None)

    def _names(self, tensors: int, given: Mapping[str, Any]) -> list[str]:
        """Return the function's own names of so many tensors of rows."""
        names = list(self._parameters)
        if self._is_whole:
            names[-1:] = [f"data.{place}" for place in range(tensors)]
        own, taken = names[: len(names) - tensors], names[-tensors:]
        if not tensors or sorted(own) != sorted(given):
            raise CallError(
                f"expected {', '.join(own)} and {len(taken)} tensors of rows as data, "
                f"got {', '.join(given) or 'nothing'}"
            )
        return taken


class _GivenRows(NamedTuple):
    """What a program goes through.

    Attributes:
        looks: what a row of each tensor looks like.
        tensors: the tensors; none if how many rows there are is hidden.
        number: how many there are; None if that is hidden.
        named: the data set that they are then.
        session: with its worker.
        only: which of the rows are meant; None for all.
    """

    looks: Sequence[Rows]
    tensors: Sequence[torch.Tensor]
    number: int | None = None
    named: DatasetRows | None = None
    session: Session | None = None
    only: Split | None = None


def _rows_of(data: Any) -> _GivenRows:
    """Return what was passed as data: tensors, or a data set."""
    if isinstance(data, HiddenDataset):
        looks = [Rows(one.dtype, tuple(one.shape)) for one in data.looks]
        session = data.location.session
        return _GivenRows(looks, (), None, data.rows, session, data.only)
    if isinstance(data, torch.Tensor):
        tensors: Sequence[torch.Tensor] = (data,)
    elif hasattr(data, "features"):
        tensors = (data.features, data.targets)
    else:
        tensors = tuple(data)
    looks = looks_of(tensors)
    if isinstance(data, RemoteDataset):
        return _GivenRows(looks, tensors, len(data), only=data.only)
    return _GivenRows(looks, tensors, len(tensors[0]) if tensors else 0)


def program(function: Callable[..., Any]) -> Program:
    """Return a function as a program, which runs where rows are in one message.

    Args:
        function: ``step(model, optimizer, x, y)``, say: it does to one batch what a
            training does to each, and returns a loss, a ``Ratio``, or a dictionary of
            such. Called as it is, it stays what it was.
    """
    return Program(function)


def _tensors(given: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return all parameters and buffers, each once, in the order of a recording."""
    found: dict[int, torch.Tensor] = {}
    for value in given.values():
        if isinstance(value, nn.Module):
            for _, one in (*value.named_parameters(), *value.named_buffers()):
                found.setdefault(id(one), one)
    return list(found.values())


def _key(given: Mapping[str, Any], looks: Sequence[Any], is_whole: bool) -> object:
    """Return all that decides what is recorded, as far as it shows."""
    order = {id(one): place for place, one in enumerate(_tensors(given))}
    key: list[object] = [tuple(looks), torch.get_default_dtype()]
    for name, value in given.items():
        key.append(name)
        if isinstance(value, nn.Module):
            for path, one in value.named_modules():
                key += [path, type(one)]
                key += [
                    (label, _plain(kept, order))
                    for label, kept in vars(one).items()
                    if label not in _REGISTRIES
                ]
            key += [
                (label, order[id(one)], tuple(one.shape), one.dtype, one.requires_grad)
                for label, one in (*value.named_parameters(), *value.named_buffers())
            ]
        elif isinstance(value, Optimizer):
            key.append(type(value))
            if is_whole:
                key.append(repr(settings_of(value)))
            key += [
                tuple(order.get(id(one), -1) for one in group["params"])
                for group in value.param_groups
            ]
        else:
            key.append(_plain(value, order))
    return tuple(key)


_REGISTRIES = frozenset(vars(nn.Module())) - {"training"} | {
    "forward",
    "_obhut_forward",
}
"""What every module has; parameters, buffers and children are looked at apart."""


def _plain(value: Any, order: Mapping[int, int], depth: int = 0) -> object:
    """Return what shows of a value that a module keeps, as a key.

    Args:
        value: the value.
        order: the places of parameters and buffers, by their ids.
        depth: in how many objects of a Python class it is.
    """
    if isinstance(value, list | tuple):
        return (type(value), *(_plain(one, order, depth) for one in value))
    if isinstance(value, dict):
        return (
            dict,
            *((key, _plain(one, order, depth)) for key, one in value.items()),
        )
    if isinstance(value, torch.Tensor):
        if depth and id(value) not in order:
            return Itself(value)
        return (order.get(id(value), -1), tuple(value.shape), value.dtype)
    if isinstance(value, bool | int | float | str | torch.dtype | None):
        return (type(value), value)
    if isinstance(value, set | frozenset) and all(isinstance(x, str) for x in value):
        return (type(value), *sorted(value))
    if depth < _DEPTH and _is_plain_object(value):
        own = vars(value).items()
        return (type(value), *((key, _plain(x, order, depth + 1)) for key, x in own))
    return Itself(value)


_DEPTH = 4
"""How deep objects in objects are looked into; they may lead back to themselves."""


def _is_plain_object(value: object) -> bool:
    """Tell whether all of an object is its attributes, as a configuration's is.

    Whatever can be called may have a function behind it that shows nowhere.
    """
    kind = type(value)
    return (
        hasattr(value, "__dict__")
        and not hasattr(kind, "__slots__")
        and not callable(value)
        and not isinstance(value, ModuleType)
        # No more memory than attributes and weak references take.
        and kind.__basicsize__ <= object.__basicsize__ + 16
    )


def check_times(epochs: int | None, steps: int | None) -> int:
    """Return how many epochs a run has; one, if it has so many steps.

    Raises:
        CallError: if both are given, or one that is not 1 or more.
    """
    if epochs is not None and steps is not None:
        raise CallError(
            "expected epochs or steps, got both: epochs=1 goes through all rows, "
            "steps=100 through so many batches"
        )
    for count, name in ((epochs, "epoch"), (steps, "step")):
        if count is not None and not (count >= 1 and count == int(count)):
            raise CallError(f"expected 1 {name} or more, got {count}")
    return epochs or 1


def _scheduled(
    optimizers: Sequence[Optimizer], schedulers: Sequence[LRScheduler], epochs: int
) -> tuple[Settings, ...]:
    """Step schedulers; return each optimizer's hyperparameters by the stage.

    Raises:
        CallError: if one is of no such optimizer, or steps by values.
    """
    for one in schedulers:
        if isinstance(one, ReduceLROnPlateau):
            raise CallError(
                "ReduceLROnPlateau steps by a value, which is at the worker: use a "
                "scheduler that counts epochs"
            )
        if not any(one.optimizer is optimizer for optimizer in optimizers):
            raise CallError(
                f"{type(one).__name__} is of an optimizer that is not passed: pass "
                "the optimizer too"
            )
        one.optimizer._opt_called = True  # type: ignore[attr-defined] # as its step does
    settings: list[dict[int, tuple[dict[str, Option], ...]]] = [{} for _ in optimizers]
    for epoch in range(epochs):
        for known, optimizer in zip(settings, optimizers, strict=True):
            known[2 * epoch + 1] = settings_of(optimizer)
        for one in schedulers:
            one.step()
    return tuple(settings)


def _check_batches(
    rows: int | None, size: int | None, drop_last: bool, recorded: Recorded, worker: str
) -> None:
    """Check that each batch has as many rows as the program takes.

    Args:
        rows: how many there are; None if that is hidden, and the rest is the worker's.
        size: of a batch; None for all.
        drop_last: whether only full batches count.
        recorded: the program.
        worker: where it runs.

    Raises:
        CallError: if one has not.
    """
    known = HIDDEN_ROWS if rows is None else rows
    if size is not None:
        check_size(known, size, drop_last and rows is not None, worker)
    least, full = recorded.program.least, min(size or known, known)
    if full < least:
        raise ProgramError(
            f"a batch at {worker} has {full} row{'s' * (full > 1)}, and {least} or "
            "more are needed"
        )
    last = rows % size if rows and size and not drop_last else 0
    if 0 < last < least:
        raise CallError(
            f"the last batch at {worker} has {last} row{'s' * (last > 1)}, of {rows} "
            f"in batches of {size}, and {least} or more are needed; "
            "leave it out with drop_last=True, or choose another batch_size"
        )


def _held(tensor: torch.Tensor) -> Held:
    if not isinstance(tensor, RemoteTensor):
        raise LocationError(
            "a program", ["this process"], "send the model to where the rows are"
        )
    tensor._held.check()
    return tensor._held


def _session(tensors: Sequence[torch.Tensor], other: Session | None) -> Session:
    sessions = {_held(one).session for one in tensors}
    sessions |= {other} if other is not None else set()
    if len(sessions) > 1:
        raise LocationError(
            "a program",
            sorted(one.worker for one in sessions),
            "send model and rows to one worker",
        )
    return sessions.pop()


_steppers: weakref.WeakKeyDictionary[Optimizer, dict[Session, int]] = (
    weakref.WeakKeyDictionary()
)
"""Under which id a worker keeps what an optimizer keeps."""


def _stepping(session: Session, recorded: Recorded) -> tuple[Stepping, ...]:
    """Return what optimizers are for one run."""
    known: list[Stepping] = []
    for optimizer in recorded.optimizers:
        ids = _steppers.setdefault(optimizer, {})
        if session not in ids:
            ids[session] = session.new_id()
            weakref.finalize(optimizer, session.forget, ids[session])
        known.append(Stepping(ids[session], settings_of(optimizer)))
    for number, settings in enumerate(recorded.settings):
        id = 0
        options: tuple[dict[str, Option], ...] = ({},)
        if number < len(known):
            id, options = known[number].id, known[number].options
        stages = sorted(settings)
        if stages:
            options = settings[stages[0]]
        later = [
            (stage, settings[stage])
            for before, stage in itertools.pairwise(stages)
            if settings[stage] != settings[before]
        ]
        known[number : number + 1] = [Stepping(id, options, tuple(later))]
    return tuple(known)
