"""One call of an overload while its arguments are read.

Rules:

- Each argument gets its form in a message, and says in the key what it decides of how
  the results look.
- A local tensor joins if it is a single number, or an index where PyTorch takes one
  from the CPU too, and never where it would be written. Any other mix of places is
  refused and sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from obhut.errors import CallError, InternalError, LocationError, UnsupportedError
from obhut.protocol.limits import INLINE_BYTES
from obhut.protocol.messages import (
    Complex,
    Here,
    Put,
    Ref,
    Symbol,
    TensorData,
    Value,
)
from obhut.worker.shapes import dense, spec
from obhut.worker.tensors import DTYPE_NAMES, SYMBOL_NAMES, to_frame, to_inline

from .autograd_state import GraphNode
from .held import Held
from .routes import Route
from .session import Session

# Any below: operators take whatever their schema says.

CPU = torch.device("cpu")
"""Where every remote tensor says that it is."""

_HERE = Here()
_SYMBOLS: Mapping[object, Symbol] = {
    value: Symbol(name) for value, name in SYMBOL_NAMES.items()
}
_TRUE, _FALSE, _NAME = object(), object(), object()


class Call:
    """One call while its arguments are read.

    Attributes:
        cls: the class of remote tensors.
        route: how to send the overload.
        session: of the remote tensors seen.
        grad: the grad mode.
        key: what decides how the results look.
        parents: the graph places of the inputs that require a gradient.
        raw: the arguments as they came, by position and by name.
        generator: what random numbers are to be drawn from, if it was passed.
        lent: local tensors that were sent for this call, held until it is made.
        carried: about how many bytes its lists and inline tensors have.
    """

    __slots__ = (
        "carried",
        "cls",
        "generator",
        "grad",
        "key",
        "lent",
        "parents",
        "raw",
        "route",
        "session",
    )

    def __init__(
        self,
        cls: type[torch.Tensor],
        route: Route,
        session: Session | None,
        grad: bool,
        raw: tuple[Sequence[Any], Mapping[str, Any]],
    ) -> None:
        self.cls = cls
        self.route = route
        self.session = session
        self.grad = grad
        self.key: list[object] = [route, grad, torch.get_default_dtype()]
        self.parents: list[GraphNode] = []
        self.raw = raw
        self.generator: torch.Generator | None = None
        self.lent: list[Held] = []
        self.carried = 0

    @property
    def at(self) -> Session:
        """The session with the worker where the call goes; known once it was read."""
        if self.session is None:
            raise InternalError(f"{self.route.name} came without a remote tensor")
        return self.session

    def read_all(self) -> tuple[list[Value], dict[str, Value]]:
        """Return all arguments' forms in a message, by position and by name.

        Raises:
            LocationError: if they are at places that do not go together.
            UnsupportedError: if one has no form in a message.
        """
        args, kwargs = self.raw
        if self.route.indexes:
            args = _without_masks(args)
            self.raw = (args, kwargs)
        sent = [self.read(value) for value in args]
        named: dict[str, Value] = {}
        for name, value in kwargs.items():
            if name == "pin_memory" and not value:
                continue
            self.key.append(_NAME)
            self.key.append(name)
            named[name] = self.read(value)
        return sent, named

    def read(self, value: Any, depth: int = 0) -> Value:
        """Return an argument's form in a message, and note what it decides."""
        kind = value.__class__
        if kind is self.cls:
            held: Held = value._held
            if held.session is not self.session:
                if self.session is not None:
                    raise self.misplaced()
                self.session = held.session
            if held.blocked:
                held.check()
            state = held.autograd
            if state is not None and state.records():
                self.key.append(held.spec.tracked)
                self.parents.append(state.place())
            else:
                self.key.append(held.spec)
            return held.ref
        if kind is float:
            self.key.append(float)  # for 1 and 1.0 are equal
            if self.route.floats_matter:
                self.key.append(value)
            return value  # type: ignore[no-any-return] # the class was compared
        if kind is int:
            if not -(2**63) <= value < 2**64:
                raise CallError(f"{self.route.name} got an integer beyond 64 bits")
            self.key.append(value)
            return value  # type: ignore[no-any-return] # the class was compared
        if kind is bool:
            self.key.append(_TRUE if value else _FALSE)
            return value  # type: ignore[no-any-return] # the class was compared
        if value is None or kind is str:
            self.key.append(value)
            return value  # type: ignore[no-any-return] # the class was compared
        if kind is list or kind is tuple:
            if depth:
                raise CallError(f"{self.route.name} got a list inside a list")
            self.key.append(len(value))
            self.carried += 8 * len(value)
            return [self.read(item, 1) for item in value]  # type: ignore[misc]
        symbol = _SYMBOLS.get(value) if not isinstance(value, torch.Tensor) else None
        if symbol is not None:
            self.key.append(symbol.name)
            return symbol
        return self._read_other(value)

    def _read_other(self, value: Any) -> Value:
        if isinstance(value, torch.Tensor):
            return self._read_local(value)
        if isinstance(value, complex):
            self.key.append(complex)
            return Complex(value.real, value.imag)
        if isinstance(value, torch.device):
            if value.type != "cpu":
                raise UnsupportedError(
                    f"device {value}",
                    "a worker chooses the device that it computes on; leave it out",
                )
            return _HERE
        if isinstance(value, torch.Generator):
            self.generator = value
            return None
        for number in (bool, int, float, str):
            if isinstance(value, number):
                return self.read(number(value))
        raise UnsupportedError(
            f"an argument of type {type(value).__name__}", "pass tensors and numbers"
        )

    def _read_local(self, value: torch.Tensor) -> Value:
        if (
            not self._may_join(value)
            or value.device != CPU
            or value.layout is not torch.strided
        ):
            raise self.misplaced()
        if value.requires_grad and self.grad:
            raise LocationError(
                self.route.name,
                self.places(),
                "the local tensor requires a gradient that the worker could not "
                "give it; send it first",
            )
        self.key.append(spec(tuple(value.shape), tuple(value.stride()), value.dtype))
        if value.nbytes <= INLINE_BYTES:
            self.carried += value.nbytes
            return to_inline(value)
        session = self.session or self.find_session()
        if session is None:
            raise self.misplaced()
        id = session.new_id()
        data = TensorData(DTYPE_NAMES[value.dtype], tuple(value.shape), 0)
        session.post(Put(id, data), to_frame(value))
        self.lent.append(Held(session, id, dense(tuple(value.shape), value.dtype)))
        return Ref(id)

    def _may_join(self, value: torch.Tensor) -> bool:
        """Tell whether a local tensor may join here, as it may beside CUDA.

        Never where it would be written: the worker would write its copy.
        """
        args, kwargs = self.raw
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        for place, argument in places:
            among = argument if isinstance(argument, list | tuple) else (argument,)
            if any(item is value for item in among):
                if place in self.route.written_all:
                    return False
                if value.dim() and not self.route.joins(place, value.dtype):
                    return False
        return True

    def find_session(self) -> Session | None:
        """Return the session of the first remote tensor among the arguments."""
        for leaf in pytree.tree_leaves(self.raw):
            if isinstance(leaf, self.cls):
                held: Held = leaf._held  # type: ignore[attr-defined] # of the class
                return held.session
        return None

    def places(self) -> list[str]:
        """Return where each tensor argument is, each place once."""
        found: dict[str, Session | None] = {}
        for leaf in pytree.tree_leaves(self.raw):
            if isinstance(leaf, self.cls):
                session: Session = leaf._held.session  # type: ignore[attr-defined]
                name = session.worker
                if found.setdefault(name, session) is not session:
                    name = f"another {name}"
                found[name] = session
            elif isinstance(leaf, torch.Tensor):
                found["this process"] = None
        return list(found)

    def misplaced(self) -> LocationError:
        """Return the error for tensors at places that do not go together."""
        places = self.places()
        remote = [place for place in places if place != "this process"]
        advice = (
            f"send the local one first: obhut.send(x, {remote[0]}), or make it there: "
            f"with {remote[0]}: torch.zeros(...)"
            if len(remote) < len(places) and remote
            else "move them together first: x.move(worker)"
        )
        return LocationError(self.route.name, places, advice)


def _without_masks(args: Sequence[Any]) -> Sequence[Any]:
    """Return an index's arguments with numbers in the place of masks that are here.

    How many elements such a mask lets through is known without asking the worker. One
    that does not fit is left for PyTorch to refuse.
    """
    x, indices, *rest = args
    found: list[Any] = []
    at = 0
    for index in indices:
        masks = isinstance(index, torch.Tensor) and index.dtype in _MASKS
        dims = index.dim() if masks else 1
        if type(index) is torch.Tensor and masks and dims:
            if index.shape != x.shape[at : at + dims]:
                return args
            found += index.nonzero().unbind(1)
        else:
            found.append(index)
        at += dims
    return (x, found, *rest)


_MASKS = frozenset({torch.bool, torch.uint8})
