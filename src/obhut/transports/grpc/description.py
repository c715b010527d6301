"""What a worker says of itself to those who may ask.

Leak: all of it leaves the worker; it is what its owner declared public.
"""

from __future__ import annotations

from msgspec import Struct

from obhut.host.data.datasets import Dataset

_OURS = frozenset(("features", "target", "lengths", "target_lengths"))
"""Names that tell nothing of a file: all data sets may have them."""


class DatasetDescription(Struct, frozen=True):
    """A data set, as far as it is public.

    Attributes:
        name: what it is found by.
        tags: what it is searched by.
        description: a sentence.
        parts: the tensors that it is made of; none if their names are private.
        columns: the names of columns, by part.
        dtypes: element types, by part, likewise.
        rows: how many; None where that is private.
        rounded: whether ``rows`` is rounded.
        shapes: the sizes of a row, by part, where a policy hides how many there are.
        hidden: whether it does: then programs go through the rows, and no part is
            loaded.
    """

    name: str
    tags: tuple[str, ...] = ()
    description: str = ""
    parts: tuple[str, ...] = ()
    columns: dict[str, tuple[str, ...]] = {}
    dtypes: dict[str, str] = {}
    rows: int | None = None
    rounded: bool = False
    shapes: dict[str, tuple[int, ...]] = {}
    hidden: bool = False


def describe(dataset: Dataset) -> DatasetDescription:
    """Return what is said of a data set."""
    public = dataset.public
    told = public.names is not None or dataset.tensors.keys() <= _OURS
    parts = tuple(sorted(dataset.tensors)) if told else ()
    return DatasetDescription(
        str(dataset.name),
        dataset.tags,
        dataset.description,
        parts,
        {name: tuple(columns) for name, columns in (public.names or {}).items()},
        {part: public.dtypes[part] for part in parts if public.dtypes is not None},
        public.rows,
        public.rounded,
        {part: public.shapes[part] for part in parts if public.shapes is not None},
        dataset.hidden,
    )


class WorkerDescription(Struct, frozen=True):
    """A worker, as far as it is public.

    Attributes:
        name: the worker's name.
        id: the hash of its key.
        sessions: how many it serves at present.
        datasets: its data, for those who may open a session.
        attached: ids of the workers that are attached to it, for those who may
            connect to them. Whether they are who it says only they can prove.
    """

    name: str
    id: str
    sessions: int
    datasets: tuple[DatasetDescription, ...] = ()
    attached: tuple[str, ...] = ()
