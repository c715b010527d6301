"""What is drawn of clients and their rows: seeds, shares, pieces, and who gets which.

::

    order, sizes = class_by_class(classes, drawing(seed))
    cut = pieces(sizes.tolist(), k, clients)          # of each class how many
    takers(torch.tensor(cut), k, clients, generator)  # of each class who

Rule: all that is drawn comes from the generator that is given.
"""

from __future__ import annotations

import hashlib
import heapq
import math

import torch

from obhut.errors import CallError

from .classes import Classes


def drawing(seed: int) -> torch.Generator:
    """Return a generator that nobody else draws from."""
    return torch.Generator().manual_seed(seed)


def derived(text: str, bits: int) -> int:
    """Return a seed of so many bits, 64 at most, that follows from a text."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)


def class_by_class(
    classes: Classes, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows class by class, in random order in each, and how many each has."""
    order = torch.randperm(len(classes.of_rows), generator=generator)
    return order[torch.argsort(classes.of_rows[order], stable=True)], classes.counts


def shares(
    alpha: float, classes: int, clients: int, generator: torch.Generator
) -> torch.Tensor:
    """Return where each client's share of each class ends, (classes, clients) float64.

    A share is a gamma variable over the sum of all. By logarithms, since those of a
    small alpha are too small for a float: that of alpha is that of alpha + 1 times
    u**(1/alpha), u uniform (Marsaglia, Tsang 2000, ACM TOMS 26(3), section 6).
    """
    shape = torch.full((classes, clients), alpha + 1, dtype=torch.float64)
    gamma = torch._standard_gamma(shape, generator=generator)
    uniform = torch.rand(shape.shape, dtype=torch.float64, generator=generator)
    return (gamma.log() + (1 - uniform).log() / alpha).softmax(1).cumsum(1)


def filled(
    client: torch.Tensor, clients: int, fewest: int, generator: torch.Generator
) -> torch.Tensor:
    """Return clients of rows such that none has too few: those with most give rows."""
    sizes = torch.bincount(client, minlength=clients)
    lacking = (fewest - sizes).clamp(min=0)
    if not lacking.any():
        return client
    largest = [(-size, place) for place, size in enumerate(sizes.tolist())]
    heapq.heapify(largest)
    given = [0] * clients
    for _ in range(int(lacking.sum())):
        size, place = largest[0]
        heapq.heapreplace(largest, (size + 1, place))
        given[place] += 1
    shuffled = torch.randperm(len(client), generator=generator)
    rows = shuffled[torch.argsort(client[shuffled], stable=True)]
    givers = torch.tensor(given)
    place_of_client = sizes.cumsum(0) - sizes
    within = torch.arange(len(rows)) - place_of_client[client[rows]]
    moved = rows[within < givers[client[rows]]]
    filled = client.clone()
    filled[moved] = torch.arange(clients).repeat_interleave(lacking)
    return filled


def takers(
    pieces: torch.Tensor, k: int, clients: int, generator: torch.Generator
) -> list[torch.Tensor]:
    """Return for each class the clients who take a piece of it.

    Weighted sampling without replacement takes the k classes of the shortest
    exponential waits, at rates of the pieces left (Efraimidis, Spirakis 2006).
    """
    waits = torch.empty(clients, len(pieces), dtype=torch.float64)
    waits.exponential_(generator=generator)
    left, one = pieces.clone(), torch.tensor(-1).expand(k)
    chosen = []
    for place, wait in enumerate(waits):
        due = left == clients - place
        chosen.append(torch.where(due, -1.0, wait / left).topk(k, largest=False)[1])
        left.index_add_(0, chosen[-1], one)
    taken = torch.zeros(clients, len(pieces), dtype=torch.bool)
    taken.scatter_(1, torch.stack(chosen), True)
    return [column.nonzero()[:, 0] for column in taken.T]


def pieces(sizes: list[int], k: int, clients: int) -> list[int]:
    """Return into how many pieces each class is cut.

    Raises:
        CallError: if there are no such pieces.
    """
    wanted, most = k * clients, [min(size, clients) for size in sizes]
    if k > len(sizes):
        raise CallError(f"expected a k of at most {len(sizes)} classes, got {k}")
    if wanted < len(sizes):
        raise CallError(
            f"expected {math.ceil(len(sizes) / k):,} clients or more, so that each of "
            f"{len(sizes):,} classes is somebody's, got {clients:,}; or choose a k of "
            f"{math.ceil(len(sizes) / clients):,}"
        )
    if wanted > sum(most):
        raise CallError(
            f"expected rows for {clients:,} clients of {k} classes, got "
            f"{sum(sizes):,} rows in {len(sizes):,} classes, of which "
            f"{sum(most):,} pieces can be made; choose fewer clients, or a smaller k"
        )
    pieces = [1] * len(sizes)
    largest: list[tuple[float, int]] = [
        (-size, place) for place, size in enumerate(sizes) if most[place] > 1
    ]
    heapq.heapify(largest)
    for _ in range(wanted - len(sizes)):
        _, place = largest[0]
        pieces[place] += 1
        if pieces[place] < most[place]:
            heapq.heapreplace(largest, (-sizes[place] / pieces[place], place))
        else:
            heapq.heappop(largest)
    return pieces
