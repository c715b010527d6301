"""What one run of a program goes through: its tensors, its blocks, its batches.

::

    plan = Plan(store, definition, request, rows)  # ProgramError, CallError, or all
    plan.blocks                                  # runs of lines, and loops
    plan.options(0, stage)                       # hyperparameters of an optimizer

Rules:

- A step is a loop whose batches the request describes; of a whole training its text
  does.
- Inputs share no memory with each other, so that a graph may change one.
- Stages count what optimizers may differ in: each epoch is one, and what is done
  between two epochs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from obhut.errors import CallError, ProgramError
from obhut.programs.program import Line, Loop
from obhut.protocol.messages import RunProgram

from .batches import Batches
from .bodies import check_input
from .definitions import Definition
from .held_out import SplitRows
from .shape_only import ShapeOnly
from .shape_only_calls import shape_only_mode
from .shapes import Spec, look_of
from .store import Store

# Any below: hyperparameters are of several types.

Block: TypeAlias = list[Line] | Loop
"""Lines one after the other, or a loop."""


class Plan:
    """What one run goes through.

    Args:
        store: the session's tensors.
        definition: the program.
        request: what is run.
        rows: the tensors of rows.
        hidden: whether how many rows there are is hidden.
        minimum_rows: of a part of them.
        columns: of each of these tensors the places of the columns that are meant, None
            for all; nothing for all of all.

    Attributes:
        inputs: the tensors that are no rows.
        blocks: what is done, in order.
        batches: of each loop, in order.
        counts: the rows and batches that each goes through in an epoch.
        groups: of each optimizer, its kind and the parameters of its groups.

    Raises:
        ProgramError: if the program does not go with what is given.
        CallError: if there are too few rows.
    """

    def __init__(
        self,
        store: Store,
        definition: Definition,
        request: RunProgram,
        rows: Sequence[torch.Tensor],
        hidden: bool = False,
        minimum_rows: int = 0,
        columns: Sequence[torch.Tensor | None] = (),
    ) -> None:
        self._definition, self._request, self._rows = definition, request, rows
        self._program = program = definition.program
        self.inputs = [store[id] for id in request.inputs]
        self._check_given()
        only: SplitRows | None = None
        if request.split is not None:
            only = SplitRows(request.split, store.worker, len(rows[0]))
            only.check(minimum_rows)
            if definition.loops and not len(only):
                raise CallError(
                    f"a whole training goes through batches, and the part that is held "
                    f"out or left at {store.worker} has no rows: hold out another share"
                )
        self.blocks = _blocks(definition, request)
        loops = [one for one in self.blocks if isinstance(one, Loop)]
        self.batches = [
            Batches(
                self._rows,
                one.size,
                shuffle=one.shuffle,
                drop_last=one.drop_last,
                least=program.least,
                hidden=hidden,
                only=only,
                steps=request.steps,
                columns=columns,
            )
            for one in loops
        ]
        self.counts: dict[str, int] = {}
        if definition.loops:
            for place, batches in enumerate(self.batches):
                self.counts |= {f"N{place}": batches.gone, f"K{place}": len(batches)}
        self._check_inputs()
        by_id = dict(zip(self.own_ids, self.inputs, strict=True))
        self.groups = [
            (one.kind, [[by_id[id] for id in group] for group in one.groups])
            for one in program.optimizers
        ]

    def again(
        self,
        inputs: Sequence[torch.Tensor],
        rows: Sequence[torch.Tensor],
        columns: Sequence[torch.Tensor | None] = (),
    ) -> Plan | None:
        """Return the same plan for others, where that can be told without looking.

        Args:
            inputs: others, of the same memory.
            rows: others; None is returned if they look otherwise.
            columns: as before; None is returned if some are meant.

        Raises:
            ProgramError: if they share memory.
        """
        if list(map(look_of, rows)) != self._looks or self._request.split is not None:
            return None
        if any(one is not None for one in columns):
            return None
        _check_apart([*inputs, *rows])
        made = object.__new__(Plan)  # copy.copy takes longer than all of this
        made.__dict__.update(self.__dict__)
        made.inputs, made._rows = list(inputs), rows
        made.batches = [one.of(rows) for one in self.batches]
        return made

    def _check_given(self) -> None:
        program, request = self._program, self._request
        if len(self._rows) != len(self._definition.rows) or not all(
            one.dim() for one in self._rows
        ):
            raise ProgramError(
                f"a program of {len(self._definition.rows)} tensors of rows is run"
            )
        if len({len(one) for one in self._rows}) > 1:
            raise ProgramError("expected as many rows of each")
        if len(self.inputs) + len(self._rows) != len(program.inputs):
            raise ProgramError(
                f"a program of {len(program.inputs)} inputs is run, and "
                f"{len(self.inputs) + len(self._rows)} are given"
            )
        if len(request.optimizers) != len(program.optimizers):
            raise ProgramError(
                f"a program of {len(program.optimizers)} optimizers is run"
            )
        if request.steps and request.epochs > 1:
            raise ProgramError("a run has a number of epochs or of steps, not both")
        own = request.batch_size or request.shuffle or request.drop_last
        own = own or request.steps
        if self._definition.loops and (own or request.epochs > 1):
            raise ProgramError("a whole training says itself in which batches it runs")
        _check_apart([*self.inputs, *self._rows])

    def _check_inputs(self) -> None:
        size = self.batches[0].sizes[0]  # other batches have other rows, and no more
        with self._mode():
            tensors = self.given(self.batches[0].first(size), self.inputs)
        for one, tensor in zip(self._program.inputs, tensors, strict=True):
            check_input(one, tensor, size)

    @functools.cached_property
    def _looks(self) -> list[Spec]:
        return [look_of(one) for one in self._rows]

    @property
    def lines(self) -> int:
        """How many lines are run, over all batches of all epochs."""
        each = iter(self.batches)
        return sum(
            one.count * len(next(each)) * one.epochs
            if isinstance(one, Loop)
            else len(one)
            for one in self.blocks
        )

    @functools.cached_property
    def turns(self) -> int:
        """How many batches of rows are gone through, over all loops and epochs."""
        loops = (one for one in self.blocks if isinstance(one, Loop))
        return sum(
            len(batches) * loop.epochs
            for loop, batches in zip(loops, self.batches, strict=True)
        )

    @property
    def shuffles(self) -> bool:
        """Whether rows are gone through in an order that is drawn."""
        return any(one.shuffle for one in self.blocks if isinstance(one, Loop))

    @property
    def own_ids(self) -> Collection[int]:
        """The ids of the inputs that are no rows."""
        return self._definition.own

    @property
    def stepped(self) -> list[torch.Tensor]:
        """The parameters that optimizers step."""
        return [t for _, groups in self.groups for group in groups for t in group]

    @property
    def all(self) -> list[torch.Tensor]:
        """All inputs, and all rows."""
        return [*self.inputs, *self._rows]

    def own(self) -> list[torch.Tensor]:
        """Return inputs of the same memory, whose gradients are the run's."""
        tracked = self._definition.own.values()
        with self._mode():
            return [
                one.detach().requires_grad_(is_tracked)
                for one, is_tracked in zip(self.inputs, tracked, strict=True)
            ]

    def given(
        self, batch: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return all inputs in the program's order, with a batch of rows."""
        rows, own = iter(batch), iter(inputs)
        are_rows = self._definition.rows
        return [
            next(rows) if id in are_rows else next(own)
            for id in range(1, len(self._program.inputs) + 1)
        ]

    def first(self, loop: int, size: int) -> list[torch.Tensor]:
        """Return a batch of the first rows."""
        with self._mode():
            return [one.clone() for one in self.batches[loop].first(size)]

    def _mode(self) -> contextlib.AbstractContextManager[object]:
        without = isinstance(self._rows[0], ShapeOnly)
        return shape_only_mode() if without else contextlib.nullcontext()

    def options(self, number: int, stage: int) -> Sequence[Mapping[str, Any]]:
        """Return the hyperparameters of each group of an optimizer.

        Args:
            number: the optimizer's, from 0.
            stage: twice the epochs that are over, and one more inside of an epoch.
        """
        one = self._request.optimizers[number]
        found = one.options
        for begin, options in one.later:
            if begin <= stage:
                found = options
        return found

    @property
    def changes(self) -> set[int]:
        """The stages in which an optimizer gets other hyperparameters."""
        return {begin for one in self._request.optimizers for begin, _ in one.later}


def _blocks(definition: Definition, request: RunProgram) -> list[Block]:
    if not definition.loops:
        how = (request.batch_size, request.shuffle, request.drop_last, request.epochs)
        return [Loop(*how, (), (), (definition.part,))]
    blocks: list[Block] = []
    for one in definition.program.blocks:
        if isinstance(one, Loop):
            blocks.append(one)
        elif blocks and isinstance(blocks[-1], list):
            blocks[-1].append(one)
        else:
            blocks.append([one])
    return blocks


def _check_apart(tensors: Sequence[torch.Tensor]) -> None:
    """Check that no two tensors share memory.

    Raises:
        ProgramError: if two do.
    """
    if not are_apart(tensors):
        raise ProgramError(
            "inputs of a program share memory: pass each once, or copies: x.clone()"
        )


def are_apart(tensors: Sequence[torch.Tensor]) -> bool:
    """Tell whether no two tensors share memory."""
    memory = {one.untyped_storage()._cdata for one in tensors}
    return len(memory) == len(tensors)
