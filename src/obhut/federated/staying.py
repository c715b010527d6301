"""What stays at owners from round to round, in their sessions.

::

    staying = Staying()
    sent = staying.sent(snapshot(model), owner, place, keep=["head"])
    staying.kept[place] = kept(sent, ["head"])   # after a round that was whole

Rules:

- What is frozen is sent once to each session, and again if it was changed here.
- What is kept was never here after the first round: an owner goes on with its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from obhut.client.functions import copy
from obhut.client.modules import send_copy
from obhut.client.remote_dataset import RemoteDataset

from .parameters import frozen, kept, named_tensors


@dataclass(slots=True)
class Staying:
    """What stays at owners from round to round, in their sessions.

    Attributes:
        frozen: of each owner what was sent and does not change, by name.
        kept: likewise what never leaves it.
    """

    frozen: dict[int, dict[str, tuple[Any, torch.Tensor]]] = field(default_factory=dict)
    kept: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def sent(
        self,
        before: nn.Module,
        owner: RemoteDataset,
        place: int,
        keep: Sequence[str] = (),
        taken: Mapping[str, torch.Tensor] | None = None,
    ) -> nn.Module:
        """Send a copy of a model, but for what an owner has of it.

        Args:
            before: the model, here.
            owner: the owner.
            place: its number.
            keep: the names of what it keeps.
            taken: tensors that are there already, by name, and become the copy's.
        """
        session = owner.location.session
        known = self.frozen.setdefault(place, {})
        still = {
            name: (one.data_ptr(), one._version, session)
            for name, one in frozen(before).items()
        }
        own = kept(before, keep)
        there = {
            name: known[name][1]
            for name, look in still.items()
            if name in known and known[name][0] == look and name not in own
        }
        there |= self._own(place, keep)  # copies: a round may fail
        there |= taken or {}
        model = send_copy(before, owner.location, there)
        named = named_tensors(model)
        known.update({name: (look, named[name]) for name, look in still.items()})
        return model

    def _own(self, place: int, keep: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return copies of what an owner keeps, by name.

        Args:
            place: the owner's number.
            keep: the names of what it keeps.
            taken: tensors that are there already, by name, and become the copy's.
        """
        return {
            name: copy(one)
            for name, one in self.kept.get(place, {}).items()
            if any(name == prefix or name.startswith(f"{prefix}.") for prefix in keep)
        }
