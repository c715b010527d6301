"""What clients, workers and aggregators say to each other.

Rules:

- Messages are frozen and hold plain data: no tensor, no torch type.
- Ids are the client's: it names a result before the worker has made it, so that
  it can go on without an answer.
- An operator's results take consecutive ids from ``out`` on, one for each
  position of the flattened result, whether or not it holds a tensor.
- The bytes of a tensor travel beside the message in a frame of their own; the
  message says which frame, and how it is to be read.
- The sender's identity is never a field: the transport knows it.
- Bounds stand on the fields, and are held to where a message is decoded. What else
  holds of a request stands on its class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, ClassVar, TypeAlias

from msgspec import Meta, Struct

from . import limits
from .dtypes import nbytes

PROTOCOL_VERSION = 7
"""Both sides of a session must name the same one."""

NOWHERE = 0
"""The id that stands for "keep no result"."""


Text: TypeAlias = Annotated[str, Meta(max_length=limits.TEXT_CHARACTERS)]
"""A name, a tag, a description or an error's text."""

Tags: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=limits.TAGS)]
"""Tags of one object, or of one search."""

Digests: TypeAlias = Annotated[
    tuple[Annotated[bytes, Meta(max_length=32)], ...],
    Meta(max_length=limits.REQUESTS_PER_BATCH),
]
"""Digests of how tensors were made, one a tensor; empty where that is not known."""

Ids: TypeAlias = Annotated[tuple[int, ...], Meta(max_length=limits.REQUESTS_PER_BATCH)]
"""Objects of one move, delivery or sum."""

Columns: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=limits.COLUMNS)]
"""Columns by their public names, in the order in which they are wanted; none for all
of them, as they are."""

StateName: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=limits.STATE_NAME_CHARACTERS)
]
"""What a requester calls something that stays at an owner."""

StateVersion: TypeAlias = Annotated[int, Meta(ge=0, le=2**62)]
"""A version of it, such as the number of a round."""

# --- arguments of operators -------------------------------------------------------


class Ref(Struct, frozen=True, tag="r", tag_field="t", gc=False):
    """An object that the worker holds for this session."""

    id: int


class Symbol(Struct, frozen=True, tag="s", tag_field="t", gc=False):
    """A torch constant by name: ``float32``, ``strided``, ``contiguous_format``."""

    name: Text


class Complex(Struct, frozen=True, tag="c", tag_field="t", gc=False):
    """A complex scalar."""

    real: float
    imag: float


class Inline(Struct, frozen=True, tag="i", tag_field="t"):
    """A small tensor that travels inside the header, row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: Annotated[bytes, Meta(max_length=limits.INLINE_BYTES)]

    def __post_init__(self) -> None:
        declared = nbytes(self.dtype, self.shape)
        if declared != len(self.data):
            raise ValueError(f"{declared:,} bytes are declared, not {len(self.data):,}")


class Here(Struct, frozen=True, tag="h", tag_field="t", gc=False):
    """The worker's device, whatever it is."""


Leaf: TypeAlias = (
    bool | int | float | Text | Ref | Symbol | Complex | Inline | Here | None
)
"""An argument that holds no others."""

Value: TypeAlias = Leaf | Annotated[list[Leaf], Meta(max_length=limits.LIST_ELEMENTS)]
"""An argument of an operator. No aten operator takes a deeper nesting."""


def refs(value: Value) -> Iterator[int]:
    """Yield the ids of the objects that an argument names."""
    if isinstance(value, Ref):
        yield value.id
    elif isinstance(value, list):
        yield from (leaf.id for leaf in value if isinstance(leaf, Ref))


class TensorData(Struct, frozen=True, array_like=True):
    """How to read one frame as a dense, row-major tensor."""

    dtype: str
    shape: tuple[int, ...]
    frame: int
    requires_grad: bool = False


