"""One reading of a worker's data sets, and the processes that have it.

::

    reading = Reading(datasets, settings, lost=…)
    walls = reading.ready()
    node = Node(…, lambda sender: reading.starting(names), …)
    later = Reading(datasets_read_anew, settings, lost=…)
    reading.in_use                               # until its last session has ended
    reading.close()

Rules:

- All processes of a session are of one reading, also one that takes another's place:
  who answers and who has the rows never differ in what data there is.
- A session has the data sets that its owner may use, and of others nothing.
- Who answers behind a policy comes of a process that never had the rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from functools import partial

from msgspec import structs

from obhut.host.closing import Closing
from obhut.host.data.datasets import Dataset
from obhut.protocol.limits import HIDDEN_ROWS
from obhut.transports.grpc.sessions import Starting
from obhut.transports.pipe.children import Children
from obhut.transports.pipe.control import Settings, SharedArray
from obhut.transports.pipe.parent import Child


class Reading(Closing):
    """Data sets, and what starts the processes of sessions on them.

    Duty: close it.

    Args:
        datasets: by name.
        settings: what holds for each process, but for the data.
        lost: called with each process that answers and ended unasked.

    Attributes:
        datasets: as given.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        settings: Settings,
        lost: Callable[[Child], None],
    ) -> None:
        self.datasets = datasets
        settings = structs.replace(settings, datasets=_shared(datasets))
        self._highs: Children | None = None
        self._handed: weakref.WeakSet[Starting] = weakref.WeakSet()
        if settings.policy and not settings.aggregates:
            self._highs = Children(structs.replace(settings, execution="high"))
            looks = tuple(map(_look, settings.datasets))
            settings = structs.replace(settings, datasets=looks, execution="low")
        self._children = Children(settings, lost=lost)

    def ready(self) -> frozenset[str]:
        """Wait until sessions can start; return the walls around their processes.

        Raises:
            SandboxError, TransportError: as ``Children.ready``.
        """
        walls = self._children.ready()
        if self._highs is not None:
            walls &= self._highs.ready()
        return walls

    def starting(self, names: Collection[str]) -> Starting:
        """Return what starts the processes of one session.

        Args:
            names: of the data sets that its owner may use.
        """
        names = frozenset(map(str, names))
        follows = None
        if self._highs is not None:
            follows = partial(self._highs.start, datasets=names)
        starting = Starting(partial(self._children.start, datasets=names), follows)
        self._handed.add(starting)
        return starting

    def changed(self, dataset: Dataset) -> bool:
        """Tell whether a data set is another one than it has under that name."""
        return self.datasets.get(dataset.name) is not dataset

    @property
    def in_use(self) -> bool:
        """Whether a session has it, or one that ended has still something to do."""
        highs = self._highs is not None and self._highs.holds
        return highs or self._children.holds or bool(len(self._handed))

    def close(self) -> None:
        """End all processes."""
        self._children.close()
        if self._highs is not None:
            self._highs.close()


def _shared(datasets: Mapping[str, Dataset]) -> tuple[SharedArray, ...]:
    """Return how children find the arrays that this process holds."""
    return tuple(
        SharedArray(
            str(dataset.name),
            str(part),
            array.dtype,
            array.shape,
            array.fd,
            dataset.hidden,
            (dataset.public.names or {}).get(part, ()),
        )
        for dataset in datasets.values()
        for part, array in dataset.tensors.items()
    )


def _look(one: SharedArray) -> SharedArray:
    """Return what a child learns of an array that knows no values of it."""
    shape = (HIDDEN_ROWS, *one.shape[1:]) if one.hidden else one.shape
    return structs.replace(one, fd=None, shape=shape)
