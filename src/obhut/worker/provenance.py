"""Keeps how each tensor of a session was made, for who answers.

::

    provenance = Provenance()
    made = provenance.operation(how, request, args, kwargs)   # before the operator runs
    provenance.ran(how, request, made, args, kwargs, result)
    provenance.delivered(tensors)                # what a header says of them

Rules:

- It is computed from requests and from tensors without values. So nobody can state
  another, and who answers alone makes the same again.
- How a tensor was made is written when it is made. Each storage has its last write,
  whichever alias wrote; that holds all before. Both together are what a tensor *is*.
- A backward pass adds to what it reaches: what it began from, which tensors of the
  graph are the same one, which of them this is, and all writes since the graph began
  that autograd has no notice of.
- Where memory may be shared without this side's knowing, as gradients' may, a write to
  one counts as a write to all.
- What can't be known is unknown, and so is what is made of it: draws that nobody
  seeded; rows of a data set that were written into, since a process that has the rows
  and begins anew has them as they were.
- Only what was carried out is taken in.
- Steps are hashed when a digest is asked for, or there are many: one after the other,
  that takes half the time.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.autograd.graph import Node, get_gradient_edge

from obhut.guard.provenance import UNKNOWN, digest
from obhut.protocol.messages import (
    Aggregate,
    Backward,
    Differentiate,
    Load,
    Ref,
    Run,
    TensorData,
    Value,
)

from .guarded import Guarded
from .shape_only import Memory, ShapeOnly
from .tensors import DTYPE_NAMES

# Any below: operators take and return whatever their schema says.

# Any: a class that only its instances lead to.
_ACCUMULATES: Any = torch._C._functions.AccumulateGrad  # type: ignore[attr-defined] # it has no stub
"""The node at which a graph ends, in a leaf."""

# Any: untyped. Each thread has a count of its own, and a session's process one thread.
_now: Any = torch._C._autograd._get_sequence_nr
"""Returns how many nodes autograd has made."""

_UNSEEN = 4096
"""Writes without autograd's notice that are told apart at most."""

_PENDING = 512
"""Steps that wait to be hashed at most."""


class Step:
    """Something that was carried out.

    Attributes:
        digest: its digest, once it was hashed; empty if it is not known.
        said: what it is, but for what it was made of.
        states: what it was made of, in order: of each tensor how it was made, and the
            last write to its memory, None if there was none. Nothing once it is hashed.
    """

    __slots__ = ("digest", "said", "states")

    def __init__(self, said: Sequence[Any], states: Sequence[Made | None]) -> None:
        self.digest = UNKNOWN
        self.said = said
        self.states = states


Made: TypeAlias = Step | tuple[Step, int, int]
"""A result of a step, the first or another."""

NOBODY_KNOWS = Step((), ())
"""A step of which nothing is known."""


class Pass(NamedTuple):
    """A backward pass that is about to run.

    Attributes:
        step: the pass.
        reached: what it adds gradients to, each with its place in the graph and what
            its gradient is before; None if it has none.
        given: the gradients that it begins with.
    """

    step: Step
    reached: Sequence[
        tuple[torch.Tensor, tuple[int, int], Sequence[Made | None] | None]
    ]
    given: Sequence[torch.Tensor]


