"""What stays at owners from round to round.

::

    staying = Staying()
    sent = staying.sent(snapshot(model), owner, place, keep=["head"])
    staying.own[place] = Own(kept(sent, ["head"]), {})      # after a whole round
    staying.store(owners, "run 7", version=3)               # beyond their sessions
    again = recalled(owners, "run 7", 3, staying.names)

Rules:

- What is frozen is sent once to each session, and again if it was changed here.
- What is kept was never here after the first round: an owner goes on with its own. So
  with what a strategy keeps there.
- What is stored lies on an owner's disk, under a name and a number, and is whole before
  anything goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from obhut.client.functions import copy
from obhut.client.modules import send_copy
from obhut.client.remote_dataset import RemoteDataset
from obhut.protocol.codec import Frame
from obhut.worker.shapes import Spec, dense
from obhut.worker.tensors import DTYPE_NAMES, from_frame, to_frame

from .parameters import frozen, kept, named_tensors

Names: TypeAlias = tuple[list[str], list[str]]
"""Of what is kept of the model, and of what a strategy keeps."""


class Own(NamedTuple):
    """What one owner keeps.

    Attributes:
        kept: of the model, by name, there.
        more: what a strategy keeps, likewise.
    """

    kept: Mapping[str, torch.Tensor] = {}
    more: Mapping[str, torch.Tensor] = {}


class Apart(NamedTuple):
    """What one simulated client keeps, in this process.

    Attributes:
        kept: the names of what it keeps of the model.
        more: the names of what a strategy keeps.
        looks: of all of them, in order.
        frames: their bytes.
    """

    kept: tuple[str, ...]
    more: tuple[str, ...]
    looks: tuple[Spec, ...]
    frames: tuple[Frame, ...]

    @classmethod
    def of(
        cls, kept: Sequence[str], more: Sequence[str], tensors: Sequence[torch.Tensor]
    ) -> Apart:
        """Return what ``tensors`` returned, again."""
        looks = tuple(map(look_at, tensors))
        frames = tuple(bytes(to_frame(one)) for one in tensors)
        return cls(tuple(kept), tuple(more), looks, frames)

    def tensors(self) -> tuple[list[str], list[str], list[torch.Tensor]]:
        """Return the names, and the tensors here."""
        pairs = zip(self.looks, self.frames, strict=True)
        tensors = [here(look, frame) for look, frame in pairs]
        return list(self.kept), list(self.more), tensors

    def own(self, made: Callable[[Spec, Frame], torch.Tensor]) -> Own:
        """Return it at a worker.

        Args:
            made: returns a tensor there of a look and its bytes.
        """
        pairs = zip(self.looks, self.frames, strict=True)
        tensors = [made(look, frame) for look, frame in pairs]
        count = len(self.kept)
        return Own(
            dict(zip(self.kept, tensors[:count], strict=True)),
            dict(zip(self.more, tensors[count:], strict=True)),
        )


def look_at(tensor: torch.Tensor) -> Spec:
    """Return a tensor's look, as that of one that is kept."""
    look = dense(tuple(tensor.shape), tensor.dtype)
    return look.tracked if tensor.requires_grad else look


def here(look: Spec, frame: Frame) -> torch.Tensor:
    """Return a tensor of a look and its bytes, in this process."""
    made = from_frame(frame, DTYPE_NAMES[look.dtype], tuple(look.shape))
    return made.requires_grad_(look.requires_grad)


@dataclass(slots=True)
class Staying:
    """What stays at owners, by their numbers.

    Attributes:
        own: what each keeps for itself.
        apart: what simulated clients keep, which lies in this process.
        frozen: what was sent to each and does not change, by name.
    """

    own: dict[int, Own] = field(default_factory=dict)
    apart: dict[int, Apart] = field(default_factory=dict)
    frozen: dict[int, dict[str, tuple[Any, torch.Tensor]]] = field(default_factory=dict)

    @property
    def names(self) -> Names:
        """The names of what owners keep; all keep the same."""
        first = next(iter(self.own.values()), Own())
        return sorted(first.kept), sorted(first.more)

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
        stay = kept(before, keep)
        there = {
            name: known[name][1]
            for name, look in still.items()
            if name in known and known[name][0] == look and name not in stay
        }
        there |= {
            # A round that fails leaves them as they were.
            name: copy(one)
            for name, one in self.own.get(place, Own()).kept.items()
            if name in stay
        }
        there |= taken or {}
        model = send_copy(before, owner.location, there)
        named = named_tensors(model)
        known.update({name: (look, named[name]) for name, look in still.items()})
        return model


def store(
    owners: Sequence[RemoteDataset], own: Sequence[Own], name: str, version: int
) -> None:
    """Let owners keep what is their own beyond their sessions.

    Args:
        owners: all of them.
        own: what each keeps.
        name: of all that is stored.
        version: a number; the last two are there.

    Raises:
        ObhutError: why one does not.
    """
    for data, mine in zip(owners, own, strict=True):
        tensors = [part[key] for part in mine for key in sorted(part)]
        data.location.store(name, version, tensors)  # type: ignore[attr-defined] # a worker
    for data in owners:
        data.location.stored(name)  # type: ignore[attr-defined] # likewise


def recalled(
    owners: Sequence[RemoteDataset], name: str, version: int, names: Names
) -> dict[int, Own]:
    """Return what owners stored, by their numbers.

    Args:
        owners: all of them.
        name: of all that was stored.
        version: its number.
        names: of its tensors.

    Raises:
        ObhutError: if it is not there at one of them.
    """
    found: dict[int, Own] = {}
    for place, data in enumerate(owners):
        tensors = iter(data.location.recall(name, version))  # type: ignore[attr-defined] # a worker
        found[place] = Own(*({key: next(tensors) for key in part} for part in names))
    return found
