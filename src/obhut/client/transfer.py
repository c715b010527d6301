"""How tensors travel: send, fetch, move, copy.

::

    held = put(session, tensor)                  # a copy goes there
    future = fetch([held])                       # values come here
    (there,) = relocate([held], other)           # straight to another worker

Leak: ``fetch`` brings a tensor's values to this process, ``relocate`` to another
worker without passing through this one. Nothing else here moves values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from obhut.errors import InternalError, NotSendableError, ObhutError
from obhut.protocol.limits import TAGS, TEXT_CHARACTERS
from obhut.protocol.messages import (
    AnyRequest,
    Expect,
    Fetch,
    Free,
    Move,
    Put,
    ReadGrad,
    TensorData,
    WriteGrad,
)
from obhut.worker.shapes import dense
from obhut.worker.tensors import DTYPE_NAMES, to_frame

from .autograd_state import PENDING
from .held import Held
from .session import Asked, Session

Result = TypeVar("Result")


class Future(Generic[Result]):
    """A value on its way.

    Args:
        asked: the answers that it needs.
        finish: makes the value of the answers.
    """

    def __init__(
        self,
        asked: Sequence[Asked],
        finish: Callable[[Sequence[torch.Tensor]], Result],
    ) -> None:
        self._asked = tuple(asked)
        self._finish = finish
        self._value: tuple[Result] | None = None

    def done(self) -> bool:
        """Tell whether ``result`` would return at once."""
        return self._value is not None or all(one.done() for one in self._asked)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the value, for ``timeout`` seconds at most an answer.

        Raises:
            ObhutError: what went wrong, as ``get()`` would raise it.
            TimeoutError: if it has not come in time.
        """
        if self._value is None:
            try:
                replies = [one.result(timeout) for one in self._asked]
            except ObhutError:
                for one in self._asked:
                    one.overlook()  # one failure of a fetch stands for all of it
                raise
            tensors = [reply for reply in replies if isinstance(reply, torch.Tensor)]
            if len(tensors) != len(replies):
                raise InternalError("a fetch was answered without a tensor")
            self._value = (self._finish(tensors),)
        return self._value[0]


