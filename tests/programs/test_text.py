"""A program has one text, and nothing but a program has one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests.programs.mutations import mutated
from tests.programs.whole import TRAININGS
from tests.programs.zoo import BODIES, MODELS, OPTIMIZERS, plain
from torch import nn

from obhut.client.looping import record_training
from obhut.client.recording import Recorded, Rows, record
from obhut.errors import OpNotAdmittedError, ProgramError
from obhut.programs.checks import check
from obhut.programs.program import Program, Share, Size
from obhut.programs.text import digest, read, write

LABELS = Rows(torch.int64, ())


@cache
def recorded(
    name: str = "mlp", body: Callable[..., Any] = plain, optimizer: str = "sgd"
) -> Recorded:
    """Return a step, recorded once."""
    model = MODELS[name].make()
    rows = MODELS[name].rows()
    return record(
        body,
        {"model": model, "optimizer": OPTIMIZERS[optimizer](model.parameters())},
        {"x": Rows(rows.dtype, tuple(rows.shape[1:])), "y": LABELS},
    )


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_models_are_read_as_they_were_written(name: str) -> None:
    """Texts of models are read as they were written."""
    made = recorded(name)
    again = read(made.text)
    assert again == made.program
    assert write(again) == made.text
    assert made.digest == digest(made.text)


@pytest.mark.parametrize("name", BODIES)
def test_texts_of_bodies_are_read_as_they_were_written(name: str) -> None:
    """Texts of bodies are read as they were written."""
    made = recorded(body=BODIES[name])
    assert read(made.text) == made.program


def test_a_text_reads_like_the_code() -> None:
    """A text reads like the code."""
    model = nn.Linear(2, 1)

    def step(model, optimizer, x, y):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).sum()
        loss.backward()
        optimizer.step()
        return loss

    rows = Rows(torch.float32, (2,)), Rows(torch.float32, (1,))
    made = record(
        step,
        {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
        dict(zip("xy", rows, strict=True)),
    )
    assert made.text == (
        "obhut program 1\n"
        "parameter %model.weight: float32[1, 2]\n"
        "parameter %model.bias: float32[1]\n"
        "rows %x: float32[$B, 2]\n"
        "rows %y: float32[$B, 1]\n"
        "optimizer 0: SGD [%model.weight, %model.bias]\n"
        "set_grad(%model.weight, None)\n"
        "set_grad(%model.bias, None)\n"
        "%0 = aten.linear.default(%x, %model.weight, %model.bias)\n"
        "%1 = aten.sub.Tensor(%0, %y)\n"
        "%2 = aten.pow.Tensor_Scalar(%1, 2)\n"
        "%3 = aten.sum.default(%2)\n"
        "backward([%3], [None], None, False, False)\n"
        "step(0)\n"
        "%4 = aten.detach.default(%3)\n"
        "%5 = aten._to_copy.default(%4, dtype=float64)\n"
        "%6 = aten.mul.Tensor(%5, $B)\n"
        "%7 = aten.detach.default(%6)\n"
        "return %7 / $B\n"
    )
    assert [site.line for site in made.sites if site][:2] == [
        step.__code__.co_firstlineno + 1
    ] * 2


def test_the_digest_is_the_same_in_every_process() -> None:
    """The digest is the same in every process."""
    code = (
        "from tests.programs.test_text import recorded\n"
        "print(recorded('gpt').digest, recorded('batch norm').digest)\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{recorded('gpt').digest} {recorded('batch norm').digest}\n"}


def test_hyperparameters_are_no_part_of_it() -> None:
    """Hyperparameters are no part of it."""
    assert recorded(optimizer="sgd").digest == recorded(optimizer="momentum").digest
    assert recorded(optimizer="sgd").digest != recorded(optimizer="adam").digest


@pytest.mark.parametrize(
    ("size", "rows", "number"),
    [(Size(2, -3), 5, 7), (Size(1, 3, 4), 9, 3), (Size(-1, 8), 3, 5)],
)
def test_numbers_follow_from_the_rows(size: Size, rows: int, number: int) -> None:
    """Numbers follow from the rows."""
    assert size.at(rows) == number
    assert Share(3.0).at(4) == 0.75


ALTERED = {
    "a heading": ("obhut program 1", "obhut program 2"),
    "a space": ("%0 = ", "%0  = "),
    "an unknown name": ("(%x, ", "(%z, "),
    "a name twice": ("%1 = ", "%0 = "),
    "a number that is written otherwise": (", 1, False)", ", 01, False)"),
    "a decimal": ("$B)", "1.5)"),
    "a backward kernel": ("aten.relu.default", "aten.threshold_backward.default"),
    "what reads a value": ("aten.relu.default", "aten.item.default"),
    "what nobody admits": ("aten.relu.default", "aten.save.default"),
    "code": ("aten.relu.default", "os.system.default"),
    "no optimizer of that number": ("step(0)", "step(1)"),
    "no such optimizer": (": SGD ", ": LBFGS "),
    "two parameters that are one": ("[%model.0.weight, ", "[%model.0.bias, "),
    "a step with more": ("step(0)", "step(0, 0)"),
    "nothing returned": ("return ", "# "),
    "no such dtype": ("int64[$B]", "int65[$B]"),
    "rows of a fixed number": ("int64[$B]", "int64[3]"),
    "a size that is no number": ("float32[32, 16]", "float32[$B, 16]"),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_text_is_refused(what: str) -> None:
    """An altered text is refused."""
    before, after = ALTERED[what]
    text = recorded().text
    assert before in text
    with pytest.raises((ProgramError, OpNotAdmittedError)):
        check(read(text.replace(before, after, 1)))


@cache
def whole(name: str = "every_2") -> Recorded:
    """Return a whole training, recorded once."""
    rows = Rows(torch.float32, (16,)), LABELS
    return record_training(TRAININGS[name], {"model": MODELS["mlp"].make()}, rows)


@pytest.mark.parametrize("name", ["evaluated", "every_3", "two_sizes", "warmed_up"])
def test_texts_of_whole_trainings_are_read_as_they_were_written(name: str) -> None:
    """Texts of whole trainings are read as they were written."""
    made = whole(name)
    assert read(made.text) == made.program
    assert len(made.sites) == len(made.program.lines)
    assert made.digest == whole(name).digest


ALTERED_LOOPS = {
    "no batches": ("batches 8 ", "batches 0 "),
    "no epochs": ("epochs 2:", "epochs 0:"),
    "too many epochs": ("epochs 2:", "epochs 99999999:"),
    "no parts": ("  then:\n", ""),
    "a line that is nobody's": ("  first:\n", ""),
    "another indent": ("    step(0)", "   step(0)"),
    "a batch outside": ("return loss: ", "return loss: %11 / 1\nreturn other: "),
    "rows outside": (
        "%31 = aten.detach.default(%10)",
        "%31 = aten.relu.default(%data.0)",
    ),
    "what another part makes": ("aten.div.Tensor(%25, 2)", "aten.div.Tensor(%15, 2)"),
    "nothing that is carried": ("next %10 = %20", "next %9 = %20"),
    "a batch that hands on twice": (
        "next %10 = %20",
        "next %10 = %20\n    next %10 = %20",
    ),
    "a batch of another part": ("next %10 = %20", "next %10 = %9\n    next %10 = %30"),
    "a beginning of later": ("carry %10 = %9", "carry %10 = %20"),
    "a number of a batch outside": ("2*$N0", "$B"),
    "a count of no loop": ("2*$N0", "2*$N1"),
    "a count that is written otherwise": ("2*$N0", "2*$N0+0"),
    "a loop in a loop": ("  carry ", "  batches 8 epochs 2:\n  carry "),
}


@pytest.mark.parametrize("what", ALTERED_LOOPS)
def test_an_altered_loop_is_refused(what: str) -> None:
    """An altered loop is refused."""
    before, after = ALTERED_LOOPS[what]
    text = whole().text
    assert before in text
    with pytest.raises(ProgramError):
        check(read(text.replace(before, after)))


def test_a_step_counts_nothing() -> None:
    """Rows and batches of loops are none of a step's numbers."""
    text = recorded().text
    for before, after in (("/ $B\n", "/ 1*$N0\n"), (", $B)", ", 1*$N0)")):
        with pytest.raises(ProgramError, match="no loop goes through"):
            check(read(text.replace(before, after)))


def test_a_text_that_is_too_long_is_not_read() -> None:
    """A text that is too long is not read."""
    with pytest.raises(ProgramError, match="at most"):
        read(recorded().text * 20_000)


@pytest.mark.parametrize("kind", ["step", "whole"])
def test_any_text_is_refused_by_name_or_another_program(kind: str) -> None:
    """Any text is refused by name or another program."""
    made = recorded("gpt") if kind == "step" else whole()
    text, random_ = made.text, random.Random(0)
    refused = 0
    for _ in range(2_000):
        other = mutated(text, random_)
        try:
            program = read(other)
            check(program)
        except (ProgramError, OpNotAdmittedError):
            refused += 1
            continue
        assert isinstance(program, Program)
        assert write(program) == other
    assert 1_000 < refused < 2_000
