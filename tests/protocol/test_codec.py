"""Bytes to messages and back, the limits, and what an attacker may send."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from obhut.errors import CallError, LimitError, RemoteProtocolError
from obhut.protocol import codec, limits, messages
from obhut.protocol.dtypes import ITEM_BYTES
from obhut.protocol.messages import (
    Batch,
    Deliver,
    Fetched,
    Inline,
    Label,
    Open,
    Put,
    Results,
    Run,
    Symbol,
    TensorData,
)

# --- strategies: every class of message, well-formed --------------------------------

ids = st.integers(0, 2**63 - 1)
names = st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
)  # no lone surrogates: they have no bytes
printed = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=12)
state_names = st.text(
    st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12
)
versions = st.integers(0, 2**62)
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
dtypes = st.sampled_from(sorted(ITEM_BYTES))
floats = st.floats(allow_nan=False)


@st.composite
def inlines(draw: st.DrawFn) -> Inline:
    """Make small tensors with the bytes that they declare."""
    dtype, shape = draw(dtypes), draw(shapes)
    size = ITEM_BYTES[dtype] * math.prod(shape)
    return Inline(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | floats
    | names
    | st.builds(messages.Ref, ids)
    | st.builds(Symbol, names)
    | st.builds(messages.Complex, floats, floats)
    | inlines()
    | st.builds(messages.Here)
)
values = leaves | st.lists(leaves, max_size=4)
id_tuples = st.lists(ids, max_size=3).map(tuple)
maybe_ids = st.lists(st.none() | ids, max_size=3).map(tuple)
tags = st.lists(names, max_size=3).map(tuple)
data = st.builds(TensorData, dtypes, shapes, st.just(0), st.booleans())
specs = st.builds(
    messages.TensorSpec, dtypes, shapes, shapes, st.integers(0, 9), st.booleans()
)

options = st.lists(
    st.dictionaries(
        names,
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | floats
        | st.lists(floats, max_size=2).map(tuple),
        max_size=2,
    ),
    max_size=2,
).map(tuple)
laters = st.lists(st.tuples(ids, options), max_size=2).map(tuple)
chosen = st.lists(names, max_size=3).map(tuple)
rows = st.lists(st.tuples(names, chosen), max_size=3).flatmap(
    lambda parts: st.builds(
        messages.DatasetRows,
        names,
        st.just(tuple(part for part, _ in parts)),
        st.sampled_from([(), tuple(columns for _, columns in parts)]),
    )
)
REQUESTS: dict[type, st.SearchStrategy[Any]] = {
    Run: st.builds(
        Run,
        names,
        st.lists(values, max_size=4),
        st.dictionaries(names, values, max_size=3),
        ids,
        st.integers(0, limits.RESULTS_PER_REQUEST),
        st.booleans(),
        st.booleans(),
    ),
    Put: st.builds(Put, ids, data, tags, names),
    messages.Load: st.builds(messages.Load, names, names, ids, chosen),
    messages.Fetch: st.builds(messages.Fetch, ids),
    messages.Describe: st.builds(messages.Describe, ids),
    messages.Backward: st.builds(
        messages.Backward,
        id_tuples,
        maybe_ids,
        st.none() | id_tuples,
        st.booleans(),
        st.booleans(),
    ),
    messages.Differentiate: st.builds(
        messages.Differentiate,
        id_tuples,
        maybe_ids,
        id_tuples,
        ids,
        st.booleans(),
        st.booleans(),
    ),
    messages.ReadGrad: st.builds(messages.ReadGrad, ids, ids, st.booleans()),
    messages.WriteGrad: st.builds(messages.WriteGrad, ids, st.none() | ids),
    messages.SetRequiresGrad: st.builds(messages.SetRequiresGrad, ids, st.booleans()),
    messages.RetainGrad: st.builds(messages.RetainGrad, ids),
    messages.ReadData: st.builds(messages.ReadData, ids, ids),
    messages.WriteData: st.builds(messages.WriteData, ids, ids),
    messages.Alias: st.builds(messages.Alias, ids, ids),
    messages.Define: st.builds(messages.Define, printed),
    messages.RunProgram: st.builds(
        messages.RunProgram,
        names,
        id_tuples,
        id_tuples | rows,
        ids,
        st.integers(0, limits.RESULTS_PER_REQUEST),
        ids,
        st.integers(1, limits.EPOCHS),
        st.booleans(),
        st.booleans(),
        ids,
        st.lists(st.builds(messages.Stepping, ids, options, laters), max_size=2).map(
            tuple
        ),
        st.none() | st.builds(messages.Split, st.floats(0, 1), ids, st.booleans()),
        st.integers(0, limits.STEPS),
    ),
    Label: st.builds(Label, ids, tags, names),
    messages.Find: st.builds(messages.Find, tags),
    messages.Count: st.builds(messages.Count),
    messages.Clear: st.builds(messages.Clear),
    messages.Free: st.builds(messages.Free, id_tuples, st.booleans()),
    messages.Expect: st.builds(messages.Expect, id_tuples, printed),
    messages.Move: st.builds(messages.Move, id_tuples, printed, printed, id_tuples),
    messages.StoreState: st.builds(
        messages.StoreState,
        state_names,
        versions,
        st.lists(ids, min_size=1, max_size=3).map(tuple),
    ),
    messages.RecallState: st.builds(messages.RecallState, state_names, versions, ids),
    messages.ListState: st.builds(messages.ListState, state_names),
    messages.Aggregate: st.builds(messages.Aggregate, names, id_tuples, ids, ids),
}
ANSWERS: dict[type, st.SearchStrategy[Any]] = {
    Fetched: st.builds(Fetched, ids, data, ids),
    messages.Described: st.builds(
        messages.Described,
        ids,
        st.lists(st.none() | specs, max_size=3).map(tuple),
        st.booleans(),
    ),
    messages.Returned: st.builds(messages.Returned, ids, values),
    messages.Found: st.builds(
        messages.Found,
        ids,
        st.lists(st.tuples(ids, specs, tags, names), max_size=2).map(tuple),
    ),
    messages.Counted: st.builds(messages.Counted, ids, ids),
    messages.Versions: st.builds(messages.Versions, ids, id_tuples),
    messages.Failed: st.builds(
        messages.Failed, ids, ids, ids, names, names, names, id_tuples
    ),
}
MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    Open: st.builds(Open, printed, ids, printed),
    Batch: st.builds(
        Batch,
        printed,
        ids,
        st.lists(st.one_of(REQUESTS.values()), max_size=6).map(tuple),
    ),
    Deliver: st.lists(st.tuples(ids, data), max_size=3).flatmap(
        lambda pairs: st.builds(
            Deliver,
            printed,
            st.just(tuple(id for id, _ in pairs)),
            st.just(tuple(one for _, one in pairs)),
            st.binary(max_size=40),
        )
    ),
    messages.Recall: st.builds(messages.Recall, ids),
    messages.Recalled: st.builds(messages.Recalled, ids, printed, printed),
    messages.ReleaseQuestion: st.builds(
        messages.ReleaseQuestion,
        names,
        st.lists(st.tuples(names, names, ids, ids), max_size=3).map(tuple),
        st.lists(st.tuples(names, st.binary(max_size=40)), max_size=3).map(tuple),
    ),
    messages.State: st.builds(
        messages.State,
        state_names,
        versions,
        st.lists(data, min_size=1, max_size=3).map(tuple),
        st.booleans(),
        st.lists(st.binary(max_size=32), max_size=2).map(tuple),
    ),
    messages.StateQuestion: st.builds(
        messages.StateQuestion, state_names, st.none() | versions
    ),
    messages.StateAnswer: st.builds(
        messages.StateAnswer,
        printed,
        ids,
        st.lists(data, max_size=3).map(tuple),
        st.lists(st.binary(max_size=32), max_size=2).map(tuple),
        id_tuples,
    ),
    messages.Close: st.builds(messages.Close, printed),
    messages.Cancel: st.builds(messages.Cancel, printed, ids),
    messages.Watch: st.builds(messages.Watch, printed, ids),
    messages.Progress: st.builds(messages.Progress, st.none() | st.integers(0, 1_000)),
    messages.Welcome: st.builds(messages.Welcome, ids),
    Results: st.builds(
        Results, ids, st.lists(st.one_of(ANSWERS.values()), max_size=6).map(tuple)
    ),
    messages.Done: st.builds(messages.Done),
    messages.Refused: st.builds(messages.Refused, names, names),
}


def framed(message: Any) -> tuple[Any, list[bytes]]:
    """Return the message with its frames numbered, and frames that fit."""
    frames: list[bytes] = []

    def numbered(one: TensorData) -> TensorData:
        frames.append(bytes(codec.nbytes(one.dtype, one.shape)))
        return msgspec.structs.replace(one, frame=len(frames) - 1)

    def rewritten(parts: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(
            msgspec.structs.replace(part, data=numbered(part.data))
            if isinstance(part, Put | Fetched)
            else part
            for part in parts
        )

    match message:
        case Batch():
            parts = rewritten(message.requests)
            return msgspec.structs.replace(message, requests=parts), frames
        case Results():
            parts = rewritten(message.answers)
            return msgspec.structs.replace(message, answers=parts), frames
        case Deliver() | messages.State() | messages.StateAnswer():
            tensors = tuple(map(numbered, message.tensors))
            return msgspec.structs.replace(message, tensors=tensors), frames
    return message, frames


def members(union: Any) -> set[type]:
    """Return the classes of a union."""
    return set(union.__args__)


def test_every_class_of_message_has_a_strategy() -> None:
    """The tables above leave out no request, no answer and no message."""
    assert set(REQUESTS) == members(messages.AnyRequest)
    assert set(ANSWERS) == members(messages.AnyAnswer)
    assert set(MESSAGES) == members(messages.AnyMessage)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_a_message_comes_back_as_it_went(kind: type) -> None:
    """Encoding and decoding give an equal message, of each class."""

    @given(MESSAGES[kind].map(framed))
    @settings(max_examples=40, deadline=None)
    def check(pair: tuple[Any, list[bytes]]) -> None:
        message, frames = pair
        assert codec.decode(codec.encode(message), frames) == message

    check()


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
def test_a_request_comes_back_as_it_went(kind: type) -> None:
    """Encoding and decoding a batch of one gives an equal request, of each class."""

    @given(REQUESTS[kind].map(lambda one: framed(Batch("s", 1, (one,)))))
    @settings(max_examples=25, deadline=None)
    def check(pair: tuple[Any, list[bytes]]) -> None:
        message, frames = pair
        assert codec.decode(codec.encode(message), frames) == message

    check()


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_an_answer_comes_back_as_it_went(kind: type) -> None:
    """Encoding and decoding results with one answer gives an equal one, of each."""

    @given(ANSWERS[kind].map(lambda one: framed(Results(1, (one,)))))
    @settings(max_examples=25, deadline=None)
    def check(pair: tuple[Any, list[bytes]]) -> None:
        message, frames = pair
        assert codec.decode(codec.encode(message), frames) == message

    check()


def test_nan_and_infinities_travel() -> None:
    """Floats that are no numbers come back as they went."""
    args: list[Any] = [math.nan, math.inf, -math.inf, -0.0]
    sent = Batch("s", 1, (Run("aten.x", args, {}, 1, 1, True),))
    back = codec.decode(codec.encode(sent))
    assert isinstance(back, Batch)
    (run,) = back.requests
    assert isinstance(run, Run)
    nan, inf, minus, zero = run.args
    assert isinstance(nan, float)
    assert math.isnan(nan)
    assert (inf, minus) == (math.inf, -math.inf)
    assert isinstance(zero, float)
    assert math.copysign(1, zero) == -1


# --- hostile bytes ------------------------------------------------------------------


def survives(header: bytes, frames: list[bytes]) -> None:
    """Check that bytes decode to a message or are refused by name."""
    try:
        message = codec.decode(header, frames)
    except RemoteProtocolError:
        return
    assert type(message) in members(messages.AnyMessage)


@given(st.binary(max_size=300), st.lists(st.binary(max_size=16), max_size=2))
@example(b"", [])
@example(b"\xc1", [])
@example(b"\xdf\xff\xff\xff\xff", [])
@settings(max_examples=400, deadline=None)
def test_any_bytes_decode_or_are_refused(header: bytes, frames: list[bytes]) -> None:
    """Random bytes raise RemoteProtocolError and nothing else."""
    survives(header, frames)


@given(st.one_of(MESSAGES.values()).map(framed), st.data())
@settings(max_examples=400, deadline=None)
def test_any_change_to_a_message_decodes_or_is_refused(
    pair: tuple[Any, list[bytes]], draw: st.DataObject
) -> None:
    """A message with bytes flipped, cut, doubled or removed raises nothing else."""
    message, frames = pair
    header = bytearray(codec.encode(message))
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(header) - 1)) if header else 0
        match draw.draw(st.sampled_from(["set", "cut", "insert", "drop"])):
            case "set" if header:
                header[at] = draw.draw(st.integers(0, 255))
            case "cut":
                del header[at:]
            case "insert":
                header[at:at] = draw.draw(st.binary(max_size=5))
            case _:
                del header[at : at + 1]
    survives(bytes(header), frames)


@given(st.recursive(leaves.map(msgspec.to_builtins), st.lists, max_leaves=20))
@settings(max_examples=200, deadline=None)
def test_any_well_formed_msgpack_decodes_or_is_refused(value: object) -> None:
    """Bytes that are sound msgpack but no message raise nothing else."""
    survives(msgspec.msgpack.encode(value), [])
    survives(msgspec.msgpack.encode(["batch", "s", 1, [["run", "aten.x", value]]]), [])


@pytest.mark.parametrize("depth", [2, 1_000, 1_000_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """Lists inside lists exhaust no stack, wherever they stand."""
    deep = b"\x91" * depth + b"\xc0"
    for header in (
        deep,
        b"\x94\xa5batch\xa1s\x01\x91\x97\xa3run\xa1a\x91" + deep + b"\x80\x01\x01\xc3",
    ):
        with pytest.raises(RemoteProtocolError):
            codec.decode(header)


def test_a_list_declared_too_long_allocates_nothing() -> None:
    """A header that announces four billion items is refused at once."""
    with pytest.raises(RemoteProtocolError):
        codec.decode(b"\x94\xa5batch\xa1s\x01\xdd\xff\xff\xff\xff")


def test_no_class_outside_the_table_can_come_out() -> None:
    """A tag that no message has is refused, as is an extension type."""
    for header in (
        msgspec.msgpack.encode(["os.system", "ls"]),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"x")),
        msgspec.msgpack.encode(
            ["batch", "s", 1, [["run", "a", [msgspec.msgpack.Ext(1, b"x")], {}, 1, 1]]]
        ),
    ):
        with pytest.raises(RemoteProtocolError):
            codec.decode(header)


# --- the limits ---------------------------------------------------------------------


class Forged(msgspec.Struct, tag="i", tag_field="t"):
    """What says that it is an inline tensor; nobody has looked at it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def run(*args: Any, **fields: Any) -> Run:
    """Return a request to run an operator."""
    known: dict[str, Any] = {"op": "aten.x", "kwargs": {}, "out": 1, "count": 1}
    return Run(args=list(args), grad=True, **{**known, **fields})


