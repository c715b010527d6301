"""An aggregator's side of a session that tells judges what owners delivered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch

from obhut.guard.policy import Quorum, encode
from obhut.worker.adder import Adder
from obhut.worker.aggregation import Aggregation, SumStore, Wanted
from obhut.worker.sums import Contribution, Sum

Told: TypeAlias = Callable[[str, str, torch.Tensor], None]
"""Takes a contribution's key, owner and values."""


class Tapped(Aggregation):
    """Applies one session's requests at an aggregator.

    Args:
        store: the session's objects.
        policy: the operator's.
        told: learns of each contribution.
        off: the rules that are off.
    """

    def __init__(
        self,
        store: SumStore,
        policy: Quorum,
        told: Told,
        off: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(store, policy)
        self._told = told
        self._off = off
        if "sums: trimmed" in off:
            self._adder = _AnybodysAdder(store)

    def _policies(self, owned: Iterable[Contribution]) -> dict[str, bytes]:
        if "sums: one policy" in self._off:
            return {c.owner: encode(c.policy) for c in owned if c.policy is not None}
        return super()._policies(owned)

    def lacks(self, permitted: Iterable[Wanted]) -> bool:
        """Tell whether too few owners' contributions have come."""
        return "sums: came" not in self._off and super().lacks(permitted)

    def deliver(
        self,
        ids: Sequence[int],
        sender: str,
        tensors: Sequence[torch.Tensor],
        policy: Quorum | None,
        spoilt: bool = False,
        digests: Sequence[bytes] = (),
    ) -> None:
        """Hold what an owner delivered."""
        super().deliver(ids, sender, tensors, policy, spoilt, digests)
        for id in ids:
            held = self.store[id]
            if isinstance(held, Sum):
                for contribution in held.terms:
                    values = contribution.tensor.detach().clone()
                    self._told(contribution.key, sender, values)


class _AnybodysAdder(Adder):
    def _check_whose(self, terms: Iterable[Contribution]) -> None:
        pass
