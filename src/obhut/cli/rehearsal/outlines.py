"""What a rehearsal is told: of each worker its policy, and what its data look like.

Leak: nothing here is or depends on a value; shapes are those that a session would see,
and of hidden rows there are as many as is written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from obhut.errors import ConfigurationError
from obhut.guard import policy as policies
from obhut.guard.policy import Quorum
from obhut.host import principals
from obhut.host.configuration import WorkerConfiguration
from obhut.host.data import datasets
from obhut.host.data.datasets import Dataset
from obhut.transports.grpc.description import DatasetDescription, describe
from obhut.transports.pipe.loading import loading

HIDDEN = 1_000
"""Rows of what stands for a data set whose number of rows is hidden."""


class Field(Struct, frozen=True):
    """One tensor of a data set.

    Attributes:
        name: ``features``, ``target`` or an array's own name.
        dtype: its element type.
        shape: its sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class DatasetOutline(Struct, frozen=True):
    """A data set without its values.

    Attributes:
        public: what is said of it to those who may open a session.
        parts: its tensors.
    """

    public: DatasetDescription
    parts: tuple[Field, ...]


class Outline(Struct, frozen=True):
    """A worker without its data.

    Attributes:
        name: the worker's.
        policy: its policy, encoded, with names in place of ids.
        datasets: its data sets.
    """

    name: str
    policy: str
    datasets: tuple[DatasetOutline, ...] = ()

    @property
    def quorum(self) -> Quorum:
        """The policy.

        Raises:
            RemoteProtocolError: if it is none.
        """
        return _guarding(policies.decode(self.policy.encode()), self.name)


class Plan(Struct, frozen=True):
    """What is rehearsed.

    Attributes:
        script: the file.
        args: its arguments.
        outlines: of all workers that there are.
        walls: whether it must be kept from files and network.
    """

    script: str
    args: tuple[str, ...]
    outlines: tuple[Outline, ...]
    walls: bool = True


def outline(configuration: WorkerConfiguration, file: Path) -> Outline:
    """Read a worker's data sets and return what they look like.

    Raises:
        ConfigurationError: if the policy lets everything leave.
        DatasetError: if a data set can not be loaded.
    """
    policy = _guarding(configuration.policy, str(file))
    names = {str(peer.id): str(peer.name) for peer in configuration.peers}
    renamed = msgspec.structs.replace(
        policy,
        **{
            clause: tuple(names.get(one, one) for one in getattr(policy, clause))
            for clause in principals.CLAUSES
        },
    )
    loaded = datasets.load(
        configuration.datasets,
        policy.minimum_rows,
        guarded=True,
        run=loading(configuration),
        space=configuration.space,
    )
    return Outline(
        str(configuration.id),
        policies.encode(renamed).decode(),
        tuple(_outlined(one) for one in loaded.values()),
    )


def with_others(outlines: Iterable[Outline]) -> list[Outline]:
    """Return outlines of all whom policies name: owners first, then aggregators.

    An owner who is only named gets data sets, and a policy, like those of the first.
    """
    known = {one.name: one for one in outlines}
    first = next(iter(known.values()))
    owners = dict(known)
    aggregators: dict[str, Outline] = {}
    for one in known.values():
        for name in one.quorum.contributors:
            owners.setdefault(name, msgspec.structs.replace(first, name=name))
        for name in one.quorum.aggregators:
            aggregators.setdefault(name, Outline(name, first.policy))
    return [*owners.values(), *(a for n, a in aggregators.items() if n not in known)]


def _outlined(one: Dataset) -> DatasetOutline:
    return DatasetOutline(
        describe(one),
        tuple(
            Field(
                name,
                array.dtype,
                (HIDDEN, *array.shape[1:]) if one.hidden else tuple(array.shape),
            )
            for name, array in one.tensors.items()
        ),
    )


def _guarding(policy: policies.Policy, file: str) -> Quorum:
    """Return a policy that keeps something in.

    Raises:
        ConfigurationError: if it does not.
    """
    if not isinstance(policy, Quorum):
        raise ConfigurationError(
            file,
            "kind of [policy]",
            "UnsafeOpen lets everything leave, so that there is nothing to rehearse",
            'write kind = "Quorum" with aggregators, contributors and requesters',
        )
    return policy
