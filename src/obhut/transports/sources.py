"""The data of many simulated clients, in the three forms in which it is given.

::

    Given({"ann": {"features": x, "target": y}, ...})    # tensors of each
    Divided({"features": x, "target": y}, {"ann": places, ...})   # rows of one of them
    Called(load, ["ann", "bob"])                         # load("ann"), when needed
    rows = Kept(source)                                  # rows("ann"), read once

Rules:

- A source is sent whole to wherever clients are computed, before any of them is.
- Rows that come out of one are not written to: they may be the source's own memory, or
  mapped to be read only.
"""

from __future__ import annotations

import os
import sysconfig
import threading
import traceback
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from obhut.errors import RemoteExecutionError

_LIBRARIES = tuple(
    sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")
)
"""Where code lies that is not the caller's."""

Tensors: TypeAlias = Mapping[str, torch.Tensor]
"""A client's data by part, ``features``, ``target`` and what else there is."""


class Source(Protocol):
    """The data of many clients."""

    @property
    def own(self) -> bool:
        """Whether what is returned is made anew each time, and is worth keeping."""

    @property
    def names(self) -> Sequence[str]:
        """The clients' names, in order."""

    def __call__(self, name: str) -> Tensors:
        """Return a client's data."""

    def count(self, name: str) -> int | None:
        """Return how many rows a client has; None if that shows when it is loaded."""


@dataclass(frozen=True)
class Given:
    """Tensors of each client.

    Attributes:
        data: by client and part.
        own: as of a ``Source``.
    """

    data: Mapping[str, Tensors]
    own: bool = False

    @property
    def names(self) -> Sequence[str]:
        """The clients' names, in order."""
        return tuple(self.data)

    def __call__(self, name: str) -> Tensors:
        """Return a client's data: the tensors themselves."""
        return self.data[name]

    def count(self, name: str) -> int:
        """Return how many rows a client has."""
        return _count(self.data[name])


@dataclass(frozen=True)
class Divided:
    """One data set, and which of its rows are whose.

    Attributes:
        data: by part, (rows, ...) each.
        places: by client, (its rows,) int64.
        own: as of a ``Source``.
    """

    data: Tensors
    places: Mapping[str, torch.Tensor]
    own: bool = True

    @property
    def names(self) -> Sequence[str]:
        """The clients' names, in order."""
        return tuple(self.places)

    def __call__(self, name: str) -> Tensors:
        """Return a copy of a client's rows."""
        places = self.places[name]
        return {part: one.index_select(0, places) for part, one in self.data.items()}

    def count(self, name: str) -> int:
        """Return how many rows a client has."""
        return len(self.places[name])


# Any: a function's own, which is to be tensors by part.
def _as_loaded(loaded: Any, name: str) -> Tensors:
    """Return what was loaded as it is."""
    found: Tensors = loaded
    return found


@dataclass(frozen=True)
class Called:
    """A function that loads a client's data.

    What it draws from torch's generator follows from the client's name: so it loads the
    same in whatever process, and again, and nobody else's numbers change.

    Attributes:
        load: takes a name, returns the client's data.
        called: the clients' names, in order.
        check: takes what was loaded and the name, returns tensors by part, or raises.
        own: as of a ``Source``.
    """

    load: Callable[[str], object]
    called: Sequence[str]
    check: Callable[[object, str], Tensors] = _as_loaded
    own: bool = True

    @property
    def names(self) -> Sequence[str]:
        """The clients' names, in order."""
        return tuple(self.called)

    def __call__(self, name: str) -> Tensors:
        """Return what the function loads.

        Raises:
            RemoteExecutionError: if it fails; it names the client and the line.
            ObhutError: if what it returns is no data.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(zlib.crc32(name.encode()))
                loaded = self.load(name)
        except Exception as error:
            raise _failed(name, error) from error
        return self.check(loaded, name)

    def count(self, name: str) -> None:
        """Return None: nobody knows before it is loaded."""


class Kept:
    """What a source returned last, up to a limit.

    Args:
        source: the data.
        limit: bytes of what is kept, the last client's in any case.
        device: where the tensors are wanted.
    """

    def __init__(
        self,
        source: Source,
        limit: int = 1 << 30,
        device: torch.device | str = "cpu",
    ) -> None:
        self._source, self._limit = source, limit
        self._device = torch.device(device)
        self._kept: OrderedDict[str, Tensors] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self._names = frozenset(source.names)

    def __contains__(self, name: str) -> bool:
        """Tell whether a client has data."""
        return name in self._names

    def __call__(self, name: str) -> Tensors:
        """Return a client's data, which is not written to.

        Raises:
            RemoteExecutionError: if it can't be loaded.
        """
        with self._lock:
            parts = self._kept.get(name)
            if parts is not None:
                self._kept.move_to_end(name)
                return parts
            parts = {
                part: one.to(self._device) for part, one in self._source(name).items()
            }
            if self._source.own or self._device.type != "cpu":
                self._keep(name, parts)
            return parts

    def _keep(self, name: str, parts: Tensors) -> None:
        self._kept[name] = parts
        self._size += _size(parts)
        while self._size > self._limit and len(self._kept) > 1:
            self._size -= _size(self._kept.popitem(last=False)[1])


def copied(rows: Tensors) -> dict[str, torch.Tensor]:
    """Return rows that may be written to, as tensors that are loaded may be."""
    return {part: tensor.clone() for part, tensor in rows.items()}


def _count(parts: Tensors) -> int:
    """Return how many rows tensors have."""
    return next((len(tensor) for tensor in parts.values() if tensor.dim()), 1)


def _size(parts: Tensors) -> int:
    return sum(tensor.nbytes for tensor in parts.values())


def _failed(name: str, error: Exception) -> RemoteExecutionError:
    """Return what names the client and the line at which its data was not loaded.

    That is the last one which is no library's, if there is one.
    """
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [one for one in frames if not one.filename.startswith(_LIBRARIES)] or frames
    site = f"{own[-1].filename}:{own[-1].lineno}" if own else ""
    text = f"{type(error).__name__}: {error}"
    return RemoteExecutionError("loading its data", name, text, site)