def batch(*requests: Any) -> Batch:
    """Return a batch."""
    return Batch("s", 1, requests)


def refused(message: Any, frames: Iterable[bytes] = ()) -> str:
    """Return the words with which a message is refused by its receiver."""
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode(msgspec.msgpack.encode(message), tuple(frames))
    return str(caught.value)


LIMITS: list[tuple[str, Callable[[int], Any], int]] = [
    (
        "REQUESTS_PER_BATCH",
        lambda n: Batch("s", 1, (messages.Count(),) * n),
        limits.REQUESTS_PER_BATCH,
    ),
    (
        "ARGUMENTS_PER_REQUEST",
        lambda n: batch(run(*[None] * n)),
        limits.ARGUMENTS_PER_REQUEST,
    ),
    (
        "ARGUMENTS_PER_REQUEST by name",
        lambda n: batch(run(kwargs={f"a{k}": None for k in range(n)})),
        limits.ARGUMENTS_PER_REQUEST,
    ),
    (
        "LIST_ELEMENTS",
        lambda n: batch(run([None] * n)),
        limits.LIST_ELEMENTS,
    ),
    (
        "LIST_ELEMENTS by name",
        lambda n: batch(run(kwargs={"a": [None] * n})),
        limits.LIST_ELEMENTS,
    ),
    ("TAGS", lambda n: batch(Label(1, ("a",) * n)), limits.TAGS),
    ("TAGS in a search", lambda n: batch(messages.Find(("a",) * n)), limits.TAGS),
    (
        "DIMENSIONS of an inline tensor",
        lambda n: batch(run(Forged("uint8", (1,) * n, b"x"))),
        limits.DIMENSIONS,
    ),
    (
        "INLINE_BYTES",
        lambda n: batch(run(Forged("uint8", (n,), bytes(n)))),
        limits.INLINE_BYTES,
    ),
    (
        "INLINE_BYTES in a list",
        lambda n: batch(run([None, Forged("uint8", (n,), bytes(n))])),
        limits.INLINE_BYTES,
    ),
    (
        "INLINE_BYTES by name",
        lambda n: batch(run(kwargs={"a": Forged("uint8", (n,), bytes(n))})),
        limits.INLINE_BYTES,
    ),
    (
        "RESULTS_PER_REQUEST",
        lambda n: batch(run(count=n)),
        limits.RESULTS_PER_REQUEST,
    ),
    (
        "TEXT_CHARACTERS of an operator",
        lambda n: batch(run(op="x" * n)),
        limits.TEXT_CHARACTERS,
    ),
]


