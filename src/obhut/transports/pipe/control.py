"""What parent, fork server and children say to each other beside the messages.

Rules:

- Decoding is by table only.
- Numbers and texts that a child sends are bounded here; whether they agree with
  what came is for who receives them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal, TypeAlias

from msgspec import Meta, Struct, structs

from obhut.protocol import limits

Size: TypeAlias = Annotated[int, Meta(ge=0, le=2**48)]
"""A number of bytes."""

Numbers: TypeAlias = Annotated[
    tuple[Annotated[int, Meta(ge=1)], ...], Meta(max_length=1_000)
]
"""Numbers of segments that a child names."""

Places: TypeAlias = Annotated[
    tuple[Size, ...], Meta(max_length=limits.REQUESTS_PER_BATCH)
]
"""Places of requests in a batch."""

Text: TypeAlias = Annotated[str, Meta(max_length=limits.TEXT_CHARACTERS)]
"""A text that a child may send."""


LINES = 64
"""Lines that a child may tell at a time."""

Lines: TypeAlias = Annotated[
    tuple[Annotated[str, Meta(max_length=400)], ...], Meta(max_length=LINES)
]
"""Lines for the worker's owner."""


class SharedArray(Struct, frozen=True):
    """Sizes of a data set, in sealed memory that the fork server inherits.

    Attributes:
        dataset: the data set's name.
        part: the part's name.
        dtype: the element type.
        shape: the sizes.
        fd: the memory's file descriptor; None where only what it looks like is known.
        hidden: whether how many rows there are is hidden. Where only what it looks like
            is known, the sizes don't say it.
        columns: the public names of its columns; none if they are private.
    """

    dataset: str
    part: str
    dtype: str
    shape: tuple[int, ...]
    fd: int | None
    hidden: bool = False
    columns: tuple[str, ...] = ()


