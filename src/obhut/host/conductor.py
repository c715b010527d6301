"""The order in which a message is carried out, the same in every shell.

::

    conductor.admit(sender, message)
    said = conductor.conduct(sender, runner, deliver)
    # runner.handle(), what it wants done, runner.settle(outcomes), the gate's last look

Rules:

- The gate comes first and last: who may not come reaches no core, and what must not
  leave leaves neither as an answer nor as a delivery.
- What a core wants done is done in its order. Questions that follow on one another are
  decided together.
- What a session lets its own worker store, or asks it about that, goes nowhere else.
- Each effect has an outcome, whatever goes wrong with it: the core waits for all.
- No I/O: what reads, writes or waits is handed in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from msgspec import structs

from obhut.errors import CallError, InternalError, ObhutError, RemoteProtocolError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    Batch,
    Deliver,
    Open,
    Refused,
    State,
    StateAnswer,
)
from obhut.worker.effects import (
    AskRelease,
    Delivery,
    Effect,
    Keeping,
    Leaving,
    Seeking,
)

from .gate import Gate


class DistrustedError(Exception):
    """A core said what it never says, or what must not leave."""


class Said(Protocol):
    """What a core said: a reply, and what must be done before it is final."""

    @property
    def message(self) -> AnyMessage:
        """The reply.

        Raises:
            RemoteProtocolError: if it is none.
        """

    @property
    def frames(self) -> Sequence[Frame]:
        """Its frames."""

    @property
    def effects(self) -> Sequence[Effect]:
        """What must be done, in order."""


_Said = TypeVar("_Said", bound=Said)
_Said_co = TypeVar("_Said_co", bound=Said, covariant=True)


def _nothing_stays(effect: Keeping | Seeking) -> Refused:
    """Refuse to store anything."""
    return Refused(CallError.__name__, "nothing can be stored here")


class Runner(Protocol[_Said_co]):
    """Who runs a core: a function call, or a process."""

    def handle(self) -> _Said_co:
        """Take the message in."""

    def settle(self, outcomes: Sequence[Refused | None]) -> _Said_co:
        """Tell the core how the effects ended; return the final answer."""


class Conductor:
    """Carries messages out at one worker.

    Args:
        name: the worker's name.
        gate: applies the worker's policy; None for an open worker.
        log: takes a line for the operator.
        called: returns what the owner calls somebody, by id, for the log.
    """

    def __init__(
        self,
        name: str,
        gate: Gate | None = None,
        *,
        log: Callable[[str], None] = lambda line: None,
        called: Callable[[str], str] = str,
    ) -> None:
        self._name = name
        self._gate = gate
        self._log = log
        self._called = called

    def admit(self, sender: str, message: AnyMessage) -> None:
        """Let a requester in, as far as the policy goes. Anybody may close.

        Raises:
            AccessDeniedError: if it does not.
            RemoteProtocolError: if only a worker's own shell says such a thing.
        """
        if isinstance(message, StateAnswer):
            raise RemoteProtocolError("nobody else says what a worker has stored")
        if self._gate is not None and isinstance(message, Open | Batch):
            self._gate.admit(sender)

    def conduct(
        self,
        sender: str,
        runner: Runner[_Said],
        deliver: Callable[[Delivery], Refused | None],
        keep: Callable[[Keeping | Seeking], Refused | None] = _nothing_stays,
    ) -> _Said:
        """Carry a message out and return the answer.

        Args:
            sender: who sent it, as the shell knows.
            runner: runs the core.
            deliver: carries a delivery, and returns why it was refused, or None. It
                raises nothing.
            keep: stores values, or tells the core what is stored, likewise.

        Raises:
            DistrustedError: if the answer is none, or must not leave.
            ObhutError: what the runner raises.
        """
        said = runner.handle()
        if said.effects:
            said = runner.settle(self._done(sender, said.effects, deliver, keep))
        if self._gate is not None:
            try:
                self._gate.check_reply(sender, said.message, said.frames)
            except (InternalError, RemoteProtocolError) as error:
                raise DistrustedError(str(error)) from error
        return said

    def _done(
        self,
        sender: str,
        effects: Sequence[Effect],
        deliver: Callable[[Delivery], Refused | None],
        keep: Callable[[Keeping | Seeking], Refused | None],
    ) -> list[Refused | None]:
        """Do what a core wants done; return how each ended."""
        outcomes: list[Refused | None] = []
        for kind, some in itertools.groupby(effects, type):
            if kind is AskRelease:
                asked = [one for one in some if isinstance(one, AskRelease)]
                outcomes += self._decided(sender, asked)
                continue
            for one in some:
                if isinstance(one, Delivery):
                    outcomes.append(self._delivered(one, deliver))
                elif isinstance(one, Keeping | Seeking):
                    outcomes.append(keep(one))
        return outcomes

    def _decided(
        self, sender: str, asked: Sequence[AskRelease]
    ) -> list[Refused | None]:
        if self._gate is None:
            return [Refused("InternalError", "only a guard releases")] * len(asked)
        try:
            decided = self._gate.decide(sender, [one.asked for one in asked])
        except Exception as error:
            # Nothing is released. The words may name a file here, or a peer.
            who = self._called(sender)
            self._log(f"releases for {who}: {type(error).__name__}: {error}")
            return [Refused("InternalError", _UNDECIDED.format(self._name))] * len(
                asked
            )
        for refused in decided:
            if refused is not None:
                self._log(f"{self._called(sender)}: {refused.kind}: {refused.text}")
        return decided

    def _delivered(
        self, delivery: Delivery, deliver: Callable[[Delivery], Refused | None]
    ) -> Refused | None:
        if self._gate is not None:
            try:
                self._gate.check_delivery(delivery.to, delivery.message)
            except ObhutError as error:
                to = self._called(delivery.to)
                self._log(f"delivery to {to}: {type(error).__name__}: {error}")
                return Refused(
                    type(error).__name__,
                    f"{self._name} could not deliver to {delivery.to}",
                )
        return deliver(delivery)


def covered(
    accepted: Sequence[Leaving], returned: Sequence[Leaving]
) -> Iterator[Leaving]:
    """Yield each delivery whose header was accepted, with its bytes or as spoilt.

    What has no header that was accepted goes nowhere.

    Args:
        accepted: headers, as who answers declared them.
        returned: what who holds the values returned.
    """
    bytes_of = {delivery.index: delivery for delivery in returned}
    for header in accepted:
        found = bytes_of.get(header.index)
        if found is not None and found.message == structs.replace(
            header.message,
            digests=(),  # which only who answers states
        ):
            yield _replaced(found, header.message, found.frames)
        else:
            yield spoilt(header)


def spoilt(delivery: Leaving) -> Leaving:
    """Return a delivery of which the bytes do not come.

    As many zeros travel, so that who watches the network learns nothing.
    """
    message = structs.replace(delivery.message, spoilt=True)
    return _replaced(delivery, message, tuple(map(bytes, message.sizes)))


def _replaced(
    delivery: Leaving, message: Deliver | State, frames: tuple[Frame, ...]
) -> Leaving:
    """Return a delivery with another message of its kind, and other frames."""
    return replace(delivery, message=message, frames=frames)  # type: ignore[arg-type] # mypy wants it to be of both kinds


_UNDECIDED = "{} could not decide whether this may be released; ask its owner"
