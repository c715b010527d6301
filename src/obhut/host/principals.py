"""Whom the names in a policy stand for.

Rules:

- A name is this worker's own, that of a ``[[peer]]``, or that of somebody pinned.
- A name that stands for nobody is refused: a policy that names a typing error would
  count fewer people than its owner thinks.
- Two contributors who are one person are refused, so the old key and the new one of a
  peer who changes it: they would count as two. So is an aggregator who contributes.
  Requesters may be listed with both keys; nobody counts them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from obhut.errors import ConfigurationError, PolicyError
from obhut.guard.policy import Policy, Quorum, counted

from .configuration import WorkerConfiguration
from .wording import quote

CLAUSES = ("aggregators", "contributors", "requesters")
"""The clauses of a policy that list principals."""


class Known(Protocol):
    """Somebody who is known by their key.

    Attributes:
        name: what they are called here; the same for the key that they had before.
        id: of the key that was asked for.
    """

    @property
    def name(self) -> str:
        """What they are called."""

    @property
    def id(self) -> str:
        """Of the key that was asked for."""


def resolve(
    configuration: WorkerConfiguration,
    own: str,
    find: Callable[[str], Known | None],
) -> Policy:
    """Return a worker's policy with ids in place of names.

    Args:
        configuration: the worker's.
        own: the id of its key.
        find: returns who is pinned under a name or an id, if anybody is.

    Raises:
        ConfigurationError: if a name stands for nobody, or two for one; if too few
            are named, or an aggregator has data.
    """
    policy = configuration.policy
    if not isinstance(policy, Quorum):
        return policy
    known = names(configuration, own)
    changed = {}
    people: dict[str, str] = {}
    for clause in CLAUSES:
        ids: list[str] = []
        for entry in getattr(policy, clause):
            id = known.get(entry)
            if id is None and (pinned := find(entry)) is not None:
                id = pinned.id
            if id is None and re.fullmatch(r"[a-z2-7]{52}", entry):
                id = entry
            if id is None:
                raise _error(
                    configuration,
                    clause,
                    f"nobody is known as {quote(entry)}",
                    "pin them with obhut invite or obhut join, add a [[peer]], or "
                    "write their id",
                )
            who = find(id) if clause != "requesters" else None
            before = people.setdefault(who.name, id) if who is not None else id
            if who is not None and before != id:
                raise _error(
                    configuration,
                    clause,
                    f"{quote(entry)} is {who.name}, who is listed already, by another "
                    f"of their keys: {before} and {id}",
                    "list them once: one person would count as two",
                )
            ids.append(id)
        changed[clause] = tuple(ids)
    try:
        resolved = msgspec.structs.replace(policy, **changed)
    except PolicyError as error:
        raise _error(configuration, error.key, error.problem, error.advice) from error
    if own in resolved.aggregators and configuration.datasets:
        raise _error(
            configuration,
            "aggregators",
            "this worker is an aggregator by it, and has data sets",
            "an aggregator holds no data of its own: let another worker serve them",
        )
    count = len(counted(own, resolved))
    if count < resolved.quorum:
        raise _error(
            configuration,
            "contributors",
            f"{resolved.quorum} owners are needed, and with this worker there are "
            f"{count}: nothing could leave",
            "list more owners, or lower honest or colluders",
        )
    return resolved


def names(configuration: WorkerConfiguration, own: str) -> Mapping[str, str]:
    """Return the ids of those whom a configuration names, by name."""
    known = {str(peer.name): str(peer.id) for peer in configuration.peers}
    return {**known, str(configuration.id): own}


def _error(
    configuration: WorkerConfiguration, clause: str, problem: str, advice: str
) -> ConfigurationError:
    return ConfigurationError(
        str(configuration.folder), f"{clause} of [policy]", problem, advice
    )
