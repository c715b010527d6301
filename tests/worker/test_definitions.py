"""What follows from a program's text is found once in a process."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from obhut.errors import OpNotAdmittedError, ProgramError
from obhut.programs import checks
from obhut.protocol.messages import DatasetRows, Define, RunProgram
from obhut.worker import definitions, trainings
from obhut.worker.core import Worker
from obhut.worker.definitions import defined

from .conftest import Driver

SUM = """obhut program 1
rows %x: float32[$B, {0}]
%0 = aten.sum.default(%x)
%1 = aten.mul.Tensor(%0, {1})
return %1 / $B
"""


def told(rows: torch.Tensor, text: str, size: int) -> list[float]:
    """Return a sum over rows and their number, of a new worker in a new session."""
    me = Driver(Worker("bob", datasets={"d": {"features": rows}}))
    me.open()
    part = DatasetRows("d", ("features",))
    run = RunProgram(defined(text).digest, (), part, 1, 2, size)
    assert me(Define(text), run) == []
    return [me.value(1).item(), me.value(2).item()]


def test_a_text_is_read_once_for_many_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of one process that get the same text have one definition."""
    text, reads = SUM.format(3, 2), []
    definitions._kept.cache_clear()
    read = definitions.read
    monkeypatch.setattr(definitions, "read", lambda one: reads.append(1) or read(one))
    for count in range(1, 6):
        assert told(torch.ones(count, 3), text, 2) == [6.0 * count, count]
    assert len(reads) == 1


def test_programs_and_looks_do_not_mix() -> None:
    """Another text, other columns, other rows: each is what it says."""
    for _ in range(5):
        for columns in (2, 3):
            for factor in (2, 5):
                for rows, size in ((8, 2), (9, 2), (9, 3)):
                    text = SUM.format(columns, factor)
                    total = float(rows * columns * factor)
                    found = told(torch.ones(rows, columns), text, size)
                    assert found == [total, rows]


def test_what_is_refused_is_refused_each_time() -> None:
    """Nothing is kept of a text that is no program, also behind one that is."""
    text = SUM.format(3, 2)
    defined(text)
    for wrong in (text.replace("aten.sum.default", "aten.nothing.default"), text[:-2]):
        for _ in range(2):
            with pytest.raises((ProgramError, OpNotAdmittedError)):
                defined(wrong)


def test_long_texts_are_not_kept() -> None:
    """Whoever sends many long ones fills no memory."""
    lines = "".join(
        f"%{place} = aten.sum.default(%x)\n"
        for place in range(definitions._SHORT // 20)
    )
    text = f"obhut program 1\nrows %x: float32[$B, 3]\n{lines}return %0 / $B\n"
    assert lines.count("\n") < checks.limits.REQUESTS_PER_BATCH
    assert defined(text) is not defined(text)
    short = SUM.format(3, 2)
    assert defined(short) is defined(short)


def test_batches_are_counted_over_all_sessions() -> None:
    """A program of one batch becomes a graph with the fourth, and is used then."""
    trainings._lowered._known.clear()
    text, rows = SUM.format(4, 7), torch.ones(5, 4)
    for count in range(1, 6):
        assert told(rows, text, 0) == [140.0, 5]
        (known,) = trainings._lowered._known.values()
        assert known == count if count < 4 else known is not None
        assert isinstance(known, int) is (count < 4)


def test_a_sessions_tensors_go_with_its_last_name() -> None:
    """Not when garbage is collected: the next session has their memory."""
    me = Driver(Worker("bob", datasets={"d": {"features": torch.ones(4, 3)}}))
    me.open()
    text = SUM.format(3, 2)
    run = RunProgram(defined(text).digest, (), DatasetRows("d", ("features",)), 1, 2, 1)
    gc.disable()
    try:
        assert me(Define(text), run) == []
        kept = weakref.ref(me.worker._sessions["s"].store[1])
        del me
        assert kept() is None
    finally:
        gc.enable()