class Settings(Struct, frozen=True):
    """What holds for each child of a worker.

    Attributes:
        id: the worker's id.
        memory: bytes that a session may use, or None for no limit.
        threads: threads that an operator may use.
        seconds: how long the parent waits for an answer, or None for ever: as
            long as one message may compute.
        kept: bytes of shared memory that are kept for the next large tensors of
            a session, each way.
        sandbox: ``auto`` walls children in or refuses to start them; ``none``
            leaves network, files and system calls open.
        datasets: the worker's data, which each child sees as its own copy.
        policy: the worker's policy, encoded; empty for an open worker.
        aggregates: whether it is an aggregator under that policy, else an owner.
        spool: the folder where large tensors wait on disk; empty for memory.
        execution: of an owner under a policy, ``low`` gives the answers and knows no
            values, ``high`` follows it; empty for any other worker.
    """

    id: str
    memory: int | None = None
    threads: int = 1
    seconds: float | None = None
    kept: int = 256 * 2**20
    sandbox: Literal["auto", "none"] = "auto"
    datasets: tuple[SharedArray, ...] = ()
    policy: bytes = b""
    aggregates: bool = False
    spool: str = ""
    execution: Literal["", "low", "high"] = ""

    def with_only(self, datasets: Collection[str] | None) -> Settings:
        """Return the same for a child that may use some of the data sets only."""
        if datasets is None:
            return self
        kept = tuple(one for one in self.datasets if one.dataset in datasets)
        return structs.replace(self, datasets=kept)

    @property
    def hidden(self) -> frozenset[str]:
        """The names of data sets whose number of rows is hidden."""
        return frozenset(one.dataset for one in self.datasets if one.hidden)

    @property
    def columns(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The public names of columns, by data set and part."""
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for one in self.datasets:
            found.setdefault(one.dataset, {})[one.part] = one.columns
        return found


class Control(Struct, frozen=True, array_like=True):
    """The base of what travels on a pipe.

    Attributes:
        alone: of what a child says, whether nothing may follow it unasked.
    """

    alone: ClassVar[bool] = True


class Sizes(Struct, frozen=True, array_like=True):
    """One parcel among the bytes that follow: sizes of its header and frames."""

    header: Size
    frames: tuple[Size, ...] = ()


class Departure(Struct, frozen=True, array_like=True):
    """A message that is to go to another worker, or one for the parent itself.

    Attributes:
        to: the other worker's id; empty for the parent.
        index: the place of the request in its batch.
        part: the sizes of the message.
    """

    to: Text
    index: Size
    part: Sizes


# --- from the parent to a child ---------------------------------------------------


class Handle(Control, frozen=True, tag="handle"):
    """Take a message in.

    Attributes:
        sender: who sent it, as the parent knows.
        now: the parent's clock, in seconds.
        part: its sizes.
        segment: the shared memory that its frames are in, whose file comes along
            the first time; 0 if they are among the bytes that follow.
        gone: shared memory that is not used any more.
        absent: whether the frames do not come, but only their sizes.
        digests: their digests then, if they are known.
        undone: of a batch for who follows, the places of what was not carried out.
    """

    sender: str
    now: float
    part: Sizes
    segment: int = 0
    gone: tuple[int, ...] = ()
    absent: bool = False
    digests: tuple[bytes, ...] = ()
    undone: tuple[int, ...] = ()


class Settle(Control, frozen=True, tag="settle"):
    """Take in how the deliveries ended: for each, None or why it was refused."""

    sender: str
    session: str
    outcomes: tuple[tuple[str, str] | None, ...]


class Cancel(Control, frozen=True, tag="cancel"):
    """Compute no more of this batch. It is not answered, and may come at any time.

    Attributes:
        number: the batch's number.
    """

    number: Size


class Lend(Control, frozen=True, tag="lend"):
    """Shared memory for the frames of an answer, or that there is none.

    Attributes:
        segment: which, as in ``Handle``; 0 if it was not granted.
        gone: as in ``Handle``.
    """

    segment: int
    gone: tuple[int, ...] = ()


Down: TypeAlias = Handle | Settle | Cancel | Lend

# --- from a child to the parent ---------------------------------------------------


class Ready(Control, frozen=True, tag="ready"):
    """The child is behind these walls and takes messages."""

    walls: tuple[Text, ...]


class Borrow(Control, frozen=True, tag="borrow"):
    """So many bytes of shared memory are needed for the frames of the answer."""

    size: Size


class Told(Control, frozen=True, tag="told"):
    """How much of a batch is done, while it computes.

    A child under a policy tells nothing.

    Attributes:
        thousandths: of what its programs go through.
    """

    thousandths: Annotated[int, Meta(ge=0, le=1000)]

    alone: ClassVar[bool] = False


class Handled(Control, frozen=True, tag="handled"):
    """The answer, and what has to be delivered before it goes out.

    Attributes:
        reply: the sizes of the answer.
        departures: what is to go to other workers, in order.
        shared: whether all frames are in the shared memory that was lent.
        returned: shared memory with requests' frames that it needs no more.
        told: lines that only the worker's owner may read.
        undone: the places of the batch's requests that were not carried out.
    """

    reply: Sizes
    departures: tuple[Departure, ...]
    shared: bool
    returned: Numbers = ()
    told: Lines = ()
    undone: Places = ()


class Unanswered(Control, frozen=True, tag="failed"):
    """There is no answer. ``kind`` names one of few errors."""

    kind: Literal["InternalError", "LimitError", "RemoteProtocolError"]
    text: Text


class Walled(Control, frozen=True, tag="walled"):
    """The child could not be walled in."""

    wall: Text
    why: Text
    advice: Text


Up: TypeAlias = Ready | Borrow | Told | Handled | Unanswered | Walled

# --- between the parent and the fork server ---------------------------------------


class Begin(Control, frozen=True, tag="begin"):
    """Get ready to fork children with these settings."""

    settings: Settings


class Fork(Control, frozen=True, tag="fork"):
    """Fork a child. Its end of a socket pair came along.

    Attributes:
        memory: bytes that its session may use, as in the settings.
        datasets: the names of the data sets that it may use; None for all. It lets go
            of the others before it does anything else.
    """

    memory: int | None
    datasets: tuple[str, ...] | None = None


class End(Control, frozen=True, tag="end"):
    """End a child, if it has not ended, and say how it did."""

    pid: int


class Forked(Control, frozen=True, tag="forked"):
    """The child's process id."""

    pid: int


class Ended(Control, frozen=True, tag="ended"):
    """A child's wait status, as ``os.waitstatus_to_exitcode`` gives it.

    None for a child that had been ended before.
    """

    code: int | None


ToServer: TypeAlias = Begin | Fork | End
FromServer: TypeAlias = Ready | Walled | Forked | Ended
