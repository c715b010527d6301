"""Where a configuration names somebody."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from obhut.guard.policy import Quorum

from .configuration import WorkerConfiguration
from .principals import CLAUSES


def mentions(
    configuration: WorkerConfiguration, called: Collection[str]
) -> Iterator[str]:
    """Yield the places, as an owner would look for them.

    Args:
        configuration: the configuration.
        called: the names and ids of whoever is meant.
    """
    for peer in configuration.peers:
        if peer.name in called or peer.id in called:
            yield f'the [[peer]] "{peer.name}"'
    policy, access = configuration.policy, configuration.access
    lists = {"sessions": access.sessions, "deliver": access.deliver}
    lists["attach"] = access.attach
    if isinstance(policy, Quorum):
        if access.sessions == policy.requesters:
            del lists["sessions"]  # it follows from the policy, and need not be there
        for clause in CLAUSES:
            if set(called) & set(getattr(policy, clause)):
                yield f"{clause} under [policy]"
    for dataset in configuration.datasets:
        if set(called) & set(dataset.requesters or ()):
            yield f'requesters of the [[dataset]] "{dataset.name}"'
    for key, entries in lists.items():
        if set(called) & set(entries):
            yield f"{key} under [access]"