@pytest.mark.parametrize(
    ("make", "limit"),
    [(make, limit) for _, make, limit in LIMITS],
    ids=[name for name, _, _ in LIMITS],
)
def test_a_limit_holds(make: Callable[[int], Any], limit: int) -> None:
    """As much as the limit says is taken, one more is refused."""
    codec.decode(codec.encode(make(limit)))
    refused(make(limit + 1))


def test_the_dimensions_of_a_frame_are_limited() -> None:
    """As many dimensions as PyTorch has are taken, one more is refused."""
    for count in (limits.DIMENSIONS, limits.DIMENSIONS + 1):
        message = batch(Put(1, TensorData("uint8", (1,) * count, 0)))
        if count <= limits.DIMENSIONS:
            codec.decode(codec.encode(message), [b"x"])
        else:
            assert "64 sizes" in refused(message, [b"x"])


def test_a_long_header_is_neither_sent_nor_read() -> None:
    """One byte more than HEADER_BYTES is a LimitError here, an offence there."""
    size = limits.HEADER_BYTES
    with pytest.raises(LimitError, match="send large tensors instead"):
        codec.encode(Open("x" * size, 1, ""))
    with pytest.raises(RemoteProtocolError, match="header of at most"):
        codec.decode(bytes(size + 1))


@pytest.mark.parametrize(
    "message",
    [batch(Label(1, ("\ud800",))), batch(run(2**64)), batch(run(-(2**63) - 1))],
    ids=["half a surrogate pair", "a large integer", "a small integer"],
)
def test_what_has_no_bytes_is_refused_by_name(message: Any) -> None:
    """Text and numbers that can not be written are the caller's error."""
    with pytest.raises(CallError, match="can not be written"):
        codec.encode(message)


