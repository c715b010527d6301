"""A stage of workers that are served elsewhere, with all rules on.

No rule can be switched off there, so it shows nothing of a rule; it shows that what is
refused by a virtual worker is refused over a network.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

import torch

from obhut.guard.policy import Quorum
from obhut.transports import Transport

from .stage import Evidence, Stage


class ServedStage(Stage):
    """Workers with private data, and an attacker's means.

    Args:
        workers: the workers' names.
        way: returns somebody's way to a worker: the worker, and who.
        private: what owners hold, by owner.
        policies: what owners decided, by owner.
    """

    def __init__(
        self,
        workers: Sequence[str],
        way: Callable[[str, str], Transport],
        private: Mapping[str, list[torch.Tensor]],
        policies: Mapping[str, Quorum],
    ) -> None:
        self.evidence = Evidence(private=dict(private), policies=dict(policies))
        self.sessions = secrets.token_hex(8)
        self.permitted = []
        self.at = {}
        self._way = way
        self._sessions = 0
        self._records = []
        self._clients = []
        for id in workers:
            self.at[id] = self.enter(id)

    def way(self, id: str, principal: str) -> Transport:
        """Return somebody's way to a worker."""
        return self._way(id, principal)
