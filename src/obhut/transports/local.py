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
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils import _python_dispatch as python_dispatch

from obhut.errors import ObhutError, WorkerClosedError
from obhut.host.gate import Gate
from obhut.protocol import codec
from obhut.protocol.codec import Frame
from obhut.protocol.messages import AnyMessage, Batch, Deliver, Refused, Release
from obhut.worker.core import Worker
from obhut.worker.effects import Delivery, Effect, Parcel
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
            reply = shell.exchange(
                sender, delivery.parcel.message, delivery.parcel.frames
            )
        except ObhutError as error:
            return Refused(type(error).__name__, str(error))
        return reply.message if isinstance(reply.message, Refused) else None


NETWORK = LocalNetwork()
"""Where shells meet unless told otherwise."""


class LocalShell:
    """A worker in this process.

    Args:
        core: the worker.
        encode: whether messages pass through the codec.
        network: who can deliver to it, and to whom it can deliver.
        clock: the time in seconds.
        gate: applies the worker's policy; None for an open worker.
    """

    def __init__(
        self,
        core: Worker,
        *,
        encode: bool = True,
        network: LocalNetwork = NETWORK,
        clock: Callable[[], float] = time.monotonic,
        gate: Gate | None = None,
    ) -> None:
        self.id = core.id
        self._core = core
        self._encode = encode
        self._network = network
        self._clock = clock
        self._gate = gate
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
        if self._gate is not None and not isinstance(message, Deliver):
            self._gate.admit(sender)
        with self._lock, _alone():
            core = self._open_core()
            reply, effects = core.handle(sender, parcel, self._clock())
        if effects and isinstance(parcel.message, Batch):
            # Without the lock: the other worker may be delivering here.
            outcomes = self._carry_out(sender, effects)
            with self._lock, _alone():
                core = self._open_core()
                reply = core.settle(sender, parcel.message.session, outcomes)
        if self._gate is not None:
            self._gate.check_reply(sender, *reply)
        return self._carried(*reply)

    def _carry_out(
        self, sender: str, effects: Sequence[Effect]
    ) -> list[Refused | None]:
        """Do what the core wants done; return how each ended."""
        outcomes: list[Refused | None] = []
        for releases, some in itertools.groupby(effects, _asks):
            if not releases:
                outcomes += [self._deliver(one) for one in some]
            elif self._gate is None:
                outcomes += [Refused("InternalError", _NO_GUARD) for _ in some]
            else:
                messages = [one.parcel.message for one in some]
                asked = [m for m in messages if isinstance(m, Release)]
                outcomes += self._gate.decide(sender, asked)
        return outcomes

    def _deliver(self, effect: Effect) -> Refused | None:
        """Carry a delivery to its worker, if it may leave."""
        if self._gate is not None:
            try:
                self._gate.check_delivery(effect.to, effect.parcel.message)
            except ObhutError as error:
                return Refused(type(error).__name__, str(error))
        return self._network.deliver(self.address, effect)

    def _open_core(self) -> Worker:
        if self._closed:
            raise WorkerClosedError(self.id)
        return self._core

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


_NO_GUARD = "only a guard releases"


def _asks(effect: Effect) -> bool:
    return isinstance(effect.parcel.message, Release)


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
def _alone() -> Iterator[None]:
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
