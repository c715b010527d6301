"""Which owners take part in a round.

::

    sample = Sample(10, owners)                  # or a share below 1; None for all
    places = sample.drawn(seed, number)          # the same for the same seed and round

Rules:

- Each round draws anew, without repetition, each owner as likely as another.
- Under a policy it is refused, before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from obhut.client.remote_dataset import RemoteDataset
from obhut.errors import CallError

from .clients import Clients
from .data_parts import whole
from .dealing import derived, drawing

_REFUSED = (
    "participants= is for open workers, and {} has a policy: what an aggregator "
    "releases counts over all rounds, so that sums over changing owners would single "
    "out one of them, and are refused. To train with some of the owners, make a "
    "Federation of these; to sample under a policy takes noise, which it does not add"
)


class Sample:
    """How many owners take part in each round.

    Args:
        participants: how many, or a share of them below 1; None for all.
        owners: all of them.

    Attributes:
        participants: as given.
        size: how many that is.
        total: how many there are.

    Raises:
        CallError: if it is no such number, or an owner is under a policy.
    """

    def __init__(
        self, participants: float | None, owners: Sequence[RemoteDataset]
    ) -> None:
        self.participants = participants
        self.total = self.size = len(owners)
        if participants is None:
            return
        self.size = _size(participants, self.total)
        if isinstance(owners, Clients):
            return
        for data in owners:
            if data.location.session.guarded():
                raise CallError(_REFUSED.format(data.location.id))

    @property
    def share(self) -> float:
        """How many of all owners take part, from 0 to 1."""
        return self.size / self.total

    def drawn(self, seed: int, number: int) -> list[int]:
        """Return the places of who takes part in a round, in order.

        Args:
            seed: of the training.
            number: the round's.
        """
        if self.size == self.total:
            return list(range(self.total))
        generator = drawing(derived(f"participants {seed} {number}", 63))
        drawn = torch.randperm(self.total, generator=generator)[: self.size]
        return sorted(drawn.tolist())


def _size(participants: float, total: int) -> int:
    """Return how many owners take part."""
    number = whole(participants)
    if number is not None and 1 <= number <= total:
        return number
    if isinstance(participants, float) and 0 < participants <= 1:
        return max(1, round(participants * total))
    raise CallError(
        f"expected participants from 1 to {total}, or a share above 0.0 and up to 1.0, "
        f"got {participants!r}"
    )
