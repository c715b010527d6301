"""Runs forward operators and autograd on a session's tensors.

::

    executor = Executor(store, device)
    executor.run(Run("aten.add.Tensor", [Ref(1), Ref(2)], {}, 3, 1, True))
    executor.backward(Backward((3,), (None,), None, False, False))

Rules:

- Only overloads that the op table admits run; the table's rows say how.
- Autograd records here, in the grad mode that each request carries; the mode of
  whoever called is restored by the caller of ``Executor``.
- Results take the ids that the client chose; when a request fails, those ids
  stand for the failure.
- Behind a guard only what the table admits there runs, sizes are known before
  anything is allocated, and a failure on values does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from obhut.errors import CallError, OpNotAdmittedError, RemoteProtocolError
from obhut.ops.table import Flag, Kind, admitted
from obhut.protocol.limits import RESULTS_PER_REQUEST
from obhut.protocol.messages import (
    NOWHERE,
    Backward,
    Complex,
    Differentiate,
    Here,
    Inline,
    Leaf,
    ReadData,
    Ref,
    Run,
    Symbol,
    Value,
    WriteData,
)

from .guarded import Guard, Guarded, guarded
from .guarded_backward import Backwards, Pass
from .packed import takes_sizes
from .shapes import Inferred, UnknownShapeError, infer, spec_of
from .store import Store
from .tensors import SYMBOL_NAMES, SYMBOLS, from_frame

# Any below: operators take and return whatever their schema says.


class Operator:
    """One admitted overload, ready to be called.

    Attributes:
        call: the overload itself.
        keeps: whether results are held; an operator that changes its arguments
            and returns them makes nothing new.
        dynamic: whether what its results look like may depend on values.
        zeroed: whether results would be uninitialised memory.
        changes: whether it may give an argument another storage or size.
        allocates: whether it may need new memory.
        placed: whether it must be told on which device to make its result.
        floats_matter: whether float arguments decide the results' shape.
        tensorless: whether its results are no tensors.
    """

    __slots__ = (
        "_behind",
        "allocates",
        "call",
        "changes",
        "dynamic",
        "floats_matter",
        "keeps",
        "name",
        "placed",
        "tensorless",
        "zeroed",
    )

    def __init__(self, name: str) -> None:
        known = admitted(name)
        self._behind: Guarded | None = None
        namespace, packet, overload = name.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        self.name = name
        self.call: Callable[..., Any] = takes_sizes(name, found._op)
        self.keeps = known.kind not in (Kind.INPLACE, Kind.OUT)
        self.dynamic = Flag.DYNAMIC in known.flags
        self.zeroed = Flag.ZEROED in known.flags
        self.floats_matter = Flag.FLOAT_SHAPE in known.flags
        self.tensorless = known.kind is Kind.VALUE
        self.changes = Flag.RESHAPES in known.flags or known.kind is Kind.OUT
        self.allocates = self.changes or known.kind in (
            Kind.FUNCTION,
            Kind.FACTORY,
            Kind.VIEW,
        )
        self.placed = known.kind is Kind.FACTORY and any(
            argument.name == "device" for argument in found._schema.arguments
        )

    @property
    def behind(self) -> Guarded:
        """What a guard must know of it.

        Raises:
            OpNotAdmittedError: if the op table does not admit it behind a guard.
        """
        if self._behind is None:
            self._behind = guarded(self.name)
        return self._behind


_operators: dict[str, Operator] = {}


def operator(name: str) -> Operator:
    """Return the operator of that name.

    Raises:
        OpNotAdmittedError: if the op table does not admit it.
    """
    found = _operators.get(name)
    if found is None:
        found = _operators[name] = Operator(name)
    return found


class Executor:
    """Runs what requests ask for, on the tensors of one store.

    Args:
        store: the session's tensors.
        device: where the worker computes.
        log: behind a guard, takes lines for the owner of the data, without values;
            None for an open worker.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        *,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._store = store
        self._device = device
        self._guard = None if log is None else Guard(log)
        self._backwards = None if log is None else Backwards(log, store.held)

    def run(self, request: Run) -> Any:
        """Run one operator, hold its results, and return them as they are.

        Raises:
            OpNotAdmittedError, ObjectNotFoundError, PoisonedError,
            MemoryLimitError: before anything ran.
            Exception: whatever the operator itself raises; behind a guard, what it
                says of meta tensors.
        """
        op = operator(request.op)
        guard = self._guard
        how = None if guard is None else op._behind or op.behind
        store = self._store
        args: list[Any] = []
        for value in request.args:
            kind = value.__class__
            if kind is Ref:
                args.append(store[value.id])  # type: ignore[union-attr] # compared
            elif kind in _PLAIN:
                args.append(value)
            else:
                args.append(self._resolve(value))
        kwargs: dict[str, Any] = {}
        if request.kwargs:
            for name, value in request.kwargs.items():
                kwargs[name] = self._resolve(value)
        if op.placed:
            kwargs["device"] = self._device
        if torch.is_grad_enabled() is not request.grad:
            torch._C._set_grad_enabled(request.grad)
        if request.seed is not None:
            self._seed(request.seed)
        if guard is not None and how is not None:
            known = self._checked(op, how, args, kwargs)
            count = request.count
            if how.plain and (not count or not how.holds or count == known.count):
                try:
                    result = op.call(*args, **kwargs)
                except Exception as error:
                    result = guard.failed(how, args, kwargs, known, error)
                else:
                    look = known.single
                    if how.holds and not (
                        look is not None
                        and result.__class__ is torch.Tensor
                        and result.shape == look.shape
                        and result.dtype is look.dtype
                    ):
                        result = guard.looked(how, args, kwargs, known, result)
            else:
                result = guard.call(how, args, kwargs, known, count)
        else:
            if store.limited and op.allocates:
                self._reserve(op, args, kwargs)
            result = op.call(*args, **kwargs)
        if op.zeroed:
            with torch.no_grad():
                for tensor in pytree.tree_leaves(result):
                    tensor.zero_()
        if op.keeps and request.out != NOWHERE:
            self.keep(request.out, result, request.count)
        elif op.changes and store.limited:
            for value in (*request.args, *request.kwargs.values()):
                if value.__class__ is Ref:
                    store.recount(value.id)
        return result

    def _seed(self, seed: int) -> None:
        """Seed the generator that operators draw from, which is the process's."""
        if self._device.type == "cpu":
            # torch.manual_seed asks for each kind of device, which takes 100 us.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def keep(self, out: int, result: Any, count: int = 0) -> None:
        """Hold the tensors of a result under consecutive ids from ``out`` on.

        Args:
            out: the first id.
            result: what an operator returned.
            count: how many ids the client has set aside; 0 for as many as a
                request may fill.

        Raises:
            RemoteProtocolError: if that is not how many there are.
        """
        if result.__class__ is torch.Tensor:
            self._store[out] = result
            return
        leaves = pytree.tree_leaves(result)
        if len(leaves) > RESULTS_PER_REQUEST or (count and len(leaves) != count):
            raise RemoteProtocolError(
                f"expected {count or 'at most ' + str(RESULTS_PER_REQUEST)} results, "
                f"the operator returned {len(leaves)}"
            )
        for position, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._store[out + position] = leaf

    def read_data(self, request: ReadData) -> None:
        """Hold a tensor's ``.data``: the same memory, of which autograd knows nothing.

        Behind a guard autograd must know of each write to memory that may hold
        indices: derivative kernels trust the indices that a graph keeps.
        """
        tensor = self._store[request.id]
        shares = self._guard is not None and not _is_real(tensor)
        self._store[request.out] = tensor.detach() if shares else tensor.data

    def write_data(self, request: WriteData) -> None:
        """Let a tensor have another one's memory.

        Behind a guard a graph that keeps the tensor is spent: its derivative kernels
        would trust the sizes that the tensor had. And memory that may hold indices
        gets no second name of which autograd knows nothing.

        Raises:
            CallError: behind a guard, for what can hold indices.
        """
        tensor, data = self._store[request.id], self._store[request.data]
        if self._guard is not None:
            if not (_is_real(tensor) and _is_real(data)):
                raise CallError(
                    "behind a guard .data is replaced only by floating-point or "
                    f"complex numbers, and of such: expected them, got {data.dtype} "
                    f"for {tensor.dtype}; write x.copy_(y) or use y itself"
                )
            torch.autograd.graph.increment_version(tensor)
        tensor.data = data
        self._store.recount(request.id)

    def backward(self, request: Backward) -> None:
        """Accumulate gradients."""
        with torch.enable_grad():
            if self._backwards is not None:
                self._backwards.run(self._pass(request))
                return
            torch.autograd.backward(
                self._tensors(request.roots),
                self._optional(request.grads),
                retain_graph=request.retain_graph,
                create_graph=request.create_graph,
                inputs=None
                if request.inputs is None
                else self._tensors(request.inputs),
            )

    def differentiate(self, request: Differentiate) -> tuple[torch.Tensor | None, ...]:
        """Compute gradients, hold and return them; None for unreached inputs."""
        grads: tuple[torch.Tensor | None, ...]
        with torch.enable_grad():
            if self._backwards is not None:
                grads = self._backwards.grad(self._pass(request))
            else:
                grads = torch.autograd.grad(
                    self._tensors(request.roots),
                    self._tensors(request.inputs),
                    self._optional(request.grads),
                    retain_graph=request.retain_graph,
                    create_graph=request.create_graph,
                    allow_unused=True,
                )
        self.keep(request.out, list(grads))
        return grads

    def _pass(self, request: Backward | Differentiate) -> Pass:
        retain, create = request.retain_graph, request.create_graph
        return Pass(
            self._tensors(request.roots),
            self._optional(request.grads) or [None] * len(request.roots),
            None if request.inputs is None else self._tensors(request.inputs),
            create if retain is None else retain,
            create,
        )

    def _tensors(self, ids: Sequence[int]) -> list[torch.Tensor]:
        return [self._store[id] for id in ids]

    def _optional(self, ids: Sequence[int | None]) -> list[torch.Tensor | None]:
        return [None if id is None else self._store[id] for id in ids]

    def _resolve(self, value: Value | Leaf) -> Any:
        match value:
            case Ref(id=id):
                return self._store[id]
            case list():
                return [self._resolve(leaf) for leaf in value]
            case Symbol(name=name):
                if name not in SYMBOLS:
                    raise RemoteProtocolError(f"no constant is called {name[:80]!r}")
                return SYMBOLS[name]
            case Here():
                return self._device
            case Complex(real=real, imag=imag):
                return complex(real, imag)
            case Inline(dtype=dtype, shape=shape, data=data):
                # A number stays where it is, as in torch; anything else joins.
                tensor = from_frame(data, dtype, shape)
                return tensor if not shape else tensor.to(self._device)
            case _:
                return value

    def _reserve(self, op: Operator, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Hold an operator's results to the session's limit before it runs."""
        try:
            growth = _known(op, args, kwargs).growth
        except UnknownShapeError:
            growth = 0  # counted when it is held; the host limits the process
        except RuntimeError:
            if not op.dynamic:
                raise
            growth = 0  # likewise: some say in their own words that nobody knows
        self._store.reserve(growth, op.name)

    def _checked(
        self, op: Operator, how: Guarded, args: list[Any], kwargs: dict[str, Any]
    ) -> Inferred:
        """Return what an operator's results look like, held to the limit.

        Raises:
            OpNotAdmittedError: if that can't be known before it runs.
            CallError: in that case, if its check says what to write instead.
            Exception: whatever the operator says of meta tensors.
        """
        if op.tensorless:
            return _NO_RESULTS
        try:
            known = _known(op, args, kwargs, how)
        except UnknownShapeError:
            how.check_arguments(args, kwargs)  # it may say what to write instead
            reason = "behind a guard the sizes of its results can not be checked"
            raise OpNotAdmittedError(op.name, reason) from None
        if op.allocates and self._store.limited:
            self._store.reserve(known.growth, op.name)
        return known


_NO_RESULTS = Inferred((), None, 0)


def _known(
    op: Operator,
    args: list[Any],
    kwargs: dict[str, Any],
    how: Guarded | None = None,
) -> Inferred:
    """Return what an operator's results look like, from the last time if it can.

    Args:
        op: the operator.
        args: its arguments.
        kwargs: likewise.
        how: the operator behind a guard, which then checks its targets too.

    Raises:
        UnknownShapeError: if the shape depends on values or there is no meta kernel;
            remembered too.
        Exception: whatever the operator says of such arguments.
    """
    key: list[object] = [op, how, torch.get_default_dtype()]
    for value in args:
        kind = value.__class__
        if kind is torch.Tensor:
            key += (value.shape, value.stride(), value.dtype)
        elif kind is int:
            key += (int, value)
        else:
            _note(op, value, key)
    if kwargs:
        for name, value in kwargs.items():
            key.append(name)
            _note(op, value, key)
    cached = tuple(key)
    known = _looks.get(cached, _UNSEEN)
    if known is _UNSEEN:
        described = [_described(value) for value in args]
        named = {name: _described(value) for name, value in kwargs.items()}
        try:
            known = infer(op.call, described, named, grad=False)
        except UnknownShapeError:
            known = None
        if known is not None and how is not None:
            how.check_targets(args, kwargs, known)
        if len(_looks) >= _LOOKS_AT_MOST:
            _looks.clear()
        _looks[cached] = known
    if known is None:
        raise UnknownShapeError(op.name)
    return known


_UNSEEN = Inferred((), None, -1)

_looks: dict[tuple[object, ...], Inferred | None] = {}
"""What operators' results look like, by what their arguments look like."""

_LOOKS_AT_MOST = 1 << 14


def _note(op: Operator, value: object, key: list[object]) -> None:
    """Note what an argument decides: of a tensor its look, of a number itself."""
    kind = value.__class__
    if kind is torch.Tensor or isinstance(value, torch.Tensor):
        key += (value.shape, value.stride(), value.dtype)  # type: ignore[attr-defined] # compared
    elif kind is list:
        items: list[object] = value  # type: ignore[assignment] # the class was compared
        key += (list, len(items))
        for item in items:
            _note(op, item, key)
    elif kind is not float or op.floats_matter:
        # 1, 1.0 and True are equal, and decide different dtypes.
        key += (kind, value)
    else:
        key.append(float)


def _described(value: object) -> object:
    """Return an argument as inference takes it."""
    if isinstance(value, torch.Tensor):
        return spec_of(value).plain
    if isinstance(value, list):
        return [_described(item) for item in value]
    return value


def _is_real(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's elements are no indices, whatever their values."""
    return tensor.is_floating_point() or tensor.is_complex()


_PLAIN = frozenset((int, float, bool, str, type(None)))


def to_value(result: object) -> Value:
    """Return what a tensorless operator returned, as a message's value.

    Raises:
        OpNotAdmittedError: if it is of a kind that does not travel.
    """
    match result:
        case None | bool() | int() | float() | str():
            return result
        case complex():
            return Complex(result.real, result.imag)
        case list() | tuple():
            leaves = [to_value(item) for item in result]
            if not any(isinstance(leaf, list) for leaf in leaves):
                return leaves  # type: ignore[return-value] # no lists inside
        case torch.dtype() | torch.layout() if result in SYMBOL_NAMES:
            return Symbol(SYMBOL_NAMES[result])
        case _:
            pass
    raise OpNotAdmittedError(
        "a result", f"a {type(result).__name__} has no form in a message"
    )
