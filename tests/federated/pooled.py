"""Owners of unequal rows, two of them without a class, and all rows in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

import obhut
from obhut.federated import RemoteDataset

NAMES = ("alice", "bob", "carol", "dave", "erin")
SIZES = (40, 7, 64, 33, 21)
CLASSES = 4
POLICY = obhut.Quorum(aggregators=("hub",), contributors=NAMES)

WAYS = {
    "open": (None, "exact"),
    "same": (POLICY, "exact"),
    "hidden": (POLICY, "hidden"),
}
"""A policy that compares programs, or none, and whether rows are hidden."""


class Rows(NamedTuple):
    """Features (rows, 6) and targets of one owner, or of all."""

    features: torch.Tensor
    targets: torch.Tensor


def parts(kind: str = "class") -> list[Rows]:
    """Return each owner's rows.

    Args:
        kind: of targets: ``class`` of four, of which the last is missing at two owners;
            ``binary``, where one owner has one class; or ``numbers``, two a row.
    """
    found = []
    for place, size in enumerate(SIZES):
        draw = torch.Generator().manual_seed(place)
        x = torch.randn(size, 6, generator=draw)
        noisy = x + torch.randn(size, 6, generator=draw)
        if kind == "class":
            y = noisy[:, :CLASSES].argmax(1)
            y = y % (CLASSES - 1) if place in (1, 3) else y
        elif kind == "binary":
            y = (noisy[:, :1] > 0.5).float() * (place != 1)
        else:
            y = noisy[:, :2] * 3 + 10
        found.append(Rows(x, y))
    return found


def pooled(rows: list[Rows]) -> Rows:
    """Return all rows in one place."""
    return Rows(*(torch.cat(one) for one in zip(*rows, strict=True)))


def served(way: str, rows: list[Rows]) -> tuple[list[RemoteDataset], Any]:
    """Return owners of these rows, and an aggregator."""
    policy, how = WAYS[way]
    owners = []
    for name, (x, y) in zip(NAMES, rows, strict=True):
        data = {"d": {"features": x, "target": y}}
        worker = obhut.VirtualWorker(name, policy=policy, datasets=data, rows=how)
        owners.append(worker.dataset("d"))
    return owners, obhut.VirtualWorker("hub", policy=policy)
