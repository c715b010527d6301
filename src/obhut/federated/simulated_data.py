"""Whose rows a simulation has, from what its caller gives.

::

    simulated_data({"bob": (x, y), "alice": (u, v)})   # each client's own
    simulated_data((x, y), obhut.by_class(2, 100))     # one data set, dealt
    simulated_data(load, 100)                          # load("client-07"), when needed

    found.source.names, found.source.count("bob"), found.looks
    found.source("bob")                                # {"features": x, "target": y}

Rules:

- All clients have the same parts, of the same dtypes and shapes of a row.
- Nothing is copied here, but for the rows of a client that are taken out of all.
- What a function loads is looked at when it is loaded, and not before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeAlias

import torch

from obhut.errors import CallError
from obhut.host.printing import several
from obhut.protocol.limits import TEXT_CHARACTERS
from obhut.transports.sources import Called, Divided, Given, Source
from obhut.worker.shapes import Spec, dense

from .data_parts import Parts, described, parts_of, whole
from .partitioning import Partitioner, client_names
from .partitions import Partition

Load: TypeAlias = Callable[[str], Any]  # Any: a data set in one of its forms
"""Returns a client's data set, by the client's name."""


Looks: TypeAlias = dict[str, Spec]
"""What a row of each part is like, by the part's name."""


def looks_of(parts: Parts) -> Looks:
    """Return what a row of each part is like."""
    return {name: dense(tuple(one.shape[1:]), one.dtype) for name, one in parts.items()}


def check_alike(name: str, looks: Looks, first: str, wanted: Looks) -> None:
    """Check that a client's parts are like those of another.

    Args:
        name: the client's.
        looks: of its parts.
        first: the other's name.
        wanted: of the other's parts.

    Raises:
        CallError: if they are not, naming client and part.
    """
    if _alike(looks) == _alike(wanted):
        return
    if looks.keys() != wanted.keys():
        raise CallError(
            f"expected the same parts of all clients, got {several(list(wanted))} of "
            f"{first}, and {several(list(looks))} of {name}"
        )
    mine, theirs = _alike(looks), _alike(wanted)
    part = next(part for part, look in theirs.items() if mine[part] != look)
    raise CallError(
        f"expected the same dtype and shape of a row for all clients, got as {part} "
        f"{_said(wanted[part])} of {first}, and {_said(looks[part])} of {name}"
    )


def _alike(looks: Looks) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return looks as they are compared: a long process may have one of them twice."""
    return {name: (look.dtype, look.shape) for name, look in looks.items()}


def _said(look: Spec) -> str:
    return f"{str(look.dtype).removeprefix('torch.')} {list(look.shape)}"


class SimulatedData(NamedTuple):
    """Whose rows a simulation has.

    Attributes:
        source: the rows.
        looks: of a row of each part; None if that shows when they are loaded.
    """

    source: Source
    looks: Looks | None


# Any: whatever the caller passed, which is checked.
def simulated_data(data: Any, clients: Any = None) -> SimulatedData:
    """Return whose rows a simulation has.

    Args:
        data: each client's data set by its name; or one data set; or a function that
            returns a client's data set, called with its name. A data set is a pair of
            features and target, an ``obhut.LocalDataset`` or PyTorch's
            ``TensorDataset`` of two, or a mapping of parts.
        clients: of one data set, how it is dealt: ``obhut.iid(100)`` and its like, a
            ``Partition``, or numbers of rows by name. Of a function, the clients'
            names, or how many there are.

    Raises:
        CallError: if it is none of these, with the line to write.
        NotSendableError: if a part is no plain tensor.
    """
    if isinstance(clients, Partitioner | Mapping):
        return _dealt(data, clients)
    if isinstance(data, Mapping) and clients is None and not _one_data_set(data):
        return _given(data)
    if callable(data) and not hasattr(data, "tensors"):
        return SimulatedData(Called(data, _names(clients), parts_of), None)
    parts_of(data)  # which says what is no data set
    raise CallError(
        "expected how one data set is dealt to clients: "
        "obhut.simulate(data, obhut.iid(100)), or numbers of rows by name, "
        f'{{"ann": [0, 1], "bob": [2]}}, got {_said_of(clients)}'
    )


def _one_data_set(data: Mapping[Any, Any]) -> bool:
    return any(isinstance(one, torch.Tensor) for one in data.values())


def _given(data: Mapping[str, Any]) -> SimulatedData:
    names = _checked(list(data))
    parts = {name: parts_of(data[name], name) for name in names}
    first, *others = names
    wanted = looks_of(parts[first])
    for name in others:
        check_alike(name, looks_of(parts[name]), first, wanted)
    return SimulatedData(Given(parts), wanted)


def _dealt(data: Any, clients: Partitioner | Mapping[str, Any]) -> SimulatedData:
    parts = parts_of(data)
    target = parts["target"]
    if isinstance(clients, Partitioner):
        partition = clients(parts)
    elif isinstance(clients, Partition):
        partition = clients
    else:
        partition = Partition(clients, target)
    if partition.rows != len(target):
        raise CallError(
            f"expected a partition of {len(target):,} rows, as the data set has, got "
            f"one of {partition.rows:,}"
        )
    names = _checked(list(partition))
    places = {name: partition[name] for name in names}
    return SimulatedData(Divided(parts, places), looks_of(parts))


def _names(clients: Any) -> tuple[str, ...]:
    """Return the names of clients whose rows a function loads."""
    count = whole(clients)
    if count is not None and count > 0:
        return tuple(client_names(count))
    if not isinstance(clients, Iterable) or isinstance(clients, str | bytes | Set):
        raise CallError(
            "expected the names of the clients whose data is loaded, or how many there "
            f'are: obhut.simulate(load, ["bob", "alice"]), got {_said_of(clients)}'
        )
    return _checked([*clients])


def _said_of(clients: Any) -> str:
    short = isinstance(clients, int | str | None)
    return repr(clients) if short else described(clients)


def _checked(names: Sequence[Any]) -> tuple[str, ...]:
    """Return names that can be a worker's, each once."""
    if not names:
        raise CallError("expected a client or more, got none")
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise CallError(
                f'expected clients\' names to be text, as f"client-{{n}}", got {name!r}'
            )
        if len(name) > TEXT_CHARACTERS:
            raise CallError(
                f"expected names of at most {TEXT_CHARACTERS:,} characters, got one of "
                f"{len(name):,}"
            )
    again = [name for name, times in Counter(names).items() if times > 1]
    if again:
        raise CallError(f"expected each client once, got {several(again)} again")
    return tuple(names)
