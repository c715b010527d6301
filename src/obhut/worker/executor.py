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

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes as outside_modes

from obhut.errors import (
    CallError,
    InternalError,
    OpNotAdmittedError,
    RemoteProtocolError,
)
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

from .drawing import going_on, seed_draws
from .guarded import Guarded, guarded, written
from .looks import Remembered, described, note
from .packed import takes_sizes
from .provenance import Provenance, state
from .shape_only import like
from .shape_only_calls import Recording, shape_only_mode
from .shapes import Inferred, Spec, UnknownShapeError, infer, look_of
from .store import Store
from .tensors import SYMBOL_NAMES, SYMBOLS, from_frame

# Any below: operators take and return whatever their schema says.


_DRAW_BY_SIZE = frozenset(
    (
        *("alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout"),
        *("native_dropout", "scaled_dot_product_attention"),
        *("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "normal"),
        *("rand", "rand_like", "randint", "randint_like", "randn", "randn_like"),
        *("random", "randperm", "uniform"),
    )
)
"""Operators that draw as many numbers as their results have elements."""


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
        composite: whether it is made of other operators; which ones may be decided by
            any of its arguments.
        draws_by_value: whether how much it draws may depend on values.
        tensorless: whether its results are no tensors.
        written: the arguments that it changes, by position and name.
    """

    __slots__ = (
        "allocates",
        "call",
        "changes",
        "composite",
        "draws_by_value",
        "dynamic",
        "floats_matter",
        "keeps",
        "name",
        "placed",
        "tensorless",
        "written",
        "zeroed",
    )

    def __init__(self, name: str) -> None:
        known = admitted(name)
        namespace, packet, overload = name.split(".")
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
        self.name = name
        self.call: Callable[..., Any] = takes_sizes(name, found._op)
        self.keeps = known.kind not in (Kind.INPLACE, Kind.OUT)
        self.dynamic = Flag.DYNAMIC in known.flags
        self.zeroed = Flag.ZEROED in known.flags
        self.floats_matter = Flag.FLOAT_SHAPE in known.flags
        self.tensorless = known.kind is Kind.VALUE
        self.written, _ = written(found._schema)
        self.changes = Flag.RESHAPES in known.flags or known.kind is Kind.OUT
        self.allocates = self.changes or known.kind in (
            Kind.FUNCTION,
            Kind.FACTORY,
            Kind.VIEW,
        )
        self.composite = torch._C._dispatch_has_kernel_for_dispatch_key(
            found.name(), "CompositeImplicitAutograd"
        )
        draws = torch.Tag.nondeterministic_seeded in found.tags
        self.draws_by_value = draws and packet.rstrip("_") not in _DRAW_BY_SIZE
        self.placed = known.kind is Kind.FACTORY and any(
            argument.name == "device" for argument in found._schema.arguments
        )

    @property
    def behind(self) -> Guarded:
        """What a guard must know of it.

        Raises:
            OpNotAdmittedError: if the op table does not admit it behind a guard.
        """
        return guarded(self.name)


@functools.cache
def operator(name: str) -> Operator:
    """Return the operator of that name.

    Raises:
        OpNotAdmittedError: if the op table does not admit it.
    """
    return Operator(name)


class Executor:
    """Runs what requests ask for, on the tensors of one store.

    Args:
        store: the session's tensors.
        device: where the worker computes.
        low: whether the tensors are shape-only; the table's rules behind a guard hold.
        high: whether it follows one whose tensors are, and holds their values.
        recording: keeps what runs, on tensors that are shape-only; it is entered.
        provenance: of low, keeps how tensors are made; None if nobody asks.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        *,
        low: bool = False,
        high: bool = False,
        recording: Recording | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        self._store = store
        self._provenance = provenance
        self._device = device
        self._low, self._high = low or recording is not None, high
        self._guarded = self._low or high
        self._like = like if recording is None else recording.like
        self._reading = outside_modes if recording else contextlib.nullcontext
        self._mode = shape_only_mode() if low else contextlib.nullcontext()

    def on(self, store: Store, recording: Recording | None = None) -> Executor:
        """Return an executor like this for another store; or one that is recorded."""
        if recording is not None:
            return Executor(store, self._device, recording=recording)
        return Executor(store, self._device, low=self._low, high=self._high)

    def run(self, request: Run) -> Any:
        """Run one operator, hold its results, and return them as they are.

        Raises:
            OpNotAdmittedError, ObjectNotFoundError, PoisonedError,
            MemoryLimitError: before anything ran.
            Exception: whatever the operator itself raises; behind a guard, what it
                says of meta tensors.
        """
        op = operator(request.op)
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
        if request.seed is not None and not self._low:
            seed_draws(request.seed, self._device)
        kept = self._provenance
        step = None
        if kept is not None:
            how = op.behind
            step = kept.operation(how, request, args, kwargs)
        if op.written and store.lends:
            for at, name in op.written:
                changed = args[at] if at < len(args) else kwargs.get(name)
                for tensor in changed if isinstance(changed, list) else (changed,):
                    if isinstance(tensor, torch.Tensor):
                        store.writes(tensor, op.name)
        if self._low:
            result = self._run_low(op, args, kwargs)
        elif self._high:
            result = self._run_high(op, args, kwargs)
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
        if kept is not None and step is not None:
            kept.ran(how, request, step, args, kwargs, result)
        return result

    def _run_low(self, op: Operator, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator on tensors without values.

        Raises:
            OpNotAdmittedError: if what it returns depends on values.
            Exception: whatever the operator itself says of arguments that look so.
        """
        op.behind.check_arguments(args, kwargs)
        if op.changes and self._store.limited:
            self._reserve(op, args, kwargs)
        try:
            with self._mode:
                result = op.call(*args, **kwargs)
        except OpNotAdmittedError as error:
            raise _inside(op.name, error) from None
        # A number that was written down is returned as it is.
        return self._like(result) if result.__class__ is torch.Tensor else result

    def _run_high(self, op: Operator, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operator on the values, after it ran without them.

        Raises:
            Exception: whatever the operator says, or a check that low made as well.
        """
        how = op.behind
        how.check_arguments(args, kwargs)
        if op.draws_by_value and self._device.type == "cpu":
            result = going_on(op.call, args, kwargs)
        else:
            result = op.call(*args, **kwargs)
        if not how.holds:
            return result
        known = _lows(op, args, kwargs)
        return result if known is None else _looking(result, known)

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
        if isinstance(result, torch.Tensor):
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
        shares = self._guarded and not _is_real(tensor)
        data = tensor.detach() if shares else tensor.data
        self._store[request.out] = data
        if self._provenance is not None:
            self._provenance.bared(tensor, data)

    def write_data(self, request: WriteData) -> None:
        """Let a tensor have another one's memory.

        Behind a guard a graph that keeps the tensor is spent: its derivative kernels
        would trust the sizes that the tensor had. And memory that may hold indices
        gets no second name of which autograd knows nothing.

        Raises:
            CallError: behind a guard, for what can hold indices.
        """
        tensor, data = self._store[request.id], self._store[request.data]
        if self._guarded:
            if not (_is_real(tensor) and _is_real(data)):
                raise CallError(
                    "behind a guard .data is replaced only by floating-point or "
                    f"complex numbers, and of such: expected them, got {data.dtype} "
                    f"for {tensor.dtype}; write x.copy_(y) or use y itself"
                )
            torch.autograd.graph.increment_version(tensor)
        before = state(tensor)
        tensor.data = data
        if self._provenance is not None:
            self._provenance.replaced(tensor, data, before)
        self._store.recount(request.id)

    def backward(self, request: Backward) -> None:
        """Accumulate gradients."""
        roots, grads = self._tensors(request.roots), self._optional(request.grads)
        inputs = None if request.inputs is None else self._tensors(request.inputs)
        begun = None
        if self._provenance is not None:
            begun = self._provenance.begin(request, roots, grads, inputs)
        with torch.enable_grad():
            try:
                with self._mode:
                    torch.autograd.backward(
                        roots,
                        grads,
                        retain_graph=request.retain_graph,
                        create_graph=request.create_graph,
                        inputs=inputs,
                    )
            except OpNotAdmittedError as error:
                raise _inside("backward", error) from None
        if self._provenance is not None and begun is not None:
            self._provenance.passed(begun)

    def differentiate(self, request: Differentiate) -> tuple[torch.Tensor | None, ...]:
        """Compute gradients, hold and return them; None for unreached inputs."""
        grads: tuple[torch.Tensor | None, ...]
        roots, given = self._tensors(request.roots), self._optional(request.grads)
        inputs = self._tensors(request.inputs)
        begun = None
        if self._provenance is not None:
            begun = self._provenance.begin(request, roots, given, inputs)
        with torch.enable_grad():
            try:
                with self._mode:
                    grads = torch.autograd.grad(
                        roots,
                        inputs,
                        given,
                        retain_graph=request.retain_graph,
                        create_graph=request.create_graph,
                        allow_unused=True,
                    )
            except OpNotAdmittedError as error:
                raise _inside("differentiate", error) from None
        self.keep(request.out, list(grads))
        if self._provenance is not None and begun is not None:
            self._provenance.passed(begun, grads)
        return grads

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
                with self._reading():
                    tensor = from_frame(data, dtype, shape)
                    # A number stays where it is, as in torch; anything else joins.
                    if not shape:
                        return tensor
                    return self._like(tensor) if self._low else tensor.to(self._device)
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


def _looking(result: Any, looks: Sequence[Spec | None]) -> Any:
    """Return results that look as they do without values.

    Raises:
        InternalError: if a size or a dtype differs.
    """
    if result.__class__ is torch.Tensor and len(looks) == 1:
        return _strided(result, looks[0])
    leaves, tree = pytree.tree_flatten(result)
    if len(leaves) != len(looks):
        raise InternalError("an operator made other results than without values")
    return pytree.tree_unflatten(
        [
            _strided(leaf, look) if isinstance(leaf, torch.Tensor) else leaf
            for leaf, look in zip(leaves, looks, strict=True)
        ],
        tree,
    )


def _strided(tensor: torch.Tensor, look: Spec | None) -> torch.Tensor:
    if look is None or tensor.shape != look.shape or tensor.dtype is not look.dtype:
        raise InternalError("an operator made another result than without values")
    if tensor.stride() == look.stride or tensor._is_view():
        return tensor
    made = torch.empty_strided(
        look.shape, look.stride, dtype=look.dtype, device=tensor.device
    )
    return made.copy_(tensor)


def _lows(
    op: Operator, args: list[Any], kwargs: dict[str, Any]
) -> tuple[Spec | None, ...] | None:
    """Return what an operator's results look like where nothing has values.

    They are low's own, also of an operator that is made of others: which ones, and so
    the strides, may be another matter for meta tensors.

    Returns:
        What the flattened results look like; None for all if that can't be told here.
    """
    key: list[object] = [op, torch.get_default_dtype(), torch.is_grad_enabled()]
    floats = op.floats_matter or op.composite
    for value in (*args, *kwargs.values()):
        note(value, key, floats=floats)
        key += [
            one.requires_grad
            for one in (value if value.__class__ is list else (value,))
            if isinstance(one, torch.Tensor)
        ]
    cached = (*key, *kwargs)
    known = _of_low.get(cached, ())
    if known == ():
        given = pytree.tree_map_only(torch.Tensor, like, (args, kwargs))
        try:
            with shape_only_mode():
                made = op.call(*given[0], **given[1])
        except Exception:
            known = None  # low had a number that was written down
        else:
            known = tuple(
                look_of(leaf) if isinstance(leaf, torch.Tensor) else None
                for leaf in pytree.tree_leaves(made)
            )
        _of_low[cached] = known
    return known


_of_low: Remembered[tuple[Spec | None, ...] | None] = Remembered()
"""What low's results look like, by what their arguments look like."""


def _known(op: Operator, args: list[Any], kwargs: dict[str, Any]) -> Inferred:
    """Return what an operator's results look like, from the last time if it can.

    Args:
        op: the operator.
        args: its arguments.
        kwargs: likewise.

    Raises:
        UnknownShapeError: if the shape depends on values or there is no meta kernel;
            remembered too.
        Exception: whatever the operator says of such arguments.
    """
    key: list[object] = [op, torch.get_default_dtype()]
    for value in args:
        kind = value.__class__
        if kind is torch.Tensor:
            key += (value.shape, value.stride(), value.dtype)
        elif kind is int:
            key += (int, value)
        else:
            note(value, key, floats=op.floats_matter)
    if kwargs:
        for name, value in kwargs.items():
            key.append(name)
            note(value, key, floats=op.floats_matter)
    cached = tuple(key)
    known = _looks.get(cached, _UNSEEN)
    if known is _UNSEEN:
        positional = [described(value) for value in args]
        named = {name: described(value) for name, value in kwargs.items()}
        try:
            known = infer(op.call, positional, named, grad=False)
        except UnknownShapeError:
            known = None
        _looks[cached] = known
    if known is None:
        raise UnknownShapeError(op.name)
    return known


def _inside(name: str, error: OpNotAdmittedError) -> OpNotAdmittedError:
    """Return an error that names what was asked for, and what it runs."""
    if error.op == name:
        return error
    return OpNotAdmittedError(name, f"it runs {error.op}: {error.reason}")


_UNSEEN = Inferred((), None, -1)

_looks: Remembered[Inferred | None] = Remembered()
"""What operators' results look like, by what their arguments look like."""


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