class TensorSpec(Struct, frozen=True, array_like=True):
    """What a tensor looks like, without its values; strides in elements."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    requires_grad: bool


# --- requests inside a batch ------------------------------------------------------


class Request(Struct, frozen=True, array_like=True):
    """The base of what a batch is made of.

    Attributes:
        computes: whether it is refused to who has used up their time.
        writes: whether it may change a tensor.
        surveys: whether it looks at all that the session holds.
        bookkeeping: whether it says what names stand for, and no more. A client takes
            it for done when it makes it, so that it is carried out in a cancelled
            batch too.
        names: its fields that may stand in a log.
    """

    computes: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    surveys: ClassVar[bool] = False
    bookkeeping: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = ()

    def answered(self) -> bool:
        """Tell whether it is answered when it succeeds."""
        return False

    def reads(self) -> Iterable[int]:
        """Return the ids that must name objects; those it lets go of need not."""
        return ()

    def makes(self) -> Sequence[int]:
        """Return the ids that stand for its failure when it fails."""
        return ()


class Run(Request, frozen=True, tag="run"):
    """Run one forward operator.

    Attributes:
        op: the overload, such as ``aten.add.Tensor``.
        args: its arguments.
        kwargs: its arguments by name.
        out: the first result's id; ``NOWHERE`` to keep none.
        count: how many results the client expects; 0 where it does not know.
        grad: the client's grad mode.
        describe: answer what the results look like, or the value of an operator
            that yields no tensor.
        seed: of an operator that draws random numbers, what the worker's generator
            is seeded with before; None to go on where the last one ended.
    """

    op: Text
    args: Annotated[list[Value], Meta(max_length=limits.ARGUMENTS_PER_REQUEST)]
    kwargs: Annotated[dict[Text, Value], Meta(max_length=limits.ARGUMENTS_PER_REQUEST)]
    out: int
    count: Annotated[int, Meta(ge=0, le=limits.RESULTS_PER_REQUEST)]
    grad: bool
    describe: bool = False
    seed: Annotated[int, Meta(ge=0)] | None = None

    def answered(self) -> bool:
        """Tell whether its results are described."""
        return self.describe

    def reads(self) -> Iterable[int]:
        """Yield the ids of its arguments."""
        for value in (*self.args, *self.kwargs.values()):
            yield from refs(value)

    def makes(self) -> Sequence[int]:
        """Return the ids of its results."""
        return () if self.out == NOWHERE else range(self.out, self.out + self.count)


class Put(Request, frozen=True, tag="put"):
    """Hold a tensor that the client sends."""

    out: int
    data: TensorData
    tags: Tags = ()
    description: Text = ""

    def makes(self) -> Sequence[int]:
        """Return the id that it makes."""
        return (self.out,)


class Load(Request, frozen=True, tag="load"):
    """Hold part of one of the worker's data sets, and answer what it looks like.

    Attributes:
        dataset: its name.
        part: ``features``, ``target`` or what else it is made of.
        out: the id of the tensor, which is the session's own copy. With ``NOWHERE`` it
            is only answered what it would look like, also where the number of rows is
            hidden, for which another stands then.
        columns: which of its columns; none for all.
    """

    dataset: Text
    part: Text
    out: int
    columns: Columns = ()

    def answered(self) -> bool:
        """It is."""
        return True

    def makes(self) -> Sequence[int]:
        """Return the id that it makes, if any."""
        return () if self.out == NOWHERE else (self.out,)


class Fetch(Request, frozen=True, tag="fetch"):
    """Answer with a tensor's values."""

    id: int

    computes: ClassVar[bool] = False
    writes: ClassVar[bool] = False

    def answered(self) -> bool:
        """It is."""
        return True

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class Describe(Request, frozen=True, tag="describe"):
    """Answer with a tensor's specification."""

    id: int

    computes: ClassVar[bool] = False
    writes: ClassVar[bool] = False

    def answered(self) -> bool:
        """It is."""
        return True

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class Backward(Request, frozen=True, tag="backward"):
    """``torch.autograd.backward``: accumulate into the leaves, or into ``inputs``."""

    roots: tuple[int, ...]
    grads: tuple[int | None, ...]
    inputs: tuple[int, ...] | None
    retain_graph: bool
    create_graph: bool

    def reads(self) -> Iterable[int]:
        """Return roots, their gradients and inputs."""
        given = (id for id in self.grads if id is not None)
        return (*self.roots, *given, *(self.inputs or ()))


