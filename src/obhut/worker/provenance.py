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
  graph are the same one, and which of them this is.
- Of what is written it counts, too, which arguments are one memory: two tensors that
  were sent alike are not.
- Where memory may be shared without this side's knowing, as gradients' may, a write to
  one counts as a write to all.
- What can't be known is unknown, and so is what is made of it: draws that nobody
  seeded; a backward pass whose graph may have saved what was written without autograd's
  notice; rows of a data set that were written into, since a process that has the rows
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
    Ref,
    Run,
    RunProgram,
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

_PASSES = 256
"""Passes that can be differentiated again which are told apart at most."""

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
        begun: if what it makes can be differentiated again, when it began, and since
            when tensors were recorded that it reads. None if it can't.
    """

    step: Step
    reached: Sequence[
        tuple[torch.Tensor, tuple[int, int], Sequence[Made | None] | None]
    ]
    given: Sequence[torch.Tensor]
    begun: tuple[int, int] | None


class Provenance:
    """How the tensors of one session were made."""

    def __init__(self) -> None:
        self._pending: list[Step] = []
        self._drawn: Made = NOBODY_KNOWS  # until somebody seeds
        self._overwritten = -1  # when what was written unseen was last recorded
        self._again: list[tuple[int, int, int]] = []
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

    def recalled(self, tensor: torch.Tensor, digest: bytes) -> None:
        """Take in a tensor that was stored: it was made as what was stored was.

        Args:
            tensor: stands for it.
            digest: what the header said of it then; empty if that is not known.
        """
        step = NOBODY_KNOWS
        if digest:
            step = Step((), ())
            step.digest = digest
        _name(tensor, step)

    def loaded(
        self, tensor: torch.Tensor, dataset: str, part: str, columns: Sequence[str] = ()
    ) -> None:
        """Take in part of a data set: by its name, and not whose it is.

        Args:
            tensor: stands for it.
            dataset: the data set's name.
            part: the part's.
            columns: the names of the columns that were chosen, in order; none for all.
                Not where they are: that is the owner's own.
        """
        said = ("load", dataset, part, *([list(columns)] if columns else []))
        _name(tensor, self._step(said))
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
        # Which of them are one memory matters where one is written.
        alike = _alike((*args, *kwargs.values())) if how.written else None
        return Step((request, torch.get_default_dtype(), alike), states)

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
        if request.grad:
            _record(how, args, kwargs, result)

    def _stream(self, request: Run) -> Made:
        """Return what decides an operator's draws beside itself."""
        if request.seed is None:
            return self._drawn
        return self._step(("seed", request.seed))

    def name(self, step: Step, result: Any) -> None:
        """Take in new tensors, all of one computation, such as a program's run."""
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
            self._overwritten = max(self._overwritten, memory.used)

    def aggregated(
        self, request: Aggregate, result: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> None:
        """Take in what tensors were combined to."""
        said = (request.kind, request.trim, request.weights, request.divisor)
        states = [one for tensor in given for one in state(tensor)]
        _name(result, self._step(("aggregate", *said, request.dtype), states))

    def program(
        self,
        request: RunProgram,
        given: Sequence[torch.Tensor],
        kept: Sequence[Made | None],
    ) -> Step:
        """Return the step of a program that has run.

        Args:
            request: the request.
            given: its inputs and rows, as they were before.
            kept: of each of its optimizers, the run of which it keeps something.
        """
        options = [
            [
                (stage, [sorted(group.items()) for group in groups])
                for stage, groups in ((0, one.options), *one.later)
            ]
            for one in request.optimizers
        ]
        said = (
            "program",
            request.program,
            request.batch_size,
            request.epochs,
            request.shuffle,
            request.drop_last,
            request.steps,
            request.split,
            request.seed,
            options,
            DTYPE_NAMES[torch.get_default_dtype()],
        )
        states = [one for tensor in given for one in state(tensor)]
        return self._step(said, (*states, *kept))

    def wrote(self, tensor: torch.Tensor, step: Step, place: int) -> None:
        """Take in that a program has written one of its inputs."""
        self._wrote(tensor, step, False, place)

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

    def tracked(self, tensor: torch.Tensor, value: bool) -> None:
        """Take in that autograd shall record of a tensor, or not."""
        _rename(tensor, self._step(("track", value), state(tensor)))

    def retained(self, tensor: torch.Tensor) -> None:
        """Take in that a tensor keeps its gradient."""
        self._retained = [ref for ref in self._retained if ref() is not None]
        self._retained.append(weakref.ref(tensor))

    def cleared(self) -> None:
        """Take in that nothing is held any more."""
        self._overwritten, self._again, self._retained = -1, [], []

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
        kept = [one for ref in self._retained if (one := ref()) is not None]
        retained = [(one, at) for one in kept if (at := graph.place(one))[0] >= 0]
        wanted = None
        added: list[tuple[torch.Tensor, tuple[int, int]]] = []
        if inputs is not None:
            wanted = [(one, graph.place(one)) for one in inputs]
        if isinstance(request, Backward):
            leaves = [(one, (number, 0)) for number, one in graph.leaves.items()]
            added = leaves if wanted is None else wanted
        given = [one for one in grads if one is not None]
        states: list[Made | None] = []
        if self._overwritten >= self._first(graph):
            states.append(NOBODY_KNOWS)
        for one in (*roots, *given):
            states += state(one)
        said = (
            type(request).__name__,
            request.create_graph,
            DTYPE_NAMES[torch.get_default_dtype()],
            graph.shape,
            len(roots),
            [one is None for one in grads],
            None if wanted is None else [at for _, at in wanted],
            [at for _, at in retained],
        )
        reached = [
            (one, at, None if (grad := _gradient(one)) is None else state(grad))
            for one, at in (*added, *retained)
        ]
        begun = (_now(), self._first(graph)) if request.create_graph else None
        return Pass(Step(said, states), reached, given, begun)

    def _first(self, graph: _Graph) -> int:
        """Return since when tensors were recorded that a graph may have saved.

        What a pass has made that can be differentiated again saves what was saved for
        that pass.
        """
        first: int = graph.first
        for begun, ended, before in self._again:
            if begun <= graph.last and ended >= graph.first:
                first = min(first, before)
        return first

    def passed(self, done: Pass, results: Sequence[torch.Tensor | None] = ()) -> None:
        """Take in that a backward pass has run.

        Args:
            done: what ``begin`` returned.
            results: its results, of one that has some.
        """
        step = done.step
        self._pending.append(step)
        self.name(step, results)
        if done.begun is not None:
            begun, before = done.begun
            ended = _now() - 1
            self._again.append((begun, ended, before))
            for one in done.given:
                _memory(one).used = ended
            if len(self._again) > _PASSES:
                starts, ends, firsts = zip(*self._again, strict=True)
                self._again = [(min(starts), max(ends), min(firsts))]
        there = [one for one in results if one is not None]
        changed = [
            (grad, at, before)
            for tensor, at, before in done.reached
            if (grad := _gradient(tensor)) is not None
        ]
        old = [one for one in changed if one[2] is not None]
        foreign = any(not _is_gradient(one) for one in done.given)
        if old:
            foreign |= any(not _is_gradient(grad) for grad, _, _ in old)
            said = [at for _, at, _ in old], _alike(grad for grad, _, _ in old)
            states: list[Made | None] = [step]
            for _, _, known in old:
                states += known or ()
            step = self._step(("accumulate", *said), states)
        for grad, at, _ in changed:
            _rename(grad, (step, *at))
            there.append(grad)
        self._join((*there, *done.given), step, bool(old), foreign)
        for one in there:
            if isinstance(one, ShapeOnly):
                one.memory.gradient = True

    def _join(
        self, tensors: Iterable[torch.Tensor], step: Step, wrote: bool, foreign: bool
    ) -> None:
        """Take in that tensors may share memory, and perhaps were written.

        What is written while a pass reads it is nobody's to know, if it is anything but
        gradients: they may be what the graph saved.
        """
        memories = dict.fromkeys(map(_memory, tensors))
        if not memories:
            return
        first, *others = memories
        first.foreign |= foreign
        for one in others:
            one.joined = first
            first.unseen = True
            first.used = max(first.used, one.used)
            first.rows |= one.rows
            first.foreign |= one.foreign
        if wrote:
            self._overwritten = max(self._overwritten, first.used)
        if wrote and (first.rows or first.foreign):
            first.written = NOBODY_KNOWS
        elif wrote or others:
            first.written = (step, -1, 0)


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


def _spelt(
    request: Run, dtype: torch.dtype, alike: Sequence[Any] | None
) -> tuple[Any, ...]:
    """Return what an operator's step says: no ids, a mark for each tensor."""
    kwargs = {name: _marked(value) for name, value in request.kwargs.items()}
    args = [_marked(value) for value in request.args]
    said = ("run", request.op, request.grad, DTYPE_NAMES[dtype], alike)
    return *said, args, list(kwargs.items())


def _marked(value: Value) -> Any:
    if isinstance(value, list):
        return [_marked(one) for one in value]
    return b"" if value.__class__ is Ref else value


def _record(
    how: Guarded, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
) -> None:
    """Note of tensors that autograd may have recorded them just now, to save them.

    Statistics that an operator changes are not read again.
    """
    now = _now() - 1
    changed: Sequence[int] = ()
    if how.unseen:
        changed = [id(one) for _, one in how.changed(args, kwargs)]
    for one in (*args, *kwargs.values(), result) if kwargs else (*args, result):
        if one.__class__ is ShapeOnly:
            if not changed or id(one) not in changed:
                memory = one.memory
                while memory.joined is not None:
                    memory = memory.joined
                memory.used = now
        elif isinstance(one, list | tuple):
            for inner in one:
                _memory(inner).used = now


class _Graph:
    """The part of autograd's graph that a backward pass goes through.

    Args:
        roots: where it begins.

    Attributes:
        first: when the first of its nodes was made, by autograd's own count.
        last: when the last of them was.
        leaves: what it ends at, by number.
        shape: which nodes are joined to which, each numbered when it is first met. So
            two leaves that were made alike are told from one that is used twice.
    """

    def __init__(self, roots: Sequence[torch.Tensor]) -> None:
        self._numbers: dict[Node, int] = {}
        self.first, self.last = _now(), -1
        self.leaves: dict[int, torch.Tensor] = {}
        self._leaves: dict[int, int] = {}
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
            self.first, self.last = min(self.first, made), max(self.last, made)
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
        if len(self._leaves) < len(self.leaves):
            self._leaves = {id(one): number for number, one in self.leaves.items()}
        return self._leaves.get(id(tensor), -1), 0


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


def _alike(values: Iterable[Any]) -> list[int] | None:
    """Return which of tensors, and of those in lists, are in one memory.

    Returns:
        A number for each tensor's memory, in order; None if all have their own.
    """
    found = []
    for one in values:
        if one.__class__ is ShapeOnly:
            found.append(one.memory)
        elif one.__class__ is list:
            found += [inner.memory for inner in one if inner.__class__ is ShapeOnly]
    if len(set(map(id, found))) == len(found):
        return None
    numbers: dict[int, int] = {}
    return [numbers.setdefault(id(one), len(numbers)) for one in found]


def _is_gradient(tensor: Any) -> bool:
    """Tell whether a backward pass has made a tensor's memory."""
    return tensor.__class__ is ShapeOnly and tensor.memory.gradient


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
