"""What sessions of a served worker store beyond themselves, and get back.

::

    refused = storing.keep("session", session, kept, effect)   # accepted, or told
    storing.bring(owner, leaving)                # once the values are there
    storing.give_up(owner, kept)                 # where they will not be

Rule: who answers gets no value of what is stored, and does not learn whether it is
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from obhut.errors import ObhutError
from obhut.host.states import States, Told
from obhut.protocol import codec
from obhut.protocol.messages import Refused
from obhut.transports.pipe.link import INLINE_BYTES
from obhut.transports.pipe.parent import Absent, Frames
from obhut.worker.effects import Keeping, Leaving, Seeking

from .arriving import Arriving, Lender
from .following import Followed
from .sessions import ServedSession

_UNKEPT = "what is stored here can not be looked up; the worker's owner learns why"


class Storing:
    """What a worker's sessions store.

    Args:
        worker: the worker's name.
        states: what is stored; None at an aggregator, where nothing is.
        clock: tells the time in seconds.
        log: takes a line for the operator.
    """

    def __init__(
        self,
        worker: str,
        states: States | None,
        clock: Callable[[], float],
        log: Callable[[str], None],
    ) -> None:
        self._worker = worker
        self._states = states
        self._clock = clock
        self._log = log

    def keep(
        self,
        name: str,
        session: ServedSession,
        kept: list[Keeping],
        effect: Keeping | Seeking,
    ) -> Refused | None:
        """Accept what is to be stored, or tell a session what is.

        Args:
            name: the session's name.
            session: the session.
            kept: takes what is accepted, and written once its values are there.
            effect: what the session wants.
        """
        states, owner = self._states, session.owner
        try:
            if states is None:
                return Refused("CallError", f"nothing is stored at {self._worker}")
            if isinstance(effect, Seeking):
                return self._tell(name, session, states.answer(owner, name, effect))
            states.reserve(owner, effect.message)
        except ObhutError as error:
            return Refused(type(error).__name__, str(error))
        except Exception as error:
            # Any: the child waits to hear how each ended.
            self._log(f"what is stored: {type(error).__name__}: {error}")
            return Refused("InternalError", _UNKEPT)
        if session.following is None:
            return states.bring(owner, effect.message, effect.frames)
        kept.append(effect)
        return None

    def bring(self, owner: str, leaving: Iterable[Leaving]) -> None:
        """Store what was accepted, now that its values are there."""
        for one in leaving:
            if isinstance(one, Keeping) and self._states is not None:
                self._states.bring(owner, one.message, one.frames)

    def give_up(self, owner: str, accepted: Sequence[Leaving]) -> None:
        """Store nothing of what was accepted."""
        for one in accepted:
            if isinstance(one, Keeping) and self._states is not None:
                self._states.release(owner, one.message)

    def wait(self, owner: str, until: Callable[[], bool]) -> None:
        """Wait until all is written that somebody has stored, or something else.

        Duty: ``look`` when the latter happens.
        """
        if self._states is not None:
            self._states.wait(owner, until)

    def look(self) -> None:
        """Let those who wait look again."""
        if self._states is not None:
            self._states.look()

    def finish(self, seconds: float) -> None:
        """Wait until all is written, but so long at most."""
        if self._states is not None:
            self._states.finish(seconds)

    def _tell(self, name: str, session: ServedSession, told: Told) -> Refused | None:
        """Tell a session what is stored; return why it does not take it, or None.

        Leak: to who answers not the values, and not whether they are there.
        """
        owner, header, frames = session.owner, codec.encode(told.message), told.frames
        following = session.following
        seen: Frames = frames if following is None else Absent(told.message.sizes)
        said = session.child.exchange(owner, header, seen, self._clock())
        answer = codec.decode(said.header)
        if isinstance(answer, Refused):
            return answer
        if following is not None and frames and not told.spoilt:
            try:
                lent = _lent(following, told)
            except ObhutError as error:
                self._log(f"what was stored is missing: {error}")
            else:
                following.put(Followed(owner, header, lent))
        return None


def _lent(lender: Lender, told: Told) -> Frames:
    """Return stored values as who has the rows gets them.

    Raises:
        ObhutError: if there is no room for them.
    """
    sizes = told.message.sizes
    if sum(sizes) <= INLINE_BYTES:
        return told.frames
    arriving, offset = Arriving(None, lender, sizes), 0
    for frame in told.frames:
        if len(frame):
            arriving.write(offset, memoryview(frame))
        offset += len(frame)
    return arriving.stored()
