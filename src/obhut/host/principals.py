"""Whom the names in a policy stand for.

Rules:

- A name is this worker's own, that of a ``[[peer]]``, or that of somebody pinned.
- A name that stands for nobody is refused: a policy that names a typing error would
  count fewer people than its owner thinks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from obhut.errors import ConfigurationError, PolicyError
from obhut.guard.policy import Policy, Quorum, counted

from .configuration import WorkerConfiguration
from .wording import quote

CLAUSES = ("aggregators", "contributors", "requesters")
"""The clauses of a policy that list principals."""


def resolve(
    configuration: WorkerConfiguration,
    own: str,
    find: Callable[[str], str | None],
) -> Policy:
    """Return a worker's policy with ids in place of names.

    Args:
        configuration: the worker's.
        own: the id of its key.
        find: returns the id of somebody who is pinned under a name, if anybody is.

    Raises:
        ConfigurationError: if a name stands for nobody, or two for one; if too few
            are named, or an aggregator has data.
    """
    policy = configuration.policy
    if not isinstance(policy, Quorum):
        return policy
    known = names(configuration, own)
    changed = {}
    for clause in CLAUSES:
        ids = []
        for entry in getattr(policy, clause):
            id = known.get(entry) or find(entry)
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
    people = len(counted(own, resolved))
    if people < resolved.quorum:
        raise _error(
            configuration,
            "contributors",
            f"{resolved.quorum} owners are needed, and with this worker there are "
            f"{people}: nothing could leave",
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
