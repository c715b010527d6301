"""Programs as people write them, each one row of the table in ``docs/works.md``.

Rules:

- A program runs with everything here, and again with everything at a worker. What it
  returns must be equal; or it raises, at the worker, the error whose first line is in
  its row. Here it never raises.
- It returns tensors (which are fetched), numbers, texts, or lists and dicts of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import nn

import obhut

Sendable = TypeVar("Sendable", torch.Tensor, nn.Module)


class Location:
    """Where a program runs: at a worker, or here.

    Args:
        worker: the worker; None for here.
    """

    def __init__(self, worker: obhut.RemoteWorker | None) -> None:
        self.worker = worker

    def send(self, x: Any) -> Any:
        """Send a tensor or a module there; here it stays as it is."""
        return x if self.worker is None else obhut.send(x, self.worker)

    def get(self, x: Any) -> Any:
        """Bring a tensor or a module here, if it is not."""
        return x if self.worker is None else obhut.get(x)

    def inside(self) -> contextlib.AbstractContextManager[object]:
        """Enter the worker, so that factory functions create there."""
        return contextlib.nullcontext() if self.worker is None else self.worker


Program: TypeAlias = Callable[[Location], Any]


class ProgramRow(NamedTuple):
    """A program and how it is to be run.

    Attributes:
        program: the program.
        slow: whether it takes longer than a few seconds.
    """

    program: Program
    slow: bool = False


ROWS: dict[str, ProgramRow] = {}
"""All programs, by the first cell of their row."""


def row(name: str, *, slow: bool = False) -> Callable[[Program], Program]:
    """Let a function be the program of a row.

    Args:
        name: the first cell of its row, as it stands on the page.
        slow: whether it takes longer than a few seconds.
    """

    def add(program: Program) -> Program:
        if name in ROWS:
            raise ValueError(f"two programs are called {name!r}")
        ROWS[name] = ProgramRow(program, slow)
        return program

    return add


def fetched(value: Any) -> Any:
    """Return a program's result with all of it here and without history."""
    if isinstance(value, obhut.RemoteTensor):
        return value.get().detach()
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: fetched(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fetched(item) for item in value]
    return value