class Differentiate(Request, frozen=True, tag="differentiate"):
    """``torch.autograd.grad``: results take ids from ``out`` on, one an input.

    The answer describes them; an input that was not reached is described as
    nothing.
    """

    roots: tuple[int, ...]
    grads: tuple[int | None, ...]
    inputs: tuple[int, ...]
    out: int
    retain_graph: bool
    create_graph: bool

    def answered(self) -> bool:
        """It is."""
        return True

    def reads(self) -> Iterable[int]:
        """Return roots, their gradients and inputs."""
        given = (id for id in self.grads if id is not None)
        return (*self.roots, *given, *self.inputs)


class ReadGrad(Request, frozen=True, tag="grad"):
    """Name ``id.grad`` as ``out``; with ``describe`` answer what it looks like."""

    id: int
    out: int
    describe: bool = False

    def answered(self) -> bool:
        """Tell whether it is described."""
        return self.describe

    def makes(self) -> Sequence[int]:
        """Return the id that it makes."""
        return (self.out,)

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class WriteGrad(Request, frozen=True, tag="set_grad"):
    """``id.grad = grad``."""

    id: int
    grad: int | None

    bookkeeping: ClassVar[bool] = True

    def reads(self) -> Iterable[int]:
        """Return the tensor's id, and the gradient's if there is one."""
        return (self.id,) if self.grad is None else (self.id, self.grad)


class SetRequiresGrad(Request, frozen=True, tag="requires_grad"):
    """``id.requires_grad_(value)``."""

    id: int
    value: bool

    bookkeeping: ClassVar[bool] = True

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class RetainGrad(Request, frozen=True, tag="retain_grad"):
    """``id.retain_grad()``."""

    id: int

    bookkeeping: ClassVar[bool] = True

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class ReadData(Request, frozen=True, tag="data"):
    """Name ``id.data`` as ``out``."""

    id: int
    out: int

    bookkeeping: ClassVar[bool] = True

    def makes(self) -> Sequence[int]:
        """Return the id that it makes."""
        return (self.out,)

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class WriteData(Request, frozen=True, tag="set_data"):
    """``id.data = data``."""

    id: int
    data: int

    bookkeeping: ClassVar[bool] = True

    def reads(self) -> Iterable[int]:
        """Return the ids of both tensors."""
        return (self.id, self.data)


class Alias(Request, frozen=True, tag="alias"):
    """Name the same tensor object once more."""

    id: int
    out: int

    bookkeeping: ClassVar[bool] = True

    def makes(self) -> Sequence[int]:
        """Return the id that it makes."""
        return (self.out,)

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class Label(Request, frozen=True, tag="label"):
    """Add tags and a description; a tagged object stays when its names go."""

    id: int
    tags: Tags
    description: Text = ""

    bookkeeping: ClassVar[bool] = True

    def reads(self) -> Iterable[int]:
        """Return the id of the tensor."""
        return (self.id,)


class Find(Request, frozen=True, tag="find"):
    """Answer which objects of the session carry all the tags."""

    tags: Tags

    computes: ClassVar[bool] = False
    surveys: ClassVar[bool] = True
    writes: ClassVar[bool] = False

    def answered(self) -> bool:
        """It is."""
        return True


class Count(Request, frozen=True, tag="count"):
    """Answer how many objects the session holds."""

    computes: ClassVar[bool] = False
    surveys: ClassVar[bool] = True
    writes: ClassVar[bool] = False

    def answered(self) -> bool:
        """It is."""
        return True


class Clear(Request, frozen=True, tag="clear"):
    """Forget all that the session holds."""

    computes: ClassVar[bool] = False
    surveys: ClassVar[bool] = True
    bookkeeping: ClassVar[bool] = True


class Free(Request, frozen=True, tag="free"):
    """Forget these objects; ids that name nothing are passed over.

    Tagged objects stay, unless ``tagged``.
    """

    ids: tuple[int, ...]
    tagged: bool = False

    computes: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    bookkeeping: ClassVar[bool] = True


class Expect(Request, frozen=True, tag="expect"):
    """Let ``sender`` deliver these objects into the session, once."""

    ids: tuple[int, ...]
    sender: Text

    bookkeeping: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...]] = ("sender",)


