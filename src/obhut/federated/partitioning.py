"""How one data set is dealt to simulated clients.

::

    deal = obhut.dirichlet(0.3, clients=100, seed=0)
    partition = deal(x, y)                # or a pair, a LocalDataset, a TensorDataset
    partition.plot()
    with obhut.simulate((x, y), deal) as clients:
        ...

Rules:

- Every row is one client's, and every client has a row or more.
- The seed decides all that is drawn, by a generator of its own: the same seed deals the
  same rows on every machine, and nothing else draws from it.
- A client's rows are in the data set's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
import torch

from obhut.errors import CallError
from obhut.host.wording import printable

from .classes import Classes, classes_of
from .data_parts import Parts, column_of, parts_of, rows_of, whole
from .dealing import class_by_class, drawing, filled, pieces, shares, takers
from .partitions import Partition

_Dealt: TypeAlias = tuple[Sequence[str], torch.Tensor]
"""Clients' names, and of each row the place of its client's: (rows,) int64."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Partitioner:
    """Deals the rows of a data set to clients; made by ``iid`` and its like.

    Attributes:
        made: the call that made it.
        deal: returns clients' names, and which client each row goes to.
    """

    made: str
    deal: Callable[[Parts], _Dealt]

    def __call__(self, data: Any, target: torch.Tensor | None = None) -> Partition:
        """Return the rows of each client.

        Args:
            data: features and target, (rows, ...) each, any dtype: a pair, an
                ``obhut.LocalDataset`` or ``torch.utils.data.TensorDataset`` of two, a
                mapping ``{"features": x, "target": y}``. Or the features alone.
            target: (rows, ...), beside features alone.

        Raises:
            CallError: if it is no data set, or can not be dealt so.
        """
        parts = parts_of(data if target is None else (data, target))
        names, client = self.deal(parts)
        sizes = torch.bincount(client, minlength=len(names)).tolist()
        rows = torch.argsort(client, stable=True).split(sizes)
        indices = dict(zip(names, rows, strict=True))
        return Partition(indices, parts["target"], made=self.made)

    def __repr__(self) -> str:
        return f"obhut.{self.made}"


def iid(clients: int, *, seed: int = 0) -> Partitioner:
    """Deal rows at random, to each client as many as to any other.

    Rows in random order are cut into pieces whose lengths differ by one at most.

    Args:
        clients: how many there are.
        seed: of the order.

    Raises:
        CallError: if one of these can not be. Called: if there are fewer rows than
            clients.

    Source: McMahan et al. 2017, arXiv 1602.05629, section 3 (IID).
    """
    count, seed = _number("clients", clients, 1), _seed(seed)

    def deal(parts: Parts) -> _Dealt:
        rows = rows_of(parts)
        _check_enough(rows, count, 1)
        order = torch.randperm(rows, generator=drawing(seed))
        client = torch.empty(rows, dtype=torch.int64)
        client[order] = torch.arange(rows) * count // rows
        return client_names(count), client

    return Partitioner(f"iid(clients={count}, seed={seed})", deal)


def dirichlet(
    alpha: float, clients: int, *, min_rows: int = 1, seed: int = 0
) -> Partitioner:
    """Deal each class in shares of its own: the smaller alpha, the more clients differ.

    1. For each class, in ascending order, clients' shares of its rows are drawn from
       the symmetric Dirichlet distribution of concentration alpha.
    2. The rows of the class in random order are cut by these shares, at the next whole
       row each.
    3. While a client has fewer than ``min_rows``, whoever has most gives one up; these
       rows are drawn at random, and dealt to those who need them, in their order.
       (Drawing all again instead ends seldom where clients are many.)

    Clients have different numbers of rows. At an alpha of 100 they are nearly alike, at
    0.1 most have a few classes.

    Args:
        alpha: the concentration, above 0.
        clients: how many there are.
        min_rows: that each has at least.
        seed: of the shares, and of the order.

    Raises:
        CallError: if one of these can not be. Called: if there are too few rows, or the
            target has no classes.

    Source: Yurochkin et al. 2019, arXiv 1905.12022, section 4 (shares of each class).
        Hsu et al. 2019, arXiv 1909.06335, section 3, draw each client's mixture of
        classes instead, for clients of equally many rows: their alpha is another, a
        concentration over classes.
    """
    count, seed = _number("clients", clients, 1), _seed(seed)
    fewest = _number("min_rows", min_rows, 1)
    if not isinstance(alpha, SupportsFloat) or not 0 < float(alpha) < math.inf:
        raise CallError(f"expected an alpha above 0 and finite, got {alpha!r}")
    alpha = float(alpha)
    made = f"dirichlet({alpha:g}, clients={count}, seed={seed})"

    def deal(parts: Parts) -> _Dealt:
        classes = _classes(parts, made)
        _check_enough(rows_of(parts), count, fewest)
        generator = drawing(seed)
        order, sizes = class_by_class(classes, generator)
        ends = (shares(alpha, len(sizes), count, generator) * sizes[:, None]).round()
        client = torch.empty_like(order)
        first = 0
        for size, stops in zip(sizes.tolist(), ends.to(torch.int64), strict=True):
            places = torch.arange(size)
            client[order[first : first + size]] = torch.searchsorted(
                stops, places, right=True
            ).clamp(max=count - 1)
            first += size
        return client_names(count), filled(client, count, fewest, generator)

    return Partitioner(made, deal)


