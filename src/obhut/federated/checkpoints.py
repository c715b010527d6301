"""Checkpoints: a training that ends at any point goes on from its last whole round.

::

    options = {"rounds": 30, "callbacks": [Checkpoint("run")]}
    federation.fit(model, training, **options)                # is interrupted
    federation.fit(model, training, **options, resume="run")
    Checkpoint("run", best="accuracy").load(model)          # of the best round

In the folder each round has one: ``round-0003/model.safetensors`` and
``training.pt``, both complete or neither there.

Rules:

- Written is what rounds change: what requires gradients, and buffers. What is frozen
  comes with the model that ``load`` is given.
- A folder holds one training. Another one does not write over it.
- What is read is numbers and tensors, and no code.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from obhut.errors import CallError, CheckpointError

from .history import History, Round
from .parameters import differences, taking_part, write

_VERSION = 1
_SMALL = ("loss", "error", "mse", "mae")
"""What is better the smaller it is."""

_MODEL, _TRAINING = "model.safetensors", "training.pt"


class State(NamedTuple):
    """All that a training needs to go on, but for the model's own tensors.

    Attributes:
        history: its rounds.
        strategy: what goes from round to round, such as the outer optimizer's state.
        settings: what must be the same when it goes on, such as the seed.
        random: of what torch draws next.
    """

    history: History
    strategy: dict[str, Any]  # Any: as an optimizer's state
    settings: dict[str, Any]
    random: torch.Tensor


class Checkpoint:
    """Writes a training after its rounds; one of the ``callbacks`` of a fit.

    Args:
        folder: where to, made if it is not there.
        every: after how many rounds each; the last round is always written.
        keep: how many are kept, besides the best.
        best: the number by which a round is the best: ``loss``, or a metric.
        mode: whether the best is its largest (``max``) or its smallest (``min``); by
            default the smallest where the name says loss, error, mse or mae.

    Raises:
        CallError: if numbers are not positive, or the mode is none.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        every: int = 1,
        keep: int = 3,
        best: str | None = None,
        mode: Literal["max", "min"] | None = None,
    ) -> None:
        if every < 1 or keep < 1:
            raise CallError("expected every and keep of 1 or more")
        if mode not in (None, "max", "min"):
            raise CallError(f"expected mode to be max or min, got {mode!r}")
        self.folder = Path(folder)
        self.every = every
        self._keep = keep
        self._name = best
        small = any(word in (best or "").lower() for word in _SMALL)
        self._sign = -1 if mode == "min" or (mode is None and small) else 1

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"

    def numbers(self) -> list[int]:
        """Return the numbers of the rounds that are there."""
        return sorted(
            int(path.name.removeprefix("round-"))
            for path in self.folder.glob("round-*")
            if path.name.removeprefix("round-").isdigit()
        )

    def check_empty(self) -> None:
        """Check that no training is written here yet.

        Raises:
            CallError: if one is.
        """
        numbers = self.numbers()
        if numbers:
            raise CallError(
                f"{self.folder} holds a training, of round {numbers[-1]}: go on with "
                f'it, resume="{self.folder}", or give another folder'
            )

    def save(self, model: nn.Module, state: State) -> None:
        """Write a training as it is now: all of it, or nothing.

        Args:
            model: here.
            state: what else it needs to go on.

        Raises:
            CallError: if the last round has no such number as ``best``.
        """
        best = self._best(state.history)
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".round-*"):
            shutil.rmtree(left)
        number = state.history[-1].number
        made = self.folder / f".round-{number:04}"
        made.mkdir()
        tensors = {
            name: tensor.detach().contiguous()
            for name, tensor in taking_part(model).items()
        }
        save_file(tensors, made / _MODEL)
        torch.save(
            {
                "version": _VERSION,
                "rounds": [_written(one) for one in state.history],
                "strategy": state.strategy,
                "settings": state.settings,
                "random": state.random,
            },
            made / _TRAINING,
        )
        for name in (_MODEL, _TRAINING):
            _sync(made / name)
        _sync(made)
        path = self._path(number)
        if path.exists():
            shutil.rmtree(path)
        made.rename(path)
        _sync(self.folder)
        stay = {*self.numbers()[-self._keep :], best}
        for old in self.numbers():
            if old not in stay:
                # Under another name first: what is half gone is no checkpoint.
                gone = self.folder / f".round-{old:04}"
                self._path(old).rename(gone)
                shutil.rmtree(gone)

    def load(self, model: nn.Module, number: int | None = None) -> Round:
        """Write a checkpoint's values into a model, and return its round.

        Args:
            model: made as the one that was trained.
            number: the round's; by default the best, if there is one, else the last.

        Raises:
            CheckpointError: if there is none, or it is of another model.
        """
        numbers = self.numbers()
        if number is None and numbers:
            best = self._best(self.state(numbers[-1]).history)
            number = numbers[-1] if best is None else best
        if number not in numbers:
            raise CheckpointError(f"{self.folder}: no checkpoint is there")
        self.read_model(model, number)
        return self.state(number).history[-1]

    def read_model(self, model: nn.Module, number: int) -> None:
        """Write a round's values into a model.

        Raises:
            CheckpointError: if they are another model's.
        """
        path = self._path(number) / _MODEL
        values, named = load_file(path), taking_part(model)
        different = differences(values, named)
        if different:
            raise CheckpointError(
                f"{path}: is of another model; different are {', '.join(different)}"
            )
        write(named, values)

    def state(self, number: int) -> State:
        """Return what a round's training needs to go on.

        Raises:
            CheckpointError: if it can not be read.
        """
        path = self._path(number) / _TRAINING
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path}: can not be read: {error}") from error
        if found.get("version") != _VERSION:
            raise CheckpointError(
                f"{path}: was written by another version of obhut, "
                f"{found.get('version')}; this one reads {_VERSION}"
            )
        history = History(Round(**one) for one in found["rounds"])
        return State(history, found["strategy"], found["settings"], found["random"])

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:04}"

    def _best(self, history: History) -> int | None:
        """Return the number of the best round that was written; None for no choice."""
        if self._name is None:
            return None
        name = self._name
        last = history[-1]
        if not last.non_finite and name not in last.numbers:
            known = ", ".join(last.numbers) or "none"
            raise CallError(f"no number is called {name!r}; a round's are: {known}")
        written = {*self.numbers(), last.number}
        scores = {
            one.number: self._sign * one.numbers.get(name, -math.inf * self._sign)
            for one in history
            if one.number in written
        }
        return max(scores, key=lambda number: scores[number])


def _written(one: Round) -> dict[str, Any]:
    return {
        "number": one.number,
        "loss": one.loss,
        "metrics": dict(one.metrics),
        "seconds": one.seconds,
        "non_finite": one.non_finite,
    }


def _sync(path: Path) -> None:
    """Let a file or a folder be on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
