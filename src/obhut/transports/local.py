"""The in-process shell: a worker's core behind a function call.

Rules:

- Everything passes through the codec, unless told otherwise, as it would on a
  network; what works here works there.
- The worker computes as if it were alone: the caller's grad mode, inference
  mode, autocast, function modes, hooks on saved tensors and anomaly mode do not reach
  it.
- One message at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils import _python_dispatch as python_dispatch

from obhut.errors import InternalError, ObhutError, WorkerClosedError
from obhut.host.conductor import Conductor, DistrustedError, covered
from obhut.host.gate import Gate
from obhut.host.states import States, StatesInMemory
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Batch, Refused
from obhut.worker.core import Worker
from obhut.worker.effects import (
    Delivery,
    Effect,
    Keeping,
    Leaving,
    Parcel,
    Seeking,
)
from obhut.worker.shapes import outside_dispatch

ME = "me"
"""The principal of a client in the same process."""


class LocalNetwork:
    """The workers of one process that can deliver to each other, by address."""

    def __init__(self) -> None:
        self._shells: weakref.WeakValueDictionary[str, LocalShell] = (
            weakref.WeakValueDictionary()
        )

    def join(self, shell: LocalShell, *, named: bool = False) -> str:
        """Add a shell and return its address: its id, numbered where taken.

        Args:
            shell: the shell.
            named: whether policies name it. It then has its id for its address; an
                earlier one of that id gets no more deliveries, as one that a notebook
                made when its cell was run before.
        """
        address, count = shell.id, 1
        while address in self._shells and not named:
            count += 1
            address = f"{shell.id}~{count}"
        self._shells[address] = shell
        return address

    def deliver(self, sender: str, delivery: Delivery) -> Refused | None:
        """Carry a delivery to its worker; return why it was refused, or None."""
        shell = self._shells.get(delivery.to)
        if shell is None:
            return Refused("WorkerNotFoundError", f"nobody is at {delivery.to!r}")
        try:
            reply = shell.exchange(sender, delivery.message, delivery.frames)
        except ObhutError as error:
            return Refused(type(error).__name__, str(error))
        return reply.message if isinstance(reply.message, Refused) else None


NETWORK = LocalNetwork()
"""Where shells meet unless told otherwise."""


class Done:
    """What share of the batch that a worker computes is done.

    Attributes:
        batch: the batch's session and number; none at first.
        share: from 0 to 1.
    """

    def __init__(self) -> None:
        self.batch: tuple[str, int] | None = None
        self.share = 0.0

    def __call__(self, share: float) -> None:
        """Take the share in."""
        self.share = share


class LocalShell:
    """A worker in this process.

    Args:
        core: the worker.
        encode: whether messages pass through the codec.
        network: who can deliver to it, and to whom it can deliver.
        clock: the time in seconds.
        gate: applies the worker's policy; None for an open worker.
        done: what the core tells while it computes; None if it tells nothing.
        states: what is stored beyond sessions; None to keep it in memory.
    """

    def __init__(
        self,
        core: Worker,
        *,
        encode: bool = True,
        network: LocalNetwork = NETWORK,
        clock: Callable[[], float] = time.monotonic,
        gate: Gate | None = None,
        done: Done | None = None,
        states: States | None = None,
    ) -> None:
        self.id = core.id
        self._states = states or StatesInMemory(guarded=gate is not None)
        self._done = done
        self._core = core
        self._encode = encode
        self._network = network
        self._clock = clock
        self._conductor = Conductor(core.id, gate)
        self._lock = threading.RLock()
        self._closed = False
        self.address = network.join(self, named=gate is not None)

    def exchange(
        self, sender: str, message: AnyMessage, frames: Sequence[Frame]
    ) -> Parcel:
        """Take a message to the worker, carry out its effects, bring the reply.

        Raises:
            WorkerClosedError: if the worker was closed.
            RemoteProtocolError: if the message breaks the protocol.
            AccessDeniedError: if the policy does not let the sender in.
        """
        parcel = self._carried(message, frames)
        self._conductor.admit(sender, message)
        accepted: list[Leaving] = []

        def deliver(delivery: Delivery) -> Refused | None:
            refused = self._network.deliver(self.address, delivery)
            if refused is None:
                accepted.append(delivery)
            return refused

        def keep(effect: Keeping | Seeking) -> Refused | None:
            refused = self._keep(sender, message, effect)
            if refused is None and isinstance(effect, Keeping) and self._core.follows:
                accepted.append(effect)
            return refused

        try:
            runner = _Runner(self._use, sender, parcel, self._clock, self._begin)
            said = self._conductor.conduct(sender, runner, deliver, keep)
        except BaseException as error:
            for one in accepted:
                if isinstance(one, Keeping):
                    self._states.release(sender, one.message)
            if isinstance(error, DistrustedError):
                raise InternalError(str(error)) from error
            raise
        if self._core.follows:
            self._follow(sender, parcel, said.message, accepted)
        return self._carried(said.message, said.frames)

    def _keep(
        self, sender: str, message: AnyMessage, effect: Keeping | Seeking
    ) -> Refused | None:
        """Accept what is to be stored, or tell the core what is."""
        try:
            if isinstance(effect, Keeping):
                self._states.reserve(sender, effect.message)
                if not self._core.follows:
                    return self._states.bring(sender, effect.message, effect.frames)
            elif isinstance(message, Batch):
                return self._told(sender, message.session, effect)
        except ObhutError as error:
            return Refused(type(error).__name__, str(error))
        return None

    def _told(self, sender: str, session: str, effect: Seeking) -> Refused | None:
        """Tell the core what is stored; return why it does not take it, or None."""
        told = self._states.answer(sender, session, effect)
        with self._use() as core:
            # Who answers gets no values.
            absent = (codec.FrameDigest(),) * len(told.frames)
            frames = absent if core.follows else told.frames
            seen = Parcel(told.message, frames)
            reply, _ = core.handle(sender, seen, self._clock())
            if not told.spoilt:
                parcel = Parcel(told.message, told.frames)
                core.follow(sender, parcel, reply.message)
        return reply.message if isinstance(reply.message, Refused) else None

    def _follow(
        self,
        sender: str,
        parcel: Parcel,
        reply: AnyMessage,
        accepted: Sequence[Leaving],
    ) -> None:
        """Do what comes after the answer, and deliver what comes of it."""
        headers = [one for one in accepted if not one.frames and one.message.tensors]
        returned: Sequence[Leaving] = ()
        try:
            with self._use() as core:
                returned = core.follow(sender, parcel, reply)
        finally:
            # Also after Ctrl-C: whoever waits for what was declared gets it as spoilt.
            for delivery in covered(headers, returned):
                if isinstance(delivery, Delivery):
                    self._network.deliver(self.address, delivery)
                else:
                    self._states.bring(sender, delivery.message, delivery.frames)

    @contextlib.contextmanager
    def _use(self) -> Iterator[Worker]:
        """Enter the core, one message at a time.

        Not while its effects are carried out: the other worker may be delivering here.
        """
        with self._lock, alone():
            yield self._open_core()

    def _open_core(self) -> Worker:
        if self._closed:
            raise WorkerClosedError(self.id)
        return self._core

    def progress(self, session: str, number: int) -> float | None:
        """Return what share of a batch is done, None if it is not being computed."""
        done = self._done
        if done is None or self._closed or done.batch != (session, number):
            return None
        return done.share

    def _begin(self, message: AnyMessage) -> None:
        """Take in what is computed from now on. The lock is held."""
        if self._done is not None:
            self._done.batch, self._done.share = None, 0.0
            if isinstance(message, Batch):
                self._done.batch = message.session, message.number

    def named(self, session: str) -> list[tuple[int, tuple[str, ...]]]:
        """Return this process's objects in a session, each by one id, with its tags.

        Raises:
            WorkerClosedError: if there is no such session.
        """
        with self._lock:
            return self._open_core().named(ME, session)

    def close(self) -> None:
        """Close the worker: what it holds is gone, and messages are refused."""
        with self._lock:
            self._closed = True
            self._core = Worker(self.id)

    def _carried(self, message: AnyMessage, frames: Sequence[Frame]) -> Parcel:
        if not self._encode:
            return Parcel(message, tuple(frames))
        return Parcel(codec.decode(codec.encode(message), frames), tuple(frames))


class _Said(NamedTuple):
    """What the core said."""

    message: AnyMessage
    frames: tuple[Frame, ...]
    effects: tuple[Effect, ...] = ()


class _Runner:
    """Runs the core for one message.

    Args:
        use: enters the core.
        sender: who sent the message.
        parcel: the message.
        clock: the time in seconds.
        begin: called with the message when the core takes it in.
    """

    def __init__(
        self,
        use: Callable[[], contextlib.AbstractContextManager[Worker]],
        sender: str,
        parcel: Parcel,
        clock: Callable[[], float],
        begin: Callable[[AnyMessage], None],
    ) -> None:
        self._begin = begin
        self._use = use
        self._sender = sender
        self._parcel = parcel
        self._clock = clock

    def handle(self) -> _Said:
        """Take the message in."""
        with self._use() as core:
            self._begin(self._parcel.message)
            reply, effects = core.handle(self._sender, self._parcel, self._clock())
        return _Said(*reply, effects)

    def settle(self, outcomes: Sequence[Refused | None]) -> _Said:
        """Tell the core how what it wanted done ended."""
        message = self._parcel.message
        if not isinstance(message, Batch):
            raise InternalError("only a batch has effects")
        with self._use() as core:
            return _Said(*core.settle(self._sender, message.session, outcomes))


class LocalTransport:
    """A client's way to a worker in this process.

    Args:
        shell: the worker.
        principal: who the client is.
    """

    def __init__(self, shell: LocalShell, principal: str = ME) -> None:
        self.worker = shell.id
        self.address = shell.address
        self.eager = False
        self.mends = False
        self.shared = True
        self._shell = shell
        self._principal = principal

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Arrived:
        """Send a message; the reply is there when this returns.

        Raises:
            WorkerClosedError: if the worker was closed.
        """
        return Arrived(self._shell.exchange(self._principal, message, frames))

    def progress(self, session: str, number: int) -> float | None:
        """Return what share of a batch is done, while another thread has it done."""
        return self._shell.progress(session, number)

    def close(self) -> None:
        """Give the way up; a worker in the same process has none to close."""


class Arrived:
    """A reply that is there."""

    def __init__(self, parcel: Parcel) -> None:
        self._parcel = parcel

    def done(self) -> bool:
        """Return True."""
        return True

    def result(self, timeout: float | None = None) -> Parcel:
        """Return the reply at once."""
        return self._parcel

    def when_done(self, call: Callable[[], None]) -> None:
        """Call the function at once."""
        call()

    def cancel(self) -> None:
        """Do nothing: it was carried out."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep the caller's modes away from what runs inside."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        if torch._C._len_torch_dispatch_stack():
            stack.enter_context(python_dispatch._disable_current_modes())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(outside_dispatch())
        # While autograd is "traced", no default hook sees what it saves.
        traced = torch._C._autograd._saved_tensors_hooks_set_tracing(True)
        try:
            yield
        finally:
            torch._C._autograd._saved_tensors_hooks_set_tracing(traced)
