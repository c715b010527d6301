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
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from obhut.errors import CallError, LocationError
from obhut.protocol.messages import Define, Option, RunProgram, Stepping
from obhut.worker.shapes import dense

from .cancelling import interruptible
from .held import Held
from .looping import record_training
from .ratio import Ratio
from .recording import (
    Recorded,
    looks_of,
    parameters_of,
    record,
    settings_of,
)
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
        self._recorded: dict[object, Recorded] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function as it is."""
        return self.__wrapped__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<program {getattr(self.__wrapped__, '__qualname__', '')}>"

    def record(self, *, data: Any, **given: Any) -> Recorded:
        """Return the function as a program for such arguments; nothing is sent.

        Args:
            data: tensors of rows, here or there, in the order of the function's last
                parameters: one, several, or a data set.
            given: the other arguments, by name.

        Raises:
            ProgramError: if it can not be recorded, with the line that is why.
            CallError: if arguments are missing.
        """
        rows = self._rows(data, given)
        looks = looks_of(list(rows.values()))
        key = _key(given, looks, self._is_whole)
        found = self._recorded.get(key)
        if found is None:
            if self._is_whole:
                found = record_training(self.__wrapped__, given, looks)
            else:
                by_name = dict(zip(rows, looks, strict=True))
                found = record(self.__wrapped__, given, by_name)
            self._recorded[key] = found
            return found
        return found._replace(
            tensors=tuple(_tensors(given)),
            optimizers=tuple(v for v in given.values() if isinstance(v, Optimizer)),
        )

    @property
    def _is_whole(self) -> bool:
        """Whether the function is a whole training, which loops over its data."""
        return parameters_of(self.__wrapped__)[-1:] == ["data"]

    @interruptible
    def run(
        self,
        *,
        data: Any,
        batch_size: int | None = None,
        epochs: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        **given: Any,
    ) -> Any:
        """Go through rows in batches where they are, and run the function on each.

        Models change in place. What optimizers keep stays at the worker for the next
        run, for as long as there is the optimizer.

        Args:
            data: as for ``record``, at a worker.
            batch_size: rows of a batch; the last may have fewer. None for all.
            epochs: how often it goes through the rows.
            shuffle: in a new order each time, which the worker draws for itself.
            drop_last: leave out what is left after the full batches.
            seed: of all that is drawn.
            given: the other arguments, by name: modules at the same worker, and
                optimizers of their parameters.

        Returns:
            A ``Ratio`` of tensors at the worker, (epochs,), float64; or a dictionary of
            such, if the function returns one. Of a loss the numerator is its sum over
            the rows, the denominator their number.

        Raises:
            ProgramError: if the function can not be recorded.
            LocationError: if the arguments are not at one worker.
            CallError: if arguments are missing.
        """
        if self._is_whole and (batch_size or shuffle or drop_last or epochs != 1):
            raise CallError(
                "a whole training says itself in which batches it runs: "
                "data.batches(32, shuffle=True)"
            )
        recorded = self.record(data=data, **given)
        rows = list(self._rows(data, given).values())
        session = _session([*rows, *recorded.tensors])
        _define(session, recorded)
        results = recorded.program.results
        count = 2 * len(results)
        out = session.new_ids(count)
        session.post(
            RunProgram(
                recorded.digest,
                tuple(_held(one).id for one in recorded.tensors),
                tuple(_held(one).id for one in rows),
                out,
                count,
                batch_size or 0,
                epochs,
                shuffle,
                drop_last,
                seed,
                _stepping(session, recorded),
            )
        )
        look = dense(() if self._is_whole else (epochs,), torch.float64)
        made = [RemoteTensor._of(Held(session, out + n, look)) for n in range(count)]
        ratios = {
            one.name: Ratio(made[2 * place], made[2 * place + 1])
            for place, one in enumerate(results)
        }
        return ratios.get("", ratios or None)

    def _rows(self, data: Any, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the rows by the function's own names."""
        if isinstance(data, torch.Tensor):
            tensors: Sequence[torch.Tensor] = (data,)
        elif hasattr(data, "features"):
            tensors = (data.features, data.targets)
        else:
            tensors = tuple(data)
        names = parameters_of(self.__wrapped__)
        if self._is_whole:
            names[-1:] = [f"data.{place}" for place in range(len(tensors))]
        own, taken = names[: len(names) - len(tensors)], names[-len(tensors) :]
        if not tensors or sorted(own) != sorted(given):
            raise CallError(
                f"expected {', '.join(own)} and {len(taken)} tensors of rows as data, "
                f"got {', '.join(given) or 'nothing'}"
            )
        return dict(zip(taken, tensors, strict=True))


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
            key.append(repr(value))
            key += [(type(one), one.training) for one in value.modules()]
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
            key.append(repr(value))
    return tuple(key)


def _held(tensor: torch.Tensor) -> Held:
    if not isinstance(tensor, RemoteTensor):
        raise LocationError(
            "a program", ["this process"], "send the model to where the rows are"
        )
    tensor._held.check()
    return tensor._held


def _session(tensors: Sequence[torch.Tensor]) -> Session:
    sessions = {_held(one).session for one in tensors}
    if len(sessions) > 1:
        raise LocationError(
            "a program",
            sorted(one.worker for one in sessions),
            "send model and rows to one worker",
        )
    return sessions.pop()


_defined: weakref.WeakKeyDictionary[Session, set[str]] = weakref.WeakKeyDictionary()


def _define(session: Session, recorded: Recorded) -> None:
    """Let a worker have a program's text, once."""
    known = _defined.setdefault(session, set())
    if recorded.digest not in known:
        session.post(Define(recorded.text), carried=len(recorded.text))
        known.add(recorded.digest)


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
