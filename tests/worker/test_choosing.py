"""Columns that are chosen by their public names, in the order of a study."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from obhut.programs.text import digest
from obhut.protocol.limits import HIDDEN_ROWS
from obhut.protocol.messages import (
    NOWHERE,
    Count,
    DatasetRows,
    Define,
    Described,
    Free,
    Load,
    Move,
    Put,
    RunProgram,
    Split,
    TensorData,
)
from obhut.worker.tensors import to_frame

from .conftest import Driver, OwnersDriver

NAMES = ("age", "sex", "bp")
COLUMNS = {"d": {"features": NAMES, "target": ("y",)}}
X = torch.arange(51.0).reshape(17, 3)
DATA = {"d": {"features": X, "target": X[:, 0].clone()}}
TEXT = """obhut program 1
rows %x: float32[$B, 2]
rows %y: float32[$B]
%0 = aten.sum.dim_IntList(%x, [0])
return %0 / $B
"""
WANTED = ("bp", "age")
OTHER = {"d": {"features": ("bp", "age", "sex"), "target": ("y",)}}
"""Another owner's order, in which the same cells are."""
OTHERS = {"d": {**DATA["d"], "features": X[:, [2, 0, 1]]}}

Owners = Callable[..., OwnersDriver]
Opened = Callable[..., Driver]


def rows(*columns: tuple[str, ...]) -> DatasetRows:
    """Return the data set's rows, with some columns of each part."""
    return DatasetRows("d", ("features", "target"), columns)


def begun(make: Callable[..., Any], **options: Any) -> Any:
    """Return a client that has sent the program."""
    me = make(**{"datasets": DATA, "columns": COLUMNS} | options)
    assert me(Define(TEXT)) == []
    return me


def run(given: Any, **how: Any) -> RunProgram:
    """Return a run of the program."""
    return RunProgram(digest(TEXT), (), given, 10, 2, **how)


@pytest.mark.parametrize("hidden", [(), ("d",)])
@pytest.mark.parametrize(
    "how",
    [{}, {"batch_size": 5}, {"batch_size": 5, "shuffle": True, "epochs": 2}],
    ids=["whole", "batches", "shuffled"],
)
def test_a_program_goes_through_the_columns_in_that_order(
    owners: Owners, hidden: tuple[str, ...], how: dict[str, Any]
):
    """Two of three, the other way round, whether or not their number is hidden."""
    me = begun(owners, hidden=hidden)
    assert me(run(rows(WANTED, ()), **how)) == []
    for one in me.peek(10):
        assert one.tolist() == X[:, [2, 0]].sum(0).tolist()


def test_so_does_an_open_worker(opened: Opened):
    """Also through a part of the rows, and through one that has none."""
    me = begun(opened)
    for share, count in ((0.5, 8), (0.01, 0)):
        given = run(rows(WANTED, ()), split=Split(share, 0, True))
        assert me(given) == []
        assert me.value(11).tolist() == [count]
        assert me.value(10).shape == (1, 2)
        assert me(Free((10, 11))) == []


def test_a_part_is_loaded_with_the_columns_alone(opened: Opened, owners: Owners):
    """As a copy: what is written into it is not written into the data."""
    for me in (begun(opened), begun(owners)):
        (told,) = me(Load("d", "features", 20, WANTED))
        assert isinstance(told, Described)
        assert told.specs[0] is not None
        assert told.specs[0].shape == (17, 2)
    assert begun(opened)(Load("d", "features", 20, NAMES))
    me = begun(opened)
    me(Load("d", "features", 20, WANTED))
    assert torch.equal(me.value(20), X[:, [2, 0]])