def by_class(k: int, clients: int, *, seed: int = 0) -> Partitioner:
    """Deal each client rows of exactly k classes.

    1. Each class is cut into one piece; then, until there are k pieces for each client,
       the class whose pieces are largest is cut into one more. None is cut into more
       pieces than it has rows, or than there are clients.
    2. One client after the other takes pieces of k different classes, drawn at random,
       each as likely as the class has pieces left. A class with as many left as clients
       are to come is among them, so that they come out even.
    3. A piece is rows of its class at random; the pieces of a class differ by one row
       at most.

    Where classes are equally large, clients have nearly equally many rows.

    Args:
        k: how many classes a client has.
        clients: how many there are.
        seed: of who gets which classes, and which of their rows.

    Raises:
        CallError: if one of these can not be. Called: if there are too few classes or
            rows, or so few clients that some class would be nobody's.

    Source: McMahan et al. 2017, arXiv 1602.05629, section 3 (pathological non-IID).
        They cut all rows, in the order of their classes, into equal pieces, so that
        most clients get k classes and some get fewer or more.
    """
    count, seed = _number("clients", clients, 1), _seed(seed)
    k = _number("k", k, 1)
    made = f"by_class({k}, clients={count}, seed={seed})"

    def deal(parts: Parts) -> _Dealt:
        classes = _classes(parts, made)
        generator = drawing(seed)
        order, sizes = class_by_class(classes, generator)
        cut = pieces(sizes.tolist(), k, count)
        taking = takers(torch.tensor(cut), k, count, generator)
        client = torch.empty_like(order)
        for rows, takes in zip(order.split(sizes.tolist()), taking, strict=True):
            client[rows] = takes[torch.arange(len(rows)) * len(takes) // len(rows)]
        return client_names(count), client

    return Partitioner(made, deal)


def by_column(column: int | str | torch.Tensor | Sequence[Any]) -> Partitioner:
    """Deal rows by what stands in a column: a client for each value, named by it.

    Clients are in the order of their values. Nothing is drawn.

    Args:
        column: of the features, by its number; or a part of the data set by its name,
            as ``"target"``; or (rows,) itself, for instance the hospital of each row:
            a tensor, an array or a list, of numbers or of text.

    Raises:
        CallError: called, if there is no such column, it has more than one value a row,
            or none for some row.

    Source: the natural partition of Caldas et al. 2018, arXiv 1812.01097 (LEAF).
    """
    named = isinstance(column, str) or whole(column) is not None
    made = f"by_column({column!r})" if named else "by_column(...)"

    def deal(parts: Parts) -> _Dealt:
        values = column_of(parts, column)
        try:
            names, client = np.unique(values, return_inverse=True)
        except TypeError as error:
            raise CallError(f"expected values of one kind in {made}: {error}") from None
        texts = [_text(one) for one in names.tolist()]
        twice = len(texts) - len(set(texts))
        if twice or not all(texts):
            raise CallError(
                f"expected values that make names in {made}: "
                + (f"{twice:,} read like another" if twice else "one is empty")
            )
        return texts, torch.from_numpy(client.astype(np.int64))

    return Partitioner(made, deal)


def _number(name: str, value: Any, least: int) -> int:  # Any: numpy's do as well
    number = whole(value)
    if number is None or number < least:
        raise CallError(f"expected {name} to be a number from {least}, got {value!r}")
    return number


def _seed(value: Any) -> int:  # Any: likewise
    number = _number("seed", value, 0)
    if number > _LARGEST_SEED:
        raise CallError(f"expected a seed of up to {_LARGEST_SEED}, got {value!r}")
    return number


_LARGEST_SEED = 2**64 - 1
"""That torch's generators take."""


def _check_enough(rows: int, clients: int, fewest: int) -> None:
    if rows < clients * fewest:
        each = "a row or more" if fewest == 1 else f"{fewest:,} rows or more"
        raise CallError(
            f"expected {each} for each of {clients:,} clients, got {rows:,} rows; "
            f"choose clients={max(rows // fewest, 1):,} at most"
        )


def client_names(clients: int) -> list[str]:
    """Return names that sort as their numbers do."""
    width = len(str(clients - 1))
    return [f"client-{place:0{width}}" for place in range(clients)]


def _classes(parts: Parts, made: str) -> Classes:
    target = parts["target"]
    found = classes_of(target)
    if found is None:
        raise CallError(
            f"{made} needs a class for each row: a target (rows,) of whole numbers, "
            f"got {str(target.dtype).removeprefix('torch.')} {list(target.shape)}; "
            "iid(clients) and by_column(column) need none"
        )
    return found


def _text(value: object) -> str:
    """Return a value as a client's name."""
    whole = isinstance(value, float) and value.is_integer()
    return printable(str(int(value) if whole else value)).strip()  # type: ignore[call-overload] # a float then
