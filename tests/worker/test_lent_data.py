"""A worker's data in a session: it costs nothing until it is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from obhut.errors import MemoryLimitError
from obhut.protocol.messages import (
    NOWHERE,
    Alias,
    Clear,
    Failed,
    Free,
    Load,
    ReadData,
    Ref,
    Request,
    SetRequiresGrad,
    WriteData,
    WriteGrad,
)
from obhut.worker.shape_only import shape_only
from obhut.worker.shapes import dense
from obhut.worker.store import Store

from .conftest import Driver, _run

Opened = Callable[..., Driver]


@pytest.fixture
def me(opened: Opened) -> Callable[[int], Driver]:
    """Return what opens a session of so many bytes, on data of two parts of 400."""

    def make(limit: int) -> Driver:
        parts = {"x": torch.ones(100), "y": torch.ones(100)}
        return opened(datasets={"d": parts}, memory_limit=limit)

    return make


def kinds(answers: list[object]) -> list[str]:
    """Return the errors among answers."""
    return [one.kind for one in answers if isinstance(one, Failed)]


def test_it_may_be_larger_than_the_session(me: Callable[[int], Driver]) -> None:
    """It is loaded, has other names and is read; what is computed counts."""
    it = me(399)
    it(Load("d", "x", 1), Load("d", "y", 2), Load("d", "x", 3))
    it(_run("aten.slice.Tensor", Ref(1), 0, 0, 50, out=4), Alias(4, 5))
    assert not kinds(it(_run("aten.add.Tensor", Ref(4), Ref(4), out=6)))
    neg = _run("aten.neg.default", Ref(1), out=7)
    assert kinds(it(neg)) == ["MemoryLimitError"]
    it(Free((6,)), _run("aten.sum.default", Ref(1), out=8))
    assert it.value(8) == 100


ZERO = "aten.zero_.default"

WRITES: dict[str, tuple[Request, ...]] = {
    "in place": (_run(ZERO, Ref(1), out=NOWHERE),),
    "a view": (_run(ZERO, Ref(9), out=NOWHERE),),
    "a list": (_run("aten._foreach_zero_.default", [Ref(9)], out=NOWHERE),),
    "out": (_run("aten.neg.out", Ref(9), kwargs={"out": Ref(9)}, out=NOWHERE),),
    "its data": (ReadData(1, 10), _run(ZERO, Ref(10), out=NOWHERE)),
    "as data": (WriteData(9, 1), _run(ZERO, Ref(9), out=NOWHERE)),
    "statistics": (
        _run(
            "aten.batch_norm.default",
            *(Ref(11), None, None, Ref(1), Ref(15), True, 0.1, 1e-5, False),
            out=12,
        ),
    ),
    "a gradient": (SetRequiresGrad(13, True), WriteGrad(13, 1)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_written_is_a_copy_that_counts(
    me: Callable[[int], Driver], write: tuple[Request, ...]
) -> None:
    """By whatever name and way; a session that may not have one is refused."""
    given = (
        Load("d", "x", 1),
        _run("aten.slice.Tensor", Ref(1), 0, 0, 50, out=9),
        _run("aten.ones.default", [2, 100], out=11),  # 800 bytes
        *(_run("aten.ones.default", [100], out=id) for id in (13, 14, 15)),  # 1,200
    )
    few = me(2_399)
    assert not kinds(few(*given))
    assert kinds(few(*write)) == ["MemoryLimitError"]
    assert few.value(1).sum() == 100
    enough = me(4_000)
    assert not kinds(enough(*given, *write))
    more = _run("aten.empty.memory_format", [401], out=20)
    assert kinds(enough(more)) == ["MemoryLimitError"]


def test_a_copy_counts_until_the_session_ends(me: Callable[[int], Driver]) -> None:
    """To forget its names, or everything, frees no page that was written."""
    it = me(700)
    assert not kinds(it(Load("d", "x", 1), _run(ZERO, Ref(1), out=NOWHERE)))
    for forget in (Free((1,), False), Clear()):
        it(forget)
        written = it(Load("d", "y", 2), _run(ZERO, Ref(2), out=NOWHERE))
        assert kinds(written) == ["MemoryLimitError"]
        it(Free((2,), False))
    assert not kinds(it(Load("d", "x", 3), _run(ZERO, Ref(3), out=NOWHERE)))
    assert not kinds(it(_run("aten.zeros.default", [75], out=4)))
    more = it(_run("aten.zeros.default", [1], out=5))
    assert kinds(more) == ["MemoryLimitError"]


def test_what_has_no_values_counts_likewise() -> None:
    """Low refuses what high, which has no limit of its own, would write."""
    store = Store("bob", 399)
    store.lend(1, shape_only(dense((100,), torch.float32)))
    assert store.lends
    with pytest.raises(MemoryLimitError, match="a gradient needs 400 bytes"):
        store.writes(store[1], "a gradient")
    high = Store("bob", None)
    high.lend(1, torch.ones(100))
    assert not high.lends