class Provenance:
    """How the tensors of one session were made."""

    def __init__(self) -> None:
        self._pending: list[Step] = []
        self._drawn: Made = NOBODY_KNOWS  # until somebody seeds
        self._unseen: list[tuple[int, Made]] = []
        self._retained: list[weakref.ref[torch.Tensor]] = []

    def delivered(self, tensors: Iterable[torch.Tensor]) -> tuple[bytes, ...]:
        """Return what the header of a delivery says of tensors."""
        steps = [self._step(("delivered",), state(one)) for one in tensors]
        self._hash()
        return tuple(step.digest for step in steps)

    def _step(self, said: Sequence[Any], states: Sequence[Made | None] = ()) -> Step:
        """Return a step that was carried out."""
        pending = self._pending
        if len(pending) >= _PENDING:
            self._hash()
        made = Step(said, states)
        pending.append(made)
        return made

    def _hash(self) -> None:
        """Hash all steps that wait; what a step was made of came before it."""
        for step in self._pending:
            if not step.said:
                continue  # Ctrl-C came when it was hashed
            found = [None if one is None else _bytes(one) for one in step.states]
            if UNKNOWN not in found:
                said = step.said
                if said[0].__class__ is Run:
                    said = _spelt(*said)
                step.digest = digest(*said, found)
            step.said = step.states = ()
        self._pending.clear()

    # --- what comes ---

    def came(self, tensor: torch.Tensor, data: TensorData, content: bytes) -> None:
        """Take in a tensor that came from elsewhere.

        Args:
            tensor: stands for it.
            data: what it looks like.
            content: the digest of its bytes; empty if that is not known.
        """
        said = ("put", data.dtype, data.shape, data.requires_grad, content)
        _name(tensor, self._step(said) if content else NOBODY_KNOWS)

    def loaded(self, tensor: torch.Tensor, request: Load) -> None:
        """Take in part of a data set: by its name, and not whose it is."""
        _name(tensor, self._step(("load", request.dataset, request.part)))
        _memory(tensor).rows = True

    # --- operators ---

    def operation(
        self, how: Guarded, request: Run, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Step:
        """Return the step of an operator that is about to run.

        Args:
            how: the operator.
            request: the request.
            args: its arguments, with tensors for references.
            kwargs: likewise.
        """
        states: list[Made | None] = []
        for value, found in zip(request.args, args, strict=True):
            if value.__class__ is Ref:
                states += state(found)
            elif isinstance(value, list):
                _add_states(states, value, found)
        if request.kwargs:
            for name, value in request.kwargs.items():
                _add_states(states, [value], [kwargs[name]])
        if how.random and how.draws(args, kwargs):
            states.append(self._stream(request))
        return Step((request, torch.get_default_dtype()), states)

    def ran(
        self,
        how: Guarded,
        request: Run,
        step: Step,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        result: Any,
    ) -> None:
        """Take in that an operator has run, and its results are held.

        Args:
            how: the operator.
            request: the request.
            step: what ``operation`` returned.
            args: its arguments.
            kwargs: likewise.
            result: what it returned.
        """
        pending = self._pending
        if len(pending) >= _PENDING:
            self._hash()
        pending.append(step)
        if how.random and how.draws(args, kwargs):
            self._drawn = step
        elif request.seed is not None:
            self._drawn = self._stream(request)
        if result.__class__ is ShapeOnly:
            if result.made is None:
                result.made = step
        elif how.holds:
            self.name(step, result)
        if how.written:
            for at, target in how.changed(args, kwargs):
                self._wrote(target, step, how.unseen, at)

    def _stream(self, request: Run) -> Made:
        """Return what decides an operator's draws beside itself."""
        if request.seed is None:
            return self._drawn
        return self._step(("seed", request.seed))

    def name(self, step: Step, result: Any) -> None:
        """Take in new tensors, all of one computation.

        What a program makes is taken in so: its step says the digest that
        ``guard.provenance.of_program`` returns of the program's own digest, and its
        states are those of what it was given.
        """
        if result.__class__ is ShapeOnly:
            _name(result, step)
            return
        for place, leaf in enumerate(_leaves(result)):
            if isinstance(leaf, torch.Tensor):
                _name(leaf, (step, place, 0))

    def _wrote(self, target: Any, step: Step, unseen: bool, place: int) -> None:
        """Take in that an argument was written."""
        if target.__class__ is not ShapeOnly:
            for at, one in enumerate(_list(target)):
                # Told apart from what other arguments hold.
                self._wrote(one, step, unseen, 256 * (1 + at) + place)
            return
        memory = target.memory
        while memory.joined is not None:
            memory = memory.joined
        now = NOBODY_KNOWS if memory.rows else (step, place, 0)
        # It may have got other memory, or lie elsewhere in the same.
        target.made = memory.written = now
        if unseen or memory.unseen:
            self._write_unseen(now)

    def _write_unseen(self, made: Made) -> None:
        """Take in a write that autograd has no notice of, and when it was."""
        unseen = self._unseen
        if len(unseen) >= _UNSEEN:
            half = unseen[: _UNSEEN // 2]
            folded = self._step(("unseen",), [one for _, one in half])
            unseen[: _UNSEEN // 2] = [(half[-1][0], folded)]
        unseen.append((_now(), made))

    def _since(self, first: int) -> list[Made | None]:
        """Return the writes that autograd has no notice of, since a node was made."""
        found: list[Made | None] = []
        for when, made in reversed(self._unseen):
            if when <= first:
                break
            found.append(made)
        return found

    def aggregated(
        self, request: Aggregate, result: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> None:
        """Take in what tensors were combined to."""
        said = (request.kind, request.trim, request.weights, request.divisor)
        states = [one for tensor in given for one in state(tensor)]
        _name(result, self._step(("aggregate", *said, request.dtype), states))

    # --- other names, and what autograd knows ---

    def bared(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        """Take in a tensor's ``.data``, through which it is written unseen."""
        _rename(data, self._step(("data",), state(tensor)))
        _memory(tensor).unseen = True

    def replaced(
        self, tensor: torch.Tensor, data: torch.Tensor, before: Sequence[Made | None]
    ) -> None:
        """Take in that a tensor has another one's memory.

        Args:
            tensor: what has it now.
            data: whose it was.
            before: the state of the first, before.
        """
        step = self._step(("replace",), (*before, *state(data)))
        _rename(tensor, step)
        _memory(tensor).unseen = True
        self._write_unseen(step)

    def tracked(self, tensor: torch.Tensor, value: bool) -> None:
        """Take in that autograd shall record of a tensor, or not."""
        _rename(tensor, self._step(("track", value), state(tensor)))

    def retained(self, tensor: torch.Tensor) -> None:
        """Take in that a tensor keeps its gradient."""
        self._retained = [ref for ref in self._retained if ref() is not None]
        self._retained.append(weakref.ref(tensor))

    def cleared(self) -> None:
        """Take in that nothing is held any more."""
        self._unseen, self._retained = [], []

    # --- backward passes ---

    def begin(
        self,
        request: Backward | Differentiate,
        roots: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor | None],
        inputs: Sequence[torch.Tensor] | None,
    ) -> Pass:
        """Return a backward pass that is about to run.

        Args:
            request: the request.
            roots: its roots.
            grads: gradients of these.
            inputs: what it shall reach; None for all leaves.
        """
        graph = _Graph(roots)
        places: list[tuple[torch.Tensor, tuple[int, int]]]
        if inputs is None:
            places = [(one, (number, 0)) for number, one in graph.leaves.items()]
            for ref in self._retained:
                kept = ref()
                if kept is not None and (at := graph.place(kept))[0] >= 0:
                    places.append((kept, at))
        else:
            places = [(one, graph.place(one)) for one in inputs]
        states = self._since(graph.first)
        for one in roots:
            states += state(one)
        given = [one for one in grads if one is not None]
        for one in given:
            states += state(one)
        said = (
            type(request).__name__,
            request.create_graph,
            DTYPE_NAMES[torch.get_default_dtype()],
            graph.shape,
            len(states),
            [one is None for one in grads],
            None if inputs is None else [at for _, at in places],
        )
        before = [
            (one, at, None if (grad := _gradient(one)) is None else state(grad))
            for one, at in places
            if isinstance(request, Backward)
        ]
        return Pass(Step(said, states), before, given)

    def accumulated(self, done: Pass) -> None:
        """Take in that a backward pass has added to gradients."""
        step = done.step
        self._pending.append(step)
        changed: list[torch.Tensor] = []
        added = False
        for tensor, at, before in done.reached:
            grad = _gradient(tensor)
            if grad is None:
                continue
            changed.append(grad)
            made: Made = (step, *at)
            if before is not None:
                made = self._step(("accumulate",), (*before, made))
                added = True
            _rename(grad, made)
        self._join((*changed, *done.given), step, added)

    def differentiated(
        self, done: Pass, results: Sequence[torch.Tensor | None]
    ) -> None:
        """Take in the results of a pass that adds nothing."""
        self._pending.append(done.step)
        self.name(done.step, list(results))
        there = [one for one in results if one is not None]
        self._join((*there, *done.given), done.step, False)

    def _join(self, tensors: Iterable[torch.Tensor], step: Step, wrote: bool) -> None:
        """Take in that tensors may share memory, and perhaps were written."""
        memories = dict.fromkeys(map(_memory, tensors))
        if not memories:
            return
        first, *others = memories
        now: Made = (step, -1, 0)
        if others:
            first.unseen = True
            for one in others:
                one.joined = first
                first.rows |= one.rows
            if first.rows and wrote:
                now = NOBODY_KNOWS
        elif not wrote:
            return
        first.written = now


def state(tensor: Any) -> Sequence[Made | None]:
    """Return how a tensor was made, and what was written since."""
    if tensor.__class__ is not ShapeOnly:
        return (NOBODY_KNOWS,)
    memory = tensor.memory
    while memory.joined is not None:
        memory = memory.joined
    return tensor.made or NOBODY_KNOWS, memory.written


def _add_states(
    states: list[Made | None], values: Sequence[object], found: Sequence[Any]
) -> None:
    """Add the states of the tensors that arguments name."""
    for value, one in zip(values, found, strict=True):
        if value.__class__ is Ref:
            states += state(one)
        elif isinstance(value, list):
            _add_states(states, value, one)


def _spelt(request: Run, dtype: torch.dtype) -> tuple[Any, ...]:
    """Return what an operator's step says: no ids, a mark for each tensor."""
    kwargs = {name: _marked(value) for name, value in request.kwargs.items()}
    args = [_marked(value) for value in request.args]
    return (
        "run",
        request.op,
        request.grad,
        DTYPE_NAMES[dtype],
        args,
        list(kwargs.items()),
    )


def _marked(value: Value) -> Any:
    if isinstance(value, list):
        return [_marked(one) for one in value]
    return b"" if value.__class__ is Ref else value


class _Graph:
    """The part of autograd's graph that a backward pass goes through.

    Args:
        roots: where it begins.

    Attributes:
        first: when the first of its nodes was made, by autograd's own count.
        leaves: what it ends at, by number.
        shape: which nodes are joined to which, each numbered when it is first met. So
            two leaves that were made alike are told from one that is used twice.
    """

    def __init__(self, roots: Sequence[torch.Tensor]) -> None:
        self._numbers: dict[Node, int] = {}
        self.first = _now()
        self.leaves: dict[int, torch.Tensor] = {}
        self.shape: list[int] = []
        numbers, shape, nodes = self._numbers, self.shape, list[Node]()
        for root in roots:
            node = root.grad_fn
            if node is None and root.requires_grad:
                node = get_gradient_edge(root).node
            if node is not None:
                shape += (numbers.setdefault(node, len(nodes)), root.output_nr)
                if len(numbers) > len(nodes):
                    nodes.append(node)
        for number, node in enumerate(nodes):  # which grow meanwhile
            if node.__class__ is _ACCUMULATES:
                self.leaves[number] = node.variable  # type: ignore[attr-defined] # it has
                shape.append(-2)
                continue
            made = node._sequence_nr()
            self.first = min(self.first, made)
            following = node.next_functions
            shape.append(len(following))
            for one, output in following:
                if one is None:
                    shape.append(-1)
                    continue
                shape += (numbers.setdefault(one, len(nodes)), output)
                if len(numbers) > len(nodes):
                    nodes.append(one)

    def place(self, tensor: torch.Tensor) -> tuple[int, int]:
        """Return a tensor's node and output in the graph; -1 if it is not in it."""
        node = tensor.grad_fn
        if node is not None:
            return self._numbers.get(node, -1), tensor.output_nr
        found = (number for number, one in self.leaves.items() if one is tensor)
        return next(found, -1), 0


def _bytes(made: Made) -> bytes:
    """Return what stands for a result, as long as any other; empty if unknown."""
    if made.__class__ is Step:
        known = made.digest
        return known + _FIRST if known else UNKNOWN
    step, place, output = made  # type: ignore[misc] # a tuple, as it is no step
    known = step.digest
    if not known:
        return UNKNOWN
    if not (place or output):
        return known + _FIRST
    return known + place.to_bytes(8, "big", signed=True) + output.to_bytes(4, "big")


_FIRST = bytes(12)


def _name(tensor: Any, made: Made) -> None:
    """Write how a tensor was made, unless that is known: an operator may return it."""
    if tensor.__class__ is ShapeOnly and tensor.made is None:
        tensor.made = made


def _rename(tensor: Any, made: Made) -> None:
    """Write how a tensor is made from now on."""
    if tensor.__class__ is ShapeOnly:
        tensor.made = made


def _memory(tensor: Any) -> Memory:
    """Return what stands for a tensor's storage and all that may be the same."""
    memory: Memory = tensor.memory if tensor.__class__ is ShapeOnly else Memory()
    while memory.joined is not None:
        memory = memory.joined
    return memory


def _gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    if tensor.is_leaf or tensor.retains_grad:
        return tensor.grad
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was asked for by name
        return tensor.grad


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _leaves(result: Any) -> Iterator[Any]:
    """Yield what a nested result holds, in the order in which it is held."""
    if isinstance(result, list | tuple):
        for one in result:
            yield from _leaves(one)
    else:
        yield result
