"""A round that any crew can play: a step of SGD on each client's rows."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import torch

from obhut.protocol.codec import Frame
from obhut.protocol.messages import Batch, Load, Put, Ref, Run, TensorData
from obhut.worker.tasks import DATASET, Averaged, Task, Turn
from obhut.worker.tensors import to_frame

WIDTH = 1_000

PATH = os.pathsep.join(
    [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
"""By which processes that tests start find the tests."""

NAMES = tuple(f"site-{number}" for number in range(7))


HARMFUL = ("broken", "killed once", "killed", "stopped once")
"""Clients whose data is not loaded, or not at first."""


@dataclass(frozen=True)
class Loader:
    """Loads a client's data in an actor.

    Attributes:
        folder: where harm that is done once is marked.
    """

    folder: Path

    def __call__(self, name: str) -> dict[str, torch.Tensor]:
        """Return features and target."""
        mark = self.folder / name
        if name == "broken":
            raise ValueError("no such file")
        if name == "killed" or (name.startswith("killed") and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith("stopped") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return data()[name if name in NAMES else NAMES[0]]


def data() -> dict[str, dict[str, torch.Tensor]]:
    """Return each client's rows, more of them for the later ones."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: {
            "features": torch.randn(number + 2, WIDTH, generator=generator),
            "target": torch.randn(number + 2, generator=generator),
        }
        for number, name in enumerate(NAMES)
    }


def task() -> Task:
    """Return one that adds a client's rows, scaled, to the model."""
    requests = (
        Put(1, TensorData("float32", (WIDTH,), 0)),
        Load(DATASET, "features", 2),
        Run("aten.sum.dim_IntList", [Ref(2), [0]], {}, 3, 1, False),
        Run("aten.add_.Tensor", [Ref(1), Ref(3)], {"alpha": 0.1}, 0, 1, False),
    )
    return Task(
        Batch("task", 1, requests),
        averaged=(Averaged(1, "float32", (WIDTH,), frame=0),),
    )


def frames() -> list[Frame]:
    """Return the model that all get."""
    return [to_frame(torch.linspace(-1, 1, WIDTH))]


def turns() -> list[Turn]:
    """Return every client's turn, in order."""
    return [Turn(name, weight=float(number + 1)) for number, name in enumerate(NAMES)]