@pytest.mark.parametrize("count", [-1, -(2**63)])
def test_a_negative_count_is_refused(count: int) -> None:
    """An operator can not be asked for fewer than no results."""
    refused(batch(run(count=count)))


def test_a_seed_fits_a_generator():
    """The largest is taken; one that is negative or larger is refused."""
    largest = batch(run(seed=2**64 - 1))
    assert codec.decode(codec.encode(largest)) == largest
    refused(batch(run(seed=-1)))


# --- frames -------------------------------------------------------------------------

ONE = TensorData("float32", (2,), 0)
TWO = TensorData("int8", (3,), 1)


@pytest.mark.parametrize(
    ("tensors", "frames"),
    [
        ([ONE], []),
        ([ONE], [bytes(7)]),
        ([ONE], [bytes(9)]),
        ([ONE], [bytes(8), b""]),
        ([TWO], [bytes(3)]),
        ([ONE, ONE], [bytes(8)]),
        ([ONE, ONE], [bytes(8), bytes(8)]),
        ([TWO, ONE], [bytes(8), bytes(3)]),
        ([ONE, TWO], [bytes(3), bytes(8)]),
        ([], [bytes(8)]),
        ([TensorData("float32", (2,), -1)], [bytes(8)]),
        ([TensorData("float32", (-2,), 0)], [bytes(8)]),
        ([TensorData("float32", (-1, -2), 0)], [bytes(8)]),
        ([TensorData("float99", (2,), 0)], [bytes(8)]),
        ([TensorData("object", (2,), 0)], [bytes(8)]),
        ([TensorData("__class__", (2,), 0)], [bytes(8)]),
        ([TensorData("uint8", (2**62,), 0)], [bytes(8)]),
        ([TensorData("uint8", (2**32, 2**32, 2**32), 0)], [bytes(8)]),
    ],
)
def test_frames_must_be_what_the_message_says(
    tensors: list[TensorData], frames: list[bytes]
) -> None:
    """Each frame is read by one declaration, in order, with its exact length."""
    refused(batch(*(Put(k + 1, one) for k, one in enumerate(tensors))), frames)
    refused(Results(1, tuple(Fetched(k, one) for k, one in enumerate(tensors))), frames)
    delivery = Deliver("s", tuple(range(len(tensors))), tuple(tensors))
    if frames:  # without, it is the header of a delivery
        refused(delivery, frames)