class Move(Request, frozen=True, tag="move"):
    """Deliver objects straight to another worker, then forget them here.

    Attributes:
        ids: what moves.
        to: the worker that gets it, by id.
        session: the client's session there, which expects ``out``.
        out: the ids there, in the same order.
    """

    ids: Ids
    to: Text
    session: Text
    out: Ids

    names: ClassVar[tuple[str, ...]] = ("to", "session")

    def reads(self) -> Iterable[int]:
        """Return the ids of the objects."""
        return self.ids


class StoreState(Request, frozen=True, tag="store"):
    """Keep tensors' values at the worker, beyond the session.

    They take the place of what was stored under the same name and version. Of a name
    the two versions that were stored last stay. It is done once the worker has answered
    a ``ListState`` of a later batch.

    Attributes:
        name: the requester's own name for them.
        version: a number.
        ids: the tensors.
    """

    name: StateName
    version: StateVersion
    ids: Annotated[tuple[int, ...], Meta(min_length=1, max_length=limits.STATE_TENSORS)]

    computes: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = ("name",)

    def reads(self) -> Iterable[int]:
        """Return the ids of the tensors."""
        return self.ids


class RecallState(Request, frozen=True, tag="recall_state"):
    """Hold what was stored in an earlier batch, and answer what it looks like.

    Duty: name no result in the same batch.

    Attributes:
        name: as it was stored.
        version: likewise.
        out: the first tensor's id; as many ids are set aside as a version may have
            tensors.
    """

    name: StateName
    version: StateVersion
    out: int

    names: ClassVar[tuple[str, ...]] = ("name",)

    def answered(self) -> bool:
        """It is."""
        return True


class ListState(Request, frozen=True, tag="list_state"):
    """Answer which versions of a name are stored, once all earlier batches' are."""

    name: StateName

    computes: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = ("name",)

    def answered(self) -> bool:
        """It is."""
        return True


class Aggregate(Request, frozen=True, tag="aggregate"):
    """Combine tensors of one shape, element by element, and round once.

    Attributes:
        kind: ``sum``, or ``trimmed_mean``.
        ids: what is combined.
        trim: how many values a trimmed mean leaves out at each end.
        out: the result's id.
        weights: whole numbers that a sum multiplies by, one a tensor; none for 1.
        divisor: what a sum is divided by, from 1.
        dtype: a sum's dtype; empty for that of the first tensor. Whole numbers that
            were divided are rounded to the nearest.
    """

    kind: Text
    ids: Ids
    trim: int
    out: int
    weights: tuple[int, ...] = ()
    divisor: int = 1
    dtype: Text = ""

    def reads(self) -> Iterable[int]:
        """Return the ids of the objects."""
        return self.ids


Option: TypeAlias = bool | int | float | tuple[float, ...] | None
"""One of an optimizer's hyperparameters."""


class Stepping(Struct, frozen=True, array_like=True):
    """One of a program's optimizers, for one run.

    Attributes:
        id: what it keeps from run to run is kept under this; 0 for one that begins anew
            with each run.
        options: the hyperparameters of each parameter group, by name.
        later: other ones, and from which stage on: twice the epochs of all loops that
            are over, and one more inside of an epoch.
    """

    id: Annotated[int, Meta(ge=0)]
    options: tuple[dict[Text, Option], ...]
    later: tuple[tuple[int, tuple[dict[Text, Option], ...]], ...] = ()


class Define(Request, frozen=True, tag="define"):
    """Take in a program, which is called by its digest afterwards.

    Attributes:
        text: its text.
    """

    text: Annotated[str, Meta(max_length=limits.PROGRAM_CHARACTERS)]

    bookkeeping: ClassVar[bool] = True


class DatasetRows(Struct, frozen=True):
    """The rows of one of the worker's data sets, which need not be loaded.

    Attributes:
        dataset: its name.
        parts: the tensors of it that are gone through, in order.
        columns: of each of them which columns; none for all of all.
    """

    dataset: Text
    parts: Annotated[tuple[Text, ...], Meta(max_length=limits.PARTS_OF_ROWS)]
    columns: Annotated[tuple[Columns, ...], Meta(max_length=limits.PARTS_OF_ROWS)] = ()

    def __post_init__(self) -> None:
        if self.columns and len(self.columns) != len(self.parts):
            raise ValueError("columns are of each part, or of none")

    def each(self) -> Iterator[tuple[str, Columns]]:
        """Yield each part with its columns."""
        yield from zip(self.parts, self.columns or ((),) * len(self.parts), strict=True)


