"""The ``forward`` of a module that was sent, which runs inside the module's worker.

Rules:

- Factory functions create there, so that modules which make tensors of their own
  need no change; what a module keeps as attributes is brought along.
- To whoever looks at it, it is the ``forward`` that the module had: its name, its
  signature, its code.
- It does not hold the module: the module's own attribute is this, and what it has at
  a worker is to go with its last name, and not when a collector finds the cycle.
"""

from __future__ import annotations

import copy as python_copy
import functools
import weakref
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.utils import _pytree as pytree

from obhut.errors import CallError, LocationError, UnsupportedError

from .kept import bring, strays
from .placement import Placement
from .remote_tensor import RemoteTensor
from .session import Session
from .unread import run
from .untraced import untraced

_FORWARD = "forward"
"""The attribute of a module's own that comes before its class's method."""

_PLACED = "_obhut_forward"
"""The attribute under which a module has it too, should somebody wrap the other."""

_UNLIKE = frozenset(("__func__",))
"""What a bound method has and this has not: who binds it anew would lose the worker."""


_BUFFER = (
    ", make it a buffer: self.register_buffer(name, tensor, persistent=False), or an "
    "nn.Parameter"
)


def place(module: nn.Module, session: Session) -> None:
    """Let a module enter its worker while it runs."""
    for name, part in module.named_modules():
        if _makes_tensors(part):
            placed = part.__dict__.get(_PLACED)
            if placed is None:
                placed = PlacedForward(part)
                part.__dict__[_FORWARD] = part.__dict__[_PLACED] = placed
            placed.enter(session, name)


def unplace(module: nn.Module) -> None:
    """Let a module be as it was before it was placed."""
    for part in module.modules():
        placed = part.__dict__.get(_PLACED)
        if placed is not None:
            placed.leave()


def _makes_tensors(part: nn.Module) -> bool:
    """Tell whether a module's own code may call factory functions.

    PyTorch's simplest modules, such as ``Linear``, do not, and need no hooks.
    """
    if isinstance(part, RNNBase | RNNCellBase) or part._modules:
        return True
    return not type(part).__module__.startswith("torch.nn.modules.")


def _all_at(session: Session, arguments: object) -> bool:
    """Tell whether all tensors among what a module was called with are at a worker."""
    return all(
        isinstance(leaf, RemoteTensor) and leaf._held.session is session
        for leaf in pytree.tree_leaves(arguments)
        if isinstance(leaf, torch.Tensor)
    )


def _left(part: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that are here, as a new layer's."""
    named = (*part.named_parameters(), *part.named_buffers())
    return [n for n, t in named if not isinstance(t, RemoteTensor) and t.dim()]


class PlacedForward:
    """A module's ``forward`` that enters the module's worker while it runs.

    Args:
        part: the module.
    """

    # What is no fact of the function stays out of the dictionary, which who wraps a
    # function takes over.
    __slots__ = ("__dict__", "_name", "_own", "_part", "_past", "_session")

    # Any below: what a module's own code takes and returns.

    def __init__(self, part: nn.Module) -> None:
        self._part = weakref.ref(part)
        self._own: Callable[..., Any] | None = part.__dict__.get(_FORWARD)
        self._session: Session | None = None
        self._past: weakref.WeakSet[Session] = weakref.WeakSet()
        self._name = ""
        for name in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(self.__wrapped__, name):
                setattr(self, name, getattr(self.__wrapped__, name))

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The ``forward`` that the module had."""
        part = self._part()
        if part is None:
            raise CallError(
                "the module is gone; keep it as long as you use its forward"
            )
        return self._own or MethodType(type(part).forward, part)

    @untraced
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module with factory functions creating at the worker."""
        forward, session, part = self.__wrapped__, self._session, self._part()
        if session is None or part is None:
            return forward(*args, **kwargs)
        bring(part, session, self._past)
        try:
            with Placement(session):
                return run(forward, session, args, kwargs)
        except LocationError as error:
            if isinstance(error.__cause__, LocationError):
                raise  # what it says was found further inside
            left = _left(part)
            if left:
                named = self._paths(left[:2]) + (" and others" if left[2:] else "")
                advice = f"{named} did not travel: obhut.send(model, {session.worker})"
                raise LocationError(error.op, error.places, advice) from error
            paths = self._paths(strays(part, session))
            if paths:
                found = f"the module keeps {paths} elsewhere"
            elif _all_at(session, (args, kwargs)):
                found = f"{error.advice}; if forward keeps one outside the module"
            else:
                raise
            raise LocationError(error.op, error.places, f"{found}{_BUFFER}") from error

    def _paths(self, names: Iterable[str]) -> str:
        """Return names of the module's own as the module that was sent has them."""
        return ", ".join(f"{self._name}.{name}".lstrip(".") for name in names)

    def enter(self, session: Session, name: str) -> None:
        """Run at a worker from now on.

        Args:
            session: with the worker.
            name: what the module is called in the one that was sent.
        """
        self._past.add(session)
        self._session, self._name = session, name

    def leave(self) -> None:
        """Run here from now on, and let the module have its own forward again.

        But where somebody wrapped this one since: then it is what is wrapped.
        """
        part = self._part()
        self._session = None
        if part is None or part.__dict__.get(_FORWARD) is not self:
            return
        del part.__dict__[_FORWARD], part.__dict__[_PLACED]
        if self._own is not None:
            part.__dict__[_FORWARD] = self._own

    @property
    def __globals__(self) -> NoReturn:
        """Refuse: only who compiles its source asks for them."""
        raise UnsupportedError(
            "torch.jit.script", "script the module before it is sent, or after get()"
        )

    def __getattr__(self, name: str) -> Any:
        """Return what the module's own ``forward`` has by that name."""
        if name in _UNLIKE or name in PlacedForward.__slots__:
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> PlacedForward:
        """Return the same for a copy of the module, which is at the same worker."""
        copied = PlacedForward.__new__(PlacedForward)
        part = self._part()
        twin = memo.get(id(part), part)
        copied.__dict__.update(self.__dict__)
        copied._part = weakref.ref(twin) if twin is not None else self._part
        copied._session, copied._name = self._session, self._name
        copied._past = weakref.WeakSet(self._past)
        copied._own = python_copy.deepcopy(self._own, memo)
        return copied

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UnsupportedError(
            "pickling or saving",
            "fetch the module first, if a policy permits it: obhut.get(model)",
        )
