"""A tensor that is at a worker and behaves like one that is here.

Rules:

- It is a wrapper subclass with sizes and no memory. Each aten overload on it is
  one message; autograd runs where the data is.
- Nothing here makes a local copy unless it is asked for by name: ``get()``, or
  an operator that yields a number, such as ``item()``.
- What can not work on a remote tensor raises an error that says so.
"""

from __future__ import annotations

import copy as python_copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn, Self, overload

import torch

from obhut.errors import LocationError, NotSendableError, UnsupportedError
from obhut.protocol.messages import Label, ReadData, WriteData

from . import gradients
from .cancelling import interrupted
from .dispatch import become, describe, dispatch, wrap
from .held import Held
from .interception import HANDLERS, backward, without_override
from .local_autograd import refuse_tracing
from .origins import alias, tie
from .registry import WORKERS, Place
from .session import Session
from .transfer import Future, check_words, fetch, put, relocate, spend
from .untraced import untraced

# Any below: what PyTorch's own functions take and return.


_HOOK = "hooks would run here, autograd runs at the worker; use x.retain_grad()"


class RemoteNode:
    """Stands for a place in the graph at the worker.

    What it holds is at the worker: there is nothing to call or to hook here, and
    that is what asking for it says.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker

    def name(self) -> str:
        """Return what it is called."""
        return "RemoteBackward"

    def __repr__(self) -> str:
        return f"<RemoteBackward at {self._worker}>"

    def _refuse(self, *_: object) -> NoReturn:
        raise UnsupportedError("a graph's node", _HOOK)

    register_hook = register_prehook = _refuse
    next_functions = metadata = property(_refuse)


@untraced
class RemoteTensor(torch.Tensor):
    """A tensor at a worker.

    Made by ``obhut.send(x, worker)``, by operators on remote tensors, and inside
    ``with worker:`` by factory functions such as ``torch.zeros``.
    """

    _held: Held
    _is_param: bool

    @staticmethod
    def _of(held: Held) -> RemoteTensor:
        """Return the remote tensor of a hold."""
        return wrap(RemoteTensor, held)

    # --- dispatch -----------------------------------------------------------------

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # PyTorch's stub is no classmethod
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Send one overload to the worker."""
        try:
            return dispatch(RemoteTensor, func, args, kwargs or {})
        except KeyboardInterrupt as stop:
            interrupted(stop)
            raise

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out the few functions that must not be decomposed here."""
        refuse_tracing()
        try:
            handler = HANDLERS.get(func)
            if handler is not None:
                return handler(RemoteTensor, *args, **(kwargs or {}))
            return without_override(func, types, args, kwargs or {})
        except KeyboardInterrupt as stop:
            interrupted(stop)
            raise

    # --- where it is --------------------------------------------------------------

    @property
    def location(self) -> Place:
        """The worker that the tensor is at.

        Raises:
            ObjectNotFoundError: if it is there no more.
        """
        self._held.check()
        place = self._held.session.place
        if place is None:
            raise LocationError(
                "location", [self._held.session.worker], "the worker is not known here"
            )
        return place  # type: ignore[no-any-return] # set by the worker itself

    @property
    def id_at_location(self) -> int:
        """The id under which the worker holds it for this session."""
        return self._held.id

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that it was given through this name."""
        return self._held.tags

    @property
    def description(self) -> str:
        """What it was described as."""
        return self._held.description

    # --- how it travels -----------------------------------------------------------

    @overload
    def get(self, wait: Literal[True] = True) -> torch.Tensor: ...

    @overload
    def get(self, wait: Literal[False]) -> Future[torch.Tensor]: ...

    def get(self, wait: bool = True) -> torch.Tensor | Future[torch.Tensor]:
        """Bring the tensor here; the remote object goes with it.

        Leak: its values, and those of its gradient if it has one, come to this
        process.

        Args:
            wait: with False, return a future at once.

        Returns:
            A local leaf of the same sizes and dtype. It requires a gradient if the
            remote tensor was a leaf that did; the history of a result stays behind.

        Raises:
            ObjectNotFoundError: if it was fetched or moved before.
            RemoteExecutionError: if an operator that it came from failed.
        """
        held = self._held
        gradients.resolve(RemoteTensor, held)
        coming = fetch([held])
        if not wait:
            spend([held], "its value was fetched with get()")
            return Future(coming._asked, lambda tensors: coming._finish(tensors)[0])
        value = coming.result()[0]
        spend([held], "its value was fetched with get()")
        return value

    def move(self, worker: Place | str, requires_grad: bool = False) -> Self:
        """Move the tensor straight to another worker, in place.

        The values do not pass through this process. Gradient and history stay
        behind and go.

        Args:
            worker: where to, itself or by id; to this process's own is ``get()``.
            requires_grad: let the history stay, and gradients go back to it: what
                ``backward()`` adds to the tensor where it is now goes to where it was
                and on from there, as in split learning. Without effect on a tensor
                that requires no gradient.

        Returns:
            The tensor itself.
        """
        to = WORKERS.find(worker)
        if to.here:
            return self.get()  # type: ignore[return-value] # as documented
        old = self._held
        if to.session is not old.session:
            source = None
            if requires_grad and old.requires_grad():
                source = alias(old)
                source.autograd = old.autograd
            (moved,) = relocate([old], to.session)
            moved.tags, moved.description = old.tags, old.description
            moved.keep(old.kept)
            settle(self, moved)
            if source is not None:
                gradients.set_requires_grad(moved, True)
                tie(moved, source)
            if moved.tags or moved.description:
                label = Label(moved.id, moved.tags, moved.description)
                moved.session.post(label)
                moved.session.labelled[moved.id] = moved
        return self

    def copy(self) -> RemoteTensor:
        """Return a copy at the same worker: a leaf, apart from any history."""
        with torch.no_grad():
            made: RemoteTensor = self.detach().clone()  # type: ignore[assignment] # dispatch makes remote tensors
        if self.requires_grad:
            made.requires_grad_()
        if getattr(self, "_is_param", False):
            made._is_param = True
        return made

    def send(self, *workers: Place | str, **_: Any) -> NoReturn:
        """Refuse: the tensor is at a worker already."""
        raise NotSendableError(
            f"a tensor that is at {self._held.session.worker}",
            "use x.move(worker), which moves it there directly",
        )

    def tag(self, *tags: str) -> Self:
        """Add tags by which ``worker.search`` finds it; it stays until cleared."""
        held = self._held
        held.check()
        check_words(*tags)
        held.session.post(Label(held.id, tags))
        held.session.labelled[held.id] = held
        held.tags = tuple(dict.fromkeys((*held.tags, *tags)))
        return self

    def describe(self, description: str) -> Self:
        """Say what it is, for those who find it."""
        held = self._held
        held.check()
        check_words(description)
        held.session.post(Label(held.id, (), description))
        held.session.labelled[held.id] = held
        held.description = description
        return self

    # --- autograd -----------------------------------------------------------------

    @property
    def requires_grad(self) -> bool:
        """Whether autograd at the worker records what is done with it."""
        return self._held.requires_grad()

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        gradients.set_requires_grad(self._held, value)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let autograd at the worker record what is done with it, or not."""
        gradients.set_requires_grad(self._held, requires_grad)
        return self

    @property
    def is_leaf(self) -> bool:  # type: ignore[override] # a slot in PyTorch
        """Whether it is no operator's result, as autograd sees it."""
        return not self._held.requires_grad() or self._held.is_tracked_leaf()

    @property
    def grad_fn(self) -> RemoteNode | None:  # type: ignore[override] # likewise
        """What stands for its place in the graph at the worker; None for leaves."""
        return None if self.is_leaf else RemoteNode(self._held.session.worker)

    @property
    def retains_grad(self) -> bool:  # type: ignore[override] # likewise
        """Whether it keeps its gradient although it is no leaf."""
        state = self._held.autograd
        return state is not None and state.retains_grad

    @property
    def grad(self) -> RemoteTensor | None:
        """Its gradient, at the same worker, or None."""
        return gradients.read_grad(RemoteTensor, self._held)

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        gradients.write_grad(self._held, _grad_to_write(self, value), value)

    @grad.deleter
    def grad(self) -> None:
        """Let the gradient go."""
        gradients.write_grad(self._held, None, None)

    def retain_grad(self) -> None:
        """Let the gradient be kept although the tensor is no leaf."""
        gradients.retain_grad(self._held)

    def backward(
        self,
        gradient: torch.Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Compute gradients at the worker, as ``torch.Tensor.backward`` does.

        Args:
            gradient: (as the tensor) remote; not needed for a scalar.
            retain_graph: keep the graph; by default what ``create_graph`` says.
            create_graph: let the gradients be differentiated in their turn.
            inputs: accumulate into these only.
        """
        backward(RemoteTensor, self, gradient, retain_graph, create_graph, inputs)

    @property
    def data(self) -> RemoteTensor:
        """The same values without history; shares memory at the worker."""
        held = self._held
        held.check()
        id = held.session.new_id()
        held.session.post(ReadData(held.id, id))
        return wrap(RemoteTensor, Held(held.session, id, held.spec))

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        held = self._held
        held.check()
        if not isinstance(value, RemoteTensor):
            raise LocationError(
                "data",
                [held.session.worker, "this process"],
                f"send it first: obhut.send(x, {held.session.worker})",
            )
        gradients.together("data", (held, value._held))
        held.session.post(WriteData(held.id, value._held.id))
        become(self, held, value._held.spec)

    # --- what needs memory here ---------------------------------------------------

    def tolist(self) -> Any:
        """Return the values as nested lists. Leak: they come to this process."""
        return fetch([self._held]).result()[0].tolist()

    def storage_offset(self) -> int:
        """Return where in its storage the tensor begins; asks the worker."""
        self._held.check()
        return describe(self._held).offset

    def __repr__(self, **_: Any) -> str:  # type: ignore[override] # stub's own slip
        held = self._held
        if held.spent:
            return f"RemoteTensor({held.id}: {held.spent})"
        return text_of(
            f"{held.session.worker}:{held.id}",
            held.spec.shape,
            str(held.spec.dtype),
            self.requires_grad,
            held.tags,
        )

    def __format__(self, specification: str) -> str:
        """Format a single number, whose value comes here, or the description."""
        if self.dim() == 0 and specification:
            return format(self.item(), specification)
        return format(repr(self), specification)

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteTensor:
        """Return a copy at the same worker."""
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return] # a remote tensor
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support "
                "the deepcopy protocol at the moment"
            )
        memo[id(self)] = made = self.copy()
        made.__dict__.update(python_copy.deepcopy(attributes(self), memo))
        grad = self.grad
        if grad is not None:
            made.grad = grad.copy()
        return made

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UnsupportedError(
            "pickling or saving", "fetch it first, if a policy permits it: x.get()"
        )


def text_of(
    place: str,
    shape: Sequence[int],
    dtype: str,
    requires_grad: bool,
    tags: Sequence[str],
) -> str:
    """Return what a remote tensor prints: how it looks, and no value."""
    parts = [f"RemoteTensor({place}", f"shape={list(shape)}"]
    parts.append(f"dtype={dtype.removeprefix('torch.')}")
    if requires_grad:
        parts.append("requires_grad=True")
    if tags:
        parts.append(f"tags={' '.join(tags)}")
    return ", ".join(parts) + ")"


def attributes(tensor: torch.Tensor) -> dict[str, Any]:
    """Return what a program set on a tensor."""
    return {k: v for k, v in tensor.__dict__.items() if k not in ("_held", "_is_param")}


def settle(tensor: RemoteTensor, held: Held) -> None:
    """Let a remote tensor, keeping its identity, stand for another object."""
    new = held.spec
    held.spec = tensor._held.spec
    tensor._held = held
    become(tensor, held, new)


def _grad_to_write(tensor: RemoteTensor, value: torch.Tensor | None) -> Held | None:
    if value is None:
        return None
    if not isinstance(value, RemoteTensor):
        worker = tensor._held.session.worker
        raise LocationError(
            "grad", [worker, "this process"], f"send it first: obhut.send(x, {worker})"
        )
    return value._held


def send(
    tensor: torch.Tensor,
    session: Session,
    tags: tuple[str, ...] = (),
    description: str = "",
) -> RemoteTensor:
    """Send a copy of a tensor and return the remote tensor.

    That of a parameter is one too: modules take it for theirs.
    """
    made = wrap(RemoteTensor, put(session, tensor, tags, description))
    if isinstance(tensor, torch.nn.Parameter):
        made._is_param = True
    return made


def _refuse(what: str, advice: str) -> Callable[..., NoReturn]:
    """Return a method that raises the error for what can not work."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise UnsupportedError(what, advice)

    refuse.__name__ = what
    refuse.__doc__ = f"Refuse: {advice}."
    return refuse


_MEMORY = "its memory is at the worker; fetch it first, if a policy permits it: x.get()"

for _name in (
    "numpy",
    "__array__",
    "__dlpack__",
    "__dlpack_device__",
    "data_ptr",
    "storage",
    "untyped_storage",
    "share_memory_",
    "is_shared",
    "pin_memory",
    "map_",
    "map2_",
    "apply_",
):
    setattr(RemoteTensor, _name, _refuse(_name, _MEMORY))
for _name in ("register_hook", "register_post_accumulate_grad_hook"):
    setattr(RemoteTensor, _name, _refuse(_name, _HOOK))