class Split(Struct, frozen=True, array_like=True):
    """A part of a data set's rows: those that are held out, or all others.

    Attributes:
        share: of the rows, how many are held out: rounded, from 0 to 1.
        seed: of which they are.
        held_out: whether these are meant, and not the others.
    """

    share: Annotated[float, Meta(ge=0, le=1)]
    seed: Annotated[int, Meta(ge=0)]
    held_out: bool


class RunProgram(Request, frozen=True, tag="program"):
    """Go through rows in batches, and do with each what a program says.

    For each of its results there are two tensors, float64: numerators, (epochs, ...),
    and denominators, (epochs,), each summed over the batches of an epoch. Of a number
    of steps there is one of each, (1, ...) and (1,).

    Attributes:
        program: its digest.
        inputs: its parameters and constants, in its order.
        rows: tensors of as many rows each, in its order, or a data set's. How many rows
            a data set has may be hidden: a last batch that is too small for the program
            is left out then.
        out: the first id of what it makes.
        count: how many there are.
        batch_size: rows of a batch; 0 for all.
        epochs: how often it goes through the rows.
        shuffle: whether in another order each time, which each worker draws for itself.
        drop_last: whether rows that fill no batch are left out.
        seed: of what is drawn.
        optimizers: the program's, in its order.
        split: which of the rows it goes through; None for all. Of a part without rows
            a step's results are 0.
        steps: how many batches it goes through, over and over again; 0 for so many
            epochs.
    """

    program: Text
    inputs: Ids
    rows: Ids | DatasetRows
    out: int
    count: Annotated[int, Meta(ge=0, le=limits.RESULTS_PER_REQUEST)]
    batch_size: Annotated[int, Meta(ge=0)] = 0
    epochs: Annotated[int, Meta(ge=1, le=limits.EPOCHS)] = 1
    shuffle: bool = False
    drop_last: bool = False
    seed: Annotated[int, Meta(ge=0)] = 0
    optimizers: tuple[Stepping, ...] = ()
    split: Split | None = None
    steps: Annotated[int, Meta(ge=0, le=limits.STEPS)] = 0

    def reads(self) -> Iterable[int]:
        """Yield the ids of its inputs and rows."""
        yield from self.inputs
        if not isinstance(self.rows, DatasetRows):
            yield from self.rows

    def makes(self) -> Sequence[int]:
        """Return the ids of its results."""
        return range(self.out, self.out + self.count)


AnyRequest: TypeAlias = (
    Run
    | Put
    | Load
    | Fetch
    | Describe
    | Backward
    | Differentiate
    | ReadGrad
    | WriteGrad
    | SetRequiresGrad
    | RetainGrad
    | ReadData
    | WriteData
    | Alias
    | Label
    | Find
    | Count
    | Clear
    | Free
    | Expect
    | Move
    | StoreState
    | RecallState
    | ListState
    | Aggregate
    | Define
    | RunProgram
)

# --- answers inside results -------------------------------------------------------


class Answer(Struct, frozen=True, array_like=True):
    """The base of what a worker answers; ``index`` is the request's place."""

    index: int


class Fetched(Answer, frozen=True, tag="fetched"):
    """A tensor's values.

    ``nonfinite`` is how many of the contributions that were added up had values that
    could not be used, which counted as 0; of anything else it is 0.
    """

    data: TensorData
    nonfinite: int = 0


class Described(Answer, frozen=True, tag="described"):
    """What results look like, in order; ``None`` where there is no tensor.

    ``sequence`` says that the operator returned a list or a tuple.
    """

    specs: tuple[TensorSpec | None, ...]
    sequence: bool = False


class Returned(Answer, frozen=True, tag="returned"):
    """What an operator returned that yields no tensor."""

    value: Value