def test_the_header_of_a_delivery_has_its_frames_to_come() -> None:
    """Without frames it is checked by itself: their order, dtypes and sizes."""
    header = Deliver("s", (1, 2), (ONE, TensorData("int8", (3,), 1)))
    assert codec.decode(codec.encode(header)) == header
    assert header.sizes == (8, 3)
    refused(Deliver("s", (1,), (ONE, TWO)))
    refused(Deliver("s", (1, 2), (ONE, ONE)))
    refused(Deliver("s", (1,), (TWO,)))
    refused(Deliver("s", (1,), (TensorData("object", (2,), 0),)))
    refused(Deliver("s", (1,), (TensorData("uint8", (2**62, 2**62), 0),)))


def test_a_message_without_tensors_takes_no_frames() -> None:
    """Bytes that nothing reads are refused with every other message."""
    assert "names 0" in refused(Open("s", 1, "2.13"), [b"x"])


def test_a_delivery_names_one_id_a_tensor() -> None:
    """More ids than tensors, or fewer, are refused."""
    refused(Deliver("s", (1, 2), (ONE,)), [bytes(8)])
    refused(Deliver("s", (), (ONE,)), [bytes(8)])


@pytest.mark.parametrize(
    "inline",
    [
        Forged("float32", (2,), bytes(7)),
        Forged("float32", (), bytes(5)),
        Forged("float32", (-1,), b""),
        Forged("nonsense", (1,), b"x"),
    ],
)
def test_an_inline_tensor_has_the_bytes_it_declares(inline: Forged) -> None:
    """What does not fit is refused, alone or in a list."""
    refused(batch(run(inline)))
    refused(batch(run([inline])))