def check_sendable(tensor: object, called: str = "") -> torch.Tensor:
    """Return the tensor if it can travel.

    Args:
        tensor: the tensor.
        called: what it is called in a module that is to be sent, for the error.

    Raises:
        NotSendableError: if it is no tensor, no plain tensor, not dense, or has a
            hook, which would not travel.
    """
    if not isinstance(tensor, torch.Tensor):
        raise NotSendableError(
            f"an object of type {type(tensor).__name__}",
            "send a torch.Tensor or an nn.Module",
        )
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise NotSendableError(
            f"a tensor of the sub-class {type(tensor).__name__}",
            "send a plain torch.Tensor: x.as_subclass(torch.Tensor)",
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise NotSendableError(
            f"a tensor of layout {tensor.layout}", "send x.to_dense() instead"
        )
    if tensor.device.type == "meta":
        raise NotSendableError("a meta tensor", "it has no values to send")
    if tensor.dtype not in DTYPE_NAMES:
        raise NotSendableError(
            f"a tensor of {tensor.dtype}", "convert it to another dtype first"
        )
    if tensor._backward_hooks or tensor._post_accumulate_grad_hooks:
        raise NotSendableError(
            f"a tensor with a hook{called}",
            "remove it (handle.remove()), and do after backward() with x.grad what "
            "it does",
        )
    return tensor


def is_sendable(tensor: torch.Tensor) -> bool:
    """Tell whether the tensor can travel."""
    try:
        check_sendable(tensor)
    except NotSendableError:
        return False
    return True


def check_words(*texts: str) -> None:
    """Check that tags or a description can travel.

    Raises:
        NotSendableError: if one is no text, or too long.
    """
    for text in texts:
        if not isinstance(text, str):
            raise NotSendableError(
                f"a tag of type {type(text).__name__}", "tags and descriptions are text"
            )
        if len(text) > TEXT_CHARACTERS or any("\ud800" <= c <= "\udfff" for c in text):
            raise NotSendableError(
                "a text that is long or no Unicode",
                f"use at most {TEXT_CHARACTERS:,} characters",
            )
    if len(texts) > TAGS:
        raise NotSendableError(f"{len(texts)} tags", f"use at most {TAGS}")


def put(
    session: Session,
    tensor: torch.Tensor,
    tags: tuple[str, ...] = (),
    description: str = "",
    *,
    steady: bool = False,
) -> Held:
    """Send a copy of a tensor, with its gradient if it has one.

    Args:
        session: with the worker that gets it.
        tensor: a plain, dense tensor; it stays as it is.
        tags: by which the worker lets it be found.
        description: what it says of it.
        steady: whether its values stay as they are until the worker has answered:
            then they are not copied here.

    Returns:
        The hold on the copy: a leaf that requires a gradient if the tensor does.

    Raises:
        NotSendableError: if it can not travel.
    """
    check_sendable(tensor)
    check_words(*tags, description)
    shape = tuple(tensor.shape)
    id = session.new_id()
    name, tracked = DTYPE_NAMES[tensor.dtype], tensor.requires_grad
    frame = to_frame(tensor)
    session.post(
        Put(id, TensorData(name, shape, 0, tracked), tags, description),
        frame.toreadonly() if steady else frame,
    )
    held = Held(session, id, dense(shape, tensor.dtype))
    held.tags, held.description = tags, description
    if tags or description:
        session.labelled[id] = held
    if tracked:
        held.tracked().become_leaf(True)
        grad = tensor.grad if tensor.is_leaf else None
        if grad is not None and grad.layout is torch.strided:
            there = Held(session, session.new_id(), held.spec)
            session.post(Put(there.id, TensorData(name, shape, 0)), to_frame(grad))
            session.post(WriteGrad(id, there.id))
            held.tracked().grad, held.tracked().since = PENDING, session.cancels
    return held


def fetch(helds: Sequence[Held]) -> Future[list[torch.Tensor]]:
    """Bring values here, with gradients where there are any, in one exchange.

    The remote objects stay; ``spend`` lets them go.

    Returns:
        A future of one local leaf for each, which requires a gradient if the
        remote tensor is a leaf that does. The history of a result stays behind.
    """
    by_session: dict[Session, list[tuple[int, AnyRequest]]] = {}
    layout: list[tuple[bool, bool]] = []
    grads: list[Held] = []  # go with their names when this returns, or fails
    for held in helds:
        held.check()
        session = held.session
        requests: list[AnyRequest] = [Fetch(held.id)]
        state = held.autograd
        has_grad = state is not None and state.grad is not None and state.is_leaf
        if has_grad:
            grad = Held(session, session.new_id(), held.spec)
            grads.append(grad)
            session.post(ReadGrad(held.id, grad.id))
            requests.append(Fetch(grad.id))
        first = sum(1 + more for _, more in layout)
        layout.append((held.is_tracked_leaf(), has_grad))
        by_session.setdefault(session, []).extend(
            (first + position, request) for position, request in enumerate(requests)
        )
    asked: dict[int, Asked] = {}
    for session, numbered in by_session.items():
        leaving = sum(held.spec.nbytes for held in helds if held.session is session)
        answers = session.ask_all_later([r for _, r in numbered], leaving)
        asked.update(zip((place for place, _ in numbered), answers, strict=True))

    def finish(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        rest = iter(tensors)
        values: list[torch.Tensor] = []
        for tracked, has_grad in layout:
            value = next(rest).requires_grad_(tracked)
            if has_grad:
                value.grad = next(rest)
            values.append(value)
        return values

    return Future([asked[place] for place in sorted(asked)], finish)


def spend(helds: Sequence[Held], why: str) -> None:
    """Let remote objects go for good, tagged or not."""
    for held in helds:
        held.session.post(Free((held.id,), tagged=True))
        held.spend(why)


def relocate(helds: Sequence[Held], to: Session) -> list[Held]:
    """Move objects straight from one worker to another, in one delivery.

    Values only: gradients and history stay behind and go. A leaf that requires a
    gradient still does, the result of an operator does not.

    Args:
        helds: all at one worker. They are spent afterwards.
        to: the session with the worker that gets them.

    Returns:
        The holds there.
    """
    source = helds[0].session
    for held in helds:
        held.check()
    ids = tuple(held.id for held in helds)
    first = to.new_ids(len(helds))
    there = tuple(range(first, first + len(helds)))
    to.drain()  # what failed before is no reason for this to fail
    to.post(Expect(there, source.address))
    to.drain()
    leaving = source.ask_later(
        Move(ids, to.address, to.name, there), sum(held.spec.nbytes for held in helds)
    )
    moved: list[Held] = []
    for held, id in zip(helds, there, strict=True):
        new = Held(to, id, dense(held.spec.shape, held.spec.dtype))
        if held.is_tracked_leaf():
            new.tracked().become_leaf(True)
        new.arrive(leaving, held)
        held.spend(f"it was moved to {to.worker}")
        moved.append(new)
    return moved