class Found(Answer, frozen=True, tag="found"):
    """Objects by id, each with its specification, tags and description."""

    objects: tuple[tuple[int, TensorSpec, tuple[str, ...], str], ...]


class Counted(Answer, frozen=True, tag="counted"):
    """How many objects the session holds."""

    count: int


class Versions(Answer, frozen=True, tag="versions"):
    """Which versions of a name are stored, the one that was stored last at the end."""

    versions: tuple[int, ...]


class Failed(Answer, frozen=True, tag="failed"):
    """A request that failed, or that needed the result of one that did.

    Attributes:
        batch: number of the batch of the request that failed first.
        origin: index of that request in its batch.
        kind: the name of the error's class in ``obhut.errors``.
        op: the operator or request.
        text: what went wrong; behind a guard, nothing about values.
        facts: numbers that belong to the kind.
    """

    batch: int
    origin: int
    kind: str
    op: str
    text: str
    facts: tuple[int, ...] = ()


AnyAnswer: TypeAlias = (
    Fetched | Described | Returned | Found | Counted | Versions | Failed
)


# --- messages ---------------------------------------------------------------------


class Message(Struct, frozen=True, array_like=True):
    """The base of what travels alone.

    Attributes:
        names: its fields that may stand in a log.
    """

    names: ClassVar[tuple[str, ...]] = ()


class Open(Message, frozen=True, tag="open"):
    """Begin or resume a session."""

    session: Text
    protocol: int
    torch: Text

    names: ClassVar[tuple[str, ...]] = ("session", "torch")


class Batch(Message, frozen=True, tag="batch"):
    """Requests, in order.

    Numbers count up by one from 1; a repeated number is the same batch sent again
    and is applied once. ``default_dtype`` is the client's, which decides what some
    operators make of whole numbers. A batch that is ``cancelled`` computes no more: of
    its requests that were not begun, only bookkeeping is carried out.
    """

    session: Text
    number: int
    requests: Annotated[
        tuple[AnyRequest, ...], Meta(max_length=limits.REQUESTS_PER_BATCH)
    ]
    default_dtype: str = "float32"
    cancelled: bool = False

    names: ClassVar[tuple[str, ...]] = ("session",)


class Cancel(Message, frozen=True, tag="cancel"):
    """Do no more of a batch, nor of those before it; it may overtake them.

    Duty: let the next batch be one that is ``cancelled``, since a number whose batch
    was refused is used again.
    """

    session: Text
    number: int

    names: ClassVar[tuple[str, ...]] = ("session",)


class Watch(Message, frozen=True, tag="watch"):
    """Ask how much of a batch is done; it may overtake it, and waits for nothing."""

    session: Text
    number: int

    names: ClassVar[tuple[str, ...]] = ("session",)


class Deliver(Message, frozen=True, tag="deliver"):
    """Objects from another worker, for a session that expects them.

    Without frames it is the header of a delivery, which is accepted or refused; the
    same message with frames follows, or with ``spoilt``. It may come with its frames
    at once.

    Attributes:
        session: the session there.
        ids: the ids there.
        tensors: how the frames are read.
        policy: the sender's, encoded, which whoever receives this must obey; empty if
            the sender has none.
        seen: of a header, how many entries the sender knows of the record of releases
            there: what accepts it is then ``Recalled``.
        spoilt: that the bytes of a header that was accepted will not come.
        digests: how each tensor was made, of an owner whose policy asks for it.
    """

    session: Text
    ids: Ids
    tensors: tuple[TensorData, ...]
    policy: Annotated[bytes, Meta(max_length=limits.POLICY_BYTES)] = b""
    seen: int | None = None
    spoilt: bool = False
    digests: Digests = ()

    names: ClassVar[tuple[str, ...]] = ("session",)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of each frame."""
        return tuple(nbytes(data.dtype, data.shape) for data in self.tensors)


class Recall(Message, frozen=True, tag="recall"):
    """An owner asks an aggregator about its record of releases.

    Attributes:
        number: how many entries it had when the owner last saw it; 0 for its beginning.
    """

    number: int


class ReleaseQuestion(Message, frozen=True, tag="release"):
    """What an aggregator's session asks its own guard: may this leave?

    It never comes from outside.

    Attributes:
        kind: how the contributions are combined.
        terms: owner, key, numerator and denominator of each contribution.
        policies: each owner's policy, encoded, by owner.
        digests: how each contribution was made, in the same order; empty where that is
            not known.
    """

    kind: str
    terms: tuple[tuple[str, str, int, int], ...]
    policies: tuple[tuple[str, bytes], ...]
    digests: tuple[bytes, ...] = ()


class State(Message, frozen=True, tag="state"):
    """What a session lets its own worker store: a delivery to itself.

    It never comes from outside.

    Attributes:
        name: what the requester calls it.
        version: its number.
        tensors: how the frames are read.
        spoilt: that its values are missing, so that zeros stand for them.
        digests: how each tensor was made, of an owner whose policy asks for it.
    """

    name: StateName
    version: StateVersion
    tensors: Annotated[
        tuple[TensorData, ...], Meta(min_length=1, max_length=limits.STATE_TENSORS)
    ]
    spoilt: bool = False
    digests: Digests = ()

    names: ClassVar[tuple[str, ...]] = ("name",)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of each frame."""
        return tuple(nbytes(data.dtype, data.shape) for data in self.tensors)