@pytest.mark.parametrize(
    "shape", [(2**63, 0), (0, 2**64 - 1), (2**40, 2**40, 0), (0, 2**62, 4)]
)
def test_a_size_beyond_what_a_tensor_can_have_is_refused(
    shape: tuple[int, ...],
) -> None:
    """An empty tensor does not smuggle in sizes that overflow."""
    refused(batch(Put(1, TensorData("uint8", shape, 0))), [b""])
    refused(Deliver("s", (1,), (TensorData("uint8", shape, 0),)), [b""])


@pytest.mark.parametrize(
    "message",
    [
        Open("x" * (limits.TEXT_CHARACTERS + 1), 1, "2.13"),
        batch(Label(1, ("x" * (limits.TEXT_CHARACTERS + 1),))),
        batch(Label(1, (), "x" * (limits.TEXT_CHARACTERS + 1))),
        batch(messages.Find(("x" * (limits.TEXT_CHARACTERS + 1),))),
        batch(messages.Load("x" * (limits.TEXT_CHARACTERS + 1), "features", 1)),
        batch(messages.Load("d", "x" * (limits.TEXT_CHARACTERS + 1), 1)),
        batch(messages.Expect((1,), "x" * (limits.TEXT_CHARACTERS + 1))),
        batch(messages.Move((1,), "x" * (limits.TEXT_CHARACTERS + 1), "s", (1,))),
        batch(messages.Move((1,), "a", "x" * (limits.TEXT_CHARACTERS + 1), (1,))),
        batch(run(Symbol("x" * (limits.TEXT_CHARACTERS + 1)))),
        batch(run("x" * (limits.TEXT_CHARACTERS + 1))),
        batch(run(kwargs={"x" * (limits.TEXT_CHARACTERS + 1): 1})),
    ],
    ids=[
        "session",
        "tag",
        "description",
        "searched tag",
        "data set",
        "part",
        "sender",
        "receiver",
        "receiving session",
        "symbol",
        "text argument",
        "argument's name",
    ],
)
def test_a_long_text_is_refused(message: Any) -> None:
    """No name that a receiver would keep or look up may be longer than the limit."""
    refused(message)