def test_what_it_would_look_like_is_told_and_not_held(opened: Opened, owners: Owners):
    """Of hidden rows, too, with a number that says nothing."""
    for me, count in ((begun(opened), 17), (begun(owners, hidden=("d",)), HIDDEN_ROWS)):
        for columns, width in (((), 3), (WANTED, 2)):
            (told,) = me(Load("d", "features", NOWHERE, columns))
            assert told.specs[0].shape == (count, width)
        (held,) = me(Count())
        assert held.count == 0
        failed = me.fails(Load("d", "pixels", NOWHERE))
        assert "features" not in failed.text


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("age", "weight"), "one of each, got 'weight'"),
        (("age", "age"), "got one twice"),
    ],
)
@pytest.mark.parametrize("hidden", [(), ("d",)])
def test_names_that_can_not_be_chosen(
    opened: Opened, owners: Owners, hidden: tuple[str, ...], columns: Any, said: str
):
    """The error has the name that was asked for and none that was not."""
    for me in (begun(opened), begun(owners, hidden=hidden)):
        for request in (
            run(rows(columns, ())),
            Load("d", "features", NOWHERE, columns),
        ):
            text = me.fails(request).text
            assert said in text
            assert not re.search("sex|bp", text)


def test_private_names_choose_nothing(opened: Opened, owners: Owners):
    """Whether or not there is such a column, the answer is the same."""
    for columns in ({}, {"d": {}}, {"d": {"features": ()}}):
        for make in (opened, owners):
            me = begun(make, columns=columns)
            texts = {
                me.fails(Load("d", "features", NOWHERE, (name,))).text
                for name in ("age", "weight")
            }
            assert texts == {
                "expected no columns: their names are not public here, so that none "
                "is found by its name"
            }


def test_names_that_come_twice_choose_nothing(opened: Opened):
    """It could be either; the others can be chosen."""
    me = begun(opened, columns={"d": {"features": ("a", "b", "a")}})
    assert "got 'a'" in me.fails(Load("d", "features", NOWHERE, ("a",))).text
    me(Load("d", "features", 20, ("b",)))
    assert torch.equal(me.value(20), X[:, 1:2])


def test_a_column_alone_is_chosen_as_it_is(opened: Opened):
    """A part of shape (rows,) has no dimension for columns."""
    me = begun(opened)
    me(Load("d", "target", 20, ("y",)))
    assert torch.equal(me.value(20), X[:, 0])
    assert "no dimension" in me.fails(Load("d", "target", NOWHERE, ("z",))).text


def made(owners: Owners, given: Any, **options: Any) -> tuple[bytes, ...]:
    """Return how the program's results were made, as the header of them says."""
    me = begun(owners, **options)
    if not isinstance(given, DatasetRows):
        me(Load("d", "features", 20, given), Load("d", "target", 21))
        given = (20, 21)
    assert me(run(given), Move((10, 11), "hub", "t", (1, 2))) == []
    (header,) = me.headers
    return header.message.digests


@pytest.mark.parametrize("hidden", [(), ("d",)])
def test_the_same_names_are_the_same_computation_in_any_order(
    owners: Owners, hidden: tuple[str, ...]
):
    """At an owner whose columns are in another order; loaded, too."""
    one = made(owners, rows(WANTED, ()), hidden=hidden)
    other = made(
        owners, rows(WANTED, ()), hidden=hidden, datasets=OTHERS, columns=OTHER
    )
    assert one == other
    assert len({*one}) == 2
    if not hidden:
        assert made(owners, WANTED) == one


def test_other_names_are_another_computation(owners: Owners):
    """So nobody adds one owner's age to other owners' zeros."""
    wanted = [WANTED, ("age", "bp"), ("age", "sex"), ("sex", "bp")]
    found = [made(owners, rows(one, ())) for one in wanted]
    assert len({*found}) == len(wanted)
    narrow = {"d": {"features": ("bp", "age"), "target": ("y",)}}
    cells = {"d": {**DATA["d"], "features": X[:, [2, 0]]}}
    whole = made(owners, rows(), datasets=cells, columns=narrow)
    assert whole not in found


def test_columns_are_of_each_part_or_of_none():
    """Else it is no request."""
    with pytest.raises(ValueError, match="of each part"):
        DatasetRows("d", ("features", "target"), (("age",),))


def test_a_choice_counts_against_the_memory_of_a_session(opened: Opened):
    """It is a copy, and refused before it is made."""
    me = begun(opened, memory_limit=200)
    failed = me.fails(Load("d", "features", 20, NAMES))
    assert failed.kind == "MemoryLimitError"
    data = TensorData("float32", (2,), 0)
    assert me(Put(30, data), frames=[to_frame(torch.ones(2))]) == []