class StateQuestion(Message, frozen=True, tag="state_question"):
    """What a session asks its own worker: what is stored? It never comes from outside.

    Attributes:
        name: what the requester calls it.
        version: the one that is wanted; None for a list of those that there are.
    """

    name: StateName
    version: StateVersion | None

    names: ClassVar[tuple[str, ...]] = ("name",)


class StateAnswer(Message, frozen=True, tag="state_answer"):
    """What a worker tells its own session, and nobody else, of what is stored.

    Attributes:
        session: the session that asked.
        index: the place of its request in its batch.
        tensors: how the frames are read, of what was wanted.
        digests: how each of them was made; empty where that is not known.
        versions: those that there are, of a list.
    """

    session: Text
    index: int
    tensors: Annotated[
        tuple[TensorData, ...], Meta(max_length=limits.STATE_TENSORS)
    ] = ()
    digests: Digests = ()
    versions: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The bytes of each frame."""
        return tuple(nbytes(data.dtype, data.shape) for data in self.tensors)


class Close(Message, frozen=True, tag="close"):
    """End a session and forget what it holds."""

    session: Text

    names: ClassVar[tuple[str, ...]] = ("session",)


class Welcome(Message, frozen=True, tag="welcome"):
    """The session is open.

    ``applied`` is the last batch that was applied, ``guarded`` whether the data there
    is behind a guard, so that no value of it can be read.
    """

    applied: int
    guarded: bool = False


class Results(Message, frozen=True, tag="results"):
    """What a batch answers.

    Requests that succeeded and were asked nothing do not appear. From the index
    ``cut`` on nothing was computed, since the batch was cancelled.
    """

    number: int
    answers: tuple[AnyAnswer, ...]
    cut: int | None = None


class Progress(Message, frozen=True, tag="progress"):
    """How much of a batch is done.

    Attributes:
        thousandths: of the batches of rows that its programs go through; None if the
            worker keeps that, as it does under a policy.
    """

    thousandths: Annotated[int, Meta(ge=0, le=1000)] | None


class Done(Message, frozen=True, tag="done"):
    """A delivery was accepted, or a session closed."""


class Recalled(Message, frozen=True, tag="recalled"):
    """How far an aggregator's record of releases has come.

    Attributes:
        number: how many entries it has.
        hash: the last one's.
        then: the hash with as many entries as were asked about; empty if it has fewer.
    """

    number: int
    hash: str
    then: str

    names: ClassVar[tuple[str, ...]] = ("hash", "then")


class Refused(Message, frozen=True, tag="refused"):
    """The message as a whole was not accepted."""

    kind: str
    text: str


AnyMessage: TypeAlias = (
    Open
    | Batch
    | Cancel
    | Watch
    | Deliver
    | Recall
    | ReleaseQuestion
    | State
    | StateQuestion
    | StateAnswer
    | Close
    | Welcome
    | Results
    | Progress
    | Done
    | Recalled
    | Refused
)