@pytest.mark.parametrize(
    "forged", ["s\n2026-01-01 INFO all is well", "\x1b[2J", "\u202e"]
)
@pytest.mark.parametrize(
    "message",
    [
        lambda name: Open(name, 1, "2.13.0"),
        lambda name: Open("s", 1, name),
        lambda name: Batch(name, 1, ()),
        lambda name: Deliver(name, (), ()),
        messages.Close,
        lambda name: messages.Cancel(name, 1),
        lambda name: messages.Watch(name, 1),
        lambda name: batch(messages.Expect((1,), name)),
        lambda name: batch(messages.Move((1,), name, "s", (1,))),
        lambda name: batch(messages.Move((1,), "w", name, (1,))),
        lambda name: batch(messages.StoreState(name, 1, (1,))),
        lambda name: batch(messages.RecallState(name, 1, 1)),
        lambda name: batch(messages.ListState(name)),
        lambda name: messages.StateQuestion(name, 1),
        lambda name: messages.State(name, 1, (TensorData("bool", (0,), 0),)),
    ],
)
def test_a_name_that_could_forge_a_line_of_a_log_is_refused(
    message: Callable[[str], Any], forged: str
) -> None:
    """Names of sessions and workers are on one line; none is quoted back."""
    codec.decode(msgspec.msgpack.encode(message("Anna's 2nd, é")))
    assert forged not in refused(message(forged))


@pytest.mark.parametrize(
    "message",
    [
        batch(messages.StoreState("x" * (limits.STATE_NAME_CHARACTERS + 1), 1, (1,))),
        batch(messages.StoreState("", 1, (1,))),
        batch(messages.StoreState("x", -1, (1,))),
        batch(messages.StoreState("x", 2**62 + 1, (1,))),
        batch(messages.StoreState("x", 1, ())),
        batch(messages.StoreState("x", 1, (1,) * (limits.STATE_TENSORS + 1))),
        batch(messages.RecallState("x" * (limits.STATE_NAME_CHARACTERS + 1), 1, 1)),
        batch(messages.ListState("x" * (limits.STATE_NAME_CHARACTERS + 1))),
    ],
    ids=range(8),
)
def test_what_is_stored_has_a_name_a_number_and_a_size(message: Any) -> None:
    """Each within bounds, and there is something to store."""
    refused(message)


@pytest.mark.parametrize("share", [-1, 1_001, 2**40, 0.5, float("nan"), "1", True])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    """How much is done is a whole number of thousandths, whoever says so."""
    refused(messages.Progress(share))


def test_a_long_text_of_a_sent_tensor_is_refused() -> None:
    """The tags and the description of a sent tensor are held to the limit too."""
    long = "x" * (limits.TEXT_CHARACTERS + 1)
    refused(batch(Put(1, ONE, (long,))), [bytes(8)])
    refused(batch(Put(1, ONE, (), long)), [bytes(8)])
    refused(batch(Put(1, ONE, ("x",) * (limits.TAGS + 1))), [bytes(8)])


def test_a_policy_and_a_combination_have_a_size() -> None:
    """What one message may cost its receiver is bounded for each part of it."""
    largest = limits.POLICY_BYTES
    codec.decode(codec.encode(Deliver("s", (), (), bytes(largest))))
    assert str(largest) in refused(Deliver("s", (), (), bytes(largest + 1)))
    many = tuple(range(limits.REQUESTS_PER_BATCH + 1))
    batch = Batch("s", 1, (messages.Aggregate("trimmed_mean", many, 1, 1),))
    assert str(limits.REQUESTS_PER_BATCH) in refused(batch)
