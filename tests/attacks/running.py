"""Runs an attack once, in this process, so that twice the same is the same."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from obhut.ops.table import Flag
from obhut.testing.recording import recording
from obhut.testing.transcripts import differences

from .attack import Attack
from .ignoring import any_coefficient, ignoring
from .private_data import Values
from .stage import Evidence, Stage


def run(attack: Attack, off: frozenset[str], world: Values) -> Evidence:
    """Run an attack and return all that judges look at.

    Args:
        attack: the attack.
        off: the rules that are off.
        world: which private data there are.
    """
    flags = frozenset(flag for flag in Flag if f"op: {flag}" in off)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(ignoring(flags))
        if "audit: coefficients" in off:
            stack.enter_context(any_coefficient())
        folder = None
        if attack.ledger:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        transcripts = stack.enter_context(recording())
        stage = Stage(off, world, attack.changes, folder, apart=attack.forked)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                stage.try_(lambda: attack.program(stage))
            stage.evidence.printed += [str(one.message) for one in told]
        finally:
            stage.close()
    stage.evidence.transcripts = transcripts
    return stage.evidence


def differing(*seen: Evidence) -> list[str]:
    """Return where owners' workers said what one without data would not have said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as they were, and no errors, where it ran
        return [
            difference
            for evidence in seen
            for transcript in evidence.transcripts
            for difference in differences(transcript)
        ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing happen by chance: seeds, collection of memory, what is told once."""
    torch.manual_seed(0)
    once = not torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_warn_always(not once)
