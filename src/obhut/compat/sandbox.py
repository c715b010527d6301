"""``create_sandbox``: a hook, six workers and data sets of scikit-learn's among them.

Rules:

- The rows that carry the tags of Boston's housing data are made up, and say so.
- Run again, it changes nothing: the workers and their data are there already.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch

from obhut.client import functions
from obhut.extras import import_extra
from obhut.protocol.limits import TEXT_CHARACTERS

from .grid import PrivateGridNetwork
from .hook import TorchHook
from .virtual_worker import VirtualWorker

NAMES = ("bob", "theo", "jason", "alice", "andy", "jon")
"""The workers, in the order in which rows are dealt out."""

_TAGS = {
    "breast_cancer": ("#breast_cancer", "#breast", "#cancer"),
    "diabetes": ("#diabetes",),
    "digits": ("#digits",),
    "iris": ("#iris",),
    "linnerud": ("#linnerud",),
    "wine": ("#wine",),
}
"""Data sets that scikit-learn ships, by what its loaders call them."""

_HOUSING_TAGS = ("#boston", "#housing", "#boston_housing")

_HOUSING = (
    ".. _boston_dataset:\n\nMade-up rows in the shape of Boston's housing data: 506 "
    "rows of 13 numbers and a price. They are random numbers, and tell nothing of any "
    "place. scikit-learn ships the data itself no more."
)

_RANGES = (
    (0.0, 10.0),
    (0.0, 90.0),
    (1.0, 25.0),
    (0.0, 1.0),
    (0.4, 0.85),
    (4.0, 8.5),
    (5.0, 100.0),
    (1.0, 11.0),
    (1.0, 24.0),
    (190.0, 710.0),
    (13.0, 22.0),
    (1.0, 397.0),
    (2.0, 37.0),
)
"""Between which numbers each made-up column lies; the fourth is 0 or 1."""

_EFFECTS = (-1.0, 1.0, 0.0, 2.0, -2.0, 9.0, 0.0, -3.0, 2.0, -2.0, -4.0, 1.0, -9.0)
"""By how much a price changes along each column."""


def create_sandbox(
    gbs: MutableMapping[str, Any], verbose: bool = True, download_data: bool = True
) -> None:
    """Hook torch, make workers and deal data sets out to them.

    Args:
        gbs: what gets ``hook``, each worker by its name, ``workers`` and ``grid``;
            ``globals()`` in a notebook.
        verbose: print what is done.
        download_data: deal the data out. Nothing is downloaded: scikit-learn has them.

    Raises:
        MissingExtraError: if scikit-learn is not installed.
    """
    loaded = _loaded() if download_data else []
    say = print if verbose else _silent
    say("Hooking PyTorch")
    hook = TorchHook(torch)
    say(f"Making workers: {', '.join(NAMES)}")
    workers = [VirtualWorker(hook, id=name) for name in NAMES]
    grid = PrivateGridNetwork(*workers)
    for data, target, tags, words in loaded:
        if grid.search(tags[0]):
            continue
        say(f"Dealing out {' '.join(tags)}")
        # As the older library tagged it, also by the words of the first line.
        first = tuple(words.split("\n")[0].lower().split())
        for kind, tensor in (("#data", data), ("#target", target)):
            _deal(tensor, (*tags, kind, *first), words[:TEXT_CHARACTERS], workers)
    gbs.update(zip(NAMES, workers, strict=True))
    gbs.update(hook=hook, workers=workers, grid=grid)
    say("Done: hook, workers, grid, and each worker by its name")


def make_hook(gbs: MutableMapping[str, Any]) -> None:
    """Make hook and workers as ``create_sandbox`` does, and no data."""
    create_sandbox(gbs, verbose=False, download_data=False)


def housing() -> tuple[torch.Tensor, torch.Tensor]:
    """Return made-up rows in the shape of Boston's housing data, always the same.

    Returns:
        (506, 13) and (506,), float32.
    """
    generator = torch.Generator().manual_seed(506)
    unit = torch.rand(506, 13, generator=generator)
    unit[:, 3] = (unit[:, 3] < 0.07).float()
    low, high = torch.tensor(_RANGES).T
    noise = torch.randn(506, generator=generator)
    price = 22.5 + (unit - 0.5) @ torch.tensor(_EFFECTS) + 3.0 * noise
    return low + unit * (high - low), price.clamp(5.0, 50.0)


def _loaded() -> list[tuple[torch.Tensor, torch.Tensor, Sequence[str], str]]:
    """Return data, targets, tags and description of each data set."""
    datasets = import_extra(
        "sklearn.datasets", "create_sandbox()", "sandbox", "scikit-learn"
    )
    found: list[tuple[torch.Tensor, torch.Tensor, Sequence[str], str]] = [
        (*housing(), _HOUSING_TAGS, _HOUSING)
    ]
    for name, tags in _TAGS.items():
        load: Callable[[], Any] = getattr(datasets, f"load_{name}")
        bunch = load()
        data, target = (torch.as_tensor(bunch[key]).float() for key in _KEYS)
        found.append((data, target, tags, bunch["DESCR"]))
    return found


_KEYS = ("data", "target")


def _deal(
    tensor: torch.Tensor,
    tags: tuple[str, ...],
    words: str,
    workers: Sequence[VirtualWorker],
) -> None:
    """Deal rows out in order, as many to each; the last one gets what is left."""
    each = len(tensor) // len(workers)
    for position, worker in enumerate(workers):
        last = position + 1 == len(workers)
        rows = tensor[position * each : None if last else (position + 1) * each]
        functions.send(rows, worker, tags=tags, description=words)


def _silent(_: str) -> None:
    """Say nothing."""
