"""A round of simulated clients, or a measurement: written once, done at all of them.

::

    def local(data, own):                        # with remote tensors, as at any worker
        ratio = training.run(send_copy(model, data.location), data)
        return Wanted(summed=[ratio.numerator, ratio.denominator])

    found = Written(clients, local, staying).played()
    loss = found.sums[0] / found.sums[1]

Rules:

- What is written down are the requests that a worker would get from the same code.
- A client's own state comes to this process and goes with its next turn, wherever that
  is computed.
- What can not be written down raises before anything is done at a client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from obhut.client.functions import send
from obhut.client.hidden_dataset import HiddenDataset
from obhut.client.remote_dataset import RemoteDataset
from obhut.client.remote_tensor import RemoteTensor
from obhut.client.template import AskedError, Template
from obhut.errors import CallError, NonFiniteError, ProgramError
from obhut.protocol.codec import Frame
from obhut.worker.shapes import Spec
from obhut.worker.tasks import Averaged, Summed, Sums, Task, Turn
from obhut.worker.tensors import DTYPE_NAMES

from .clients import Clients
from .staying import Apart, Own, Staying, here, look_at

UNWRITTEN = (AskedError, ProgramError)
"""They keep something from being written down; each client is asked by itself then."""


def opened(clients: Clients, staying: Staying) -> None:
    """Let clients that are asked one by one have what they keep in this process."""
    for place, data in zip(clients.places, clients, strict=True):
        apart = staying.apart.pop(place, None)
        if apart is not None:

            def there(
                look: Spec, frame: Frame, data: RemoteDataset = data
            ) -> torch.Tensor:
                return send(here(look, frame), data.location)

            staying.own[place] = apart.own(there)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is made of the clients' results.

    Attributes:
        averaged: remote tensors by name, of which a weighted mean is made.
        before: those that were sent, by the same names, whose change is added up.
        here: what was sent, likewise.
        summed: remote scalars or tensors, float64.
        own: what a client keeps for its next turn.
        weight: a remote scalar, what it weighs; None for what the caller says, or 1.
        by_rows: whether it weighs as much as it has rows instead.
    """

    averaged: Mapping[str, torch.Tensor] = field(default_factory=dict)
    before: Mapping[str, torch.Tensor] = field(default_factory=dict)
    here: Mapping[str, torch.Tensor] = field(default_factory=dict)
    summed: Sequence[torch.Tensor] = ()
    own: Own = field(default_factory=Own)
    weight: torch.Tensor | None = None
    by_rows: bool = False


Local: TypeAlias = Callable[[HiddenDataset, Own], Wanted]
"""Does something at a client, with remote tensors."""


class Found(NamedTuple):
    """What comes of all clients.

    Attributes:
        means: by name.
        sums: in order, float64.
        own: what each keeps, by its place.
    """

    means: dict[str, torch.Tensor]
    sums: list[torch.Tensor]
    own: dict[int, Apart]


class How(NamedTuple):
    """How simulated clients are computed.

    Attributes:
        exact: whether training comes to the same as PyTorch's, digit for digit.
        retries: how often clients are asked again whose process was lost.
    """

    exact: bool = True
    retries: int = 0


EXACTLY = How()
"""Digit for digit, and without trying again."""


class Written:
    """Something that is done at each client, written down.

    Args:
        clients: who takes part.
        local: what is done at one, with remote tensors, given its rows and its own.
        staying: what each keeps.

    Raises:
        AskedError, ProgramError: if it can't be written down.
    """

    def __init__(self, clients: Clients, local: Local, staying: Staying) -> None:
        self._clients = clients
        self._forms: dict[object, _Form] = {}
        self._kinds: list[tuple[_Form, tuple[Frame, ...]]] = []
        self._shared = _Shared()
        try:
            for place in clients.places:
                apart = staying.apart.get(place)
                key = None if apart is None else _kind(apart)
                form = self._forms.get(key)
                if form is None:
                    form = self._forms[key] = _Form(clients, len(self._forms))
                    form.write(local, apart)
                self._kinds.append((form, () if apart is None else apart.frames))
            self._tasks = [form.task(self._shared) for form in self._forms.values()]
        except BaseException:
            self._close()
            raise

    def played(
        self,
        weights: Sequence[float] | None = None,
        advice: str = "",
        how: How = EXACTLY,
    ) -> Found:
        """Do it, once, and return what comes of all clients.

        Args:
            weights: of each; by default what was written down.
            advice: what the error says after how many clients were spoilt.
            how: they are computed.

        Raises:
            NonFiniteError: if something of a client's is NaN or infinite.
            ObhutError: what went wrong at a client, with its name.
        """
        try:
            return self._played(weights, advice, how)
        finally:
            self._close()

    def _close(self) -> None:
        """Let go of what was written down."""
        for form in self._forms.values():
            form.template.close()

    def _played(self, weights: Sequence[float] | None, advice: str, how: How) -> Found:
        clients, forms = self._clients, [*self._forms.values()]
        given = [None] * len(clients) if weights is None else [*map(float, weights)]
        turns = [
            Turn(name, form.number, weight, frames)
            for name, (form, frames), weight in zip(
                clients.names, self._kinds, given, strict=True
            )
        ]
        sums = clients.simulation.crew.play(
            self._tasks,
            self._shared.frames,
            turns,
            exact=how.exact,
            retries=how.retries,
        )
        for failure in sums.failures:
            template = forms[failure.task].template
            raise template.error(failure.failed, failure.client)
        if sums.spoilt:
            raise NonFiniteError(len(sums.spoilt), len(clients), _named(sums, advice))
        names = [*forms[0].wanted.averaged]
        if names and not sums.weight > 0:
            raise CallError(
                "expected rows to train on, or weights above 0, got neither of any of "
                f"{len(clients)} clients: {', '.join(clients.names[:_SHOWN])}"
            )
        pairs = zip(names, self._tasks[0].averaged, strict=True)
        here = forms[0].wanted.here
        bases = [None if one.frame is None else here[name] for name, one in pairs]
        means = sums.means(self._tasks[0], bases)
        own = {
            place: form.apart(sums.own[name])
            for place, name, (form, _) in zip(
                clients.places, clients.names, self._kinds, strict=True
            )
            if name in sums.own
        }
        means_by_name = dict(zip(names, means, strict=True))
        return Found(means_by_name, sums.sums(self._tasks[0]), own)


def _named(sums: Sums, advice: str) -> str:
    """Return advice with the names of some who were spoilt."""
    shown = ", ".join(sums.spoilt[:_SHOWN])
    more = len(sums.spoilt) - _SHOWN
    return f"{advice}. It was {shown}{f' and {more} more' if more > 0 else ''}"


_SHOWN = 5


class _Shared:
    """The frames that all clients get, each once.

    Attributes:
        frames: they.
    """

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._places: dict[tuple[int, int], int] = {}

    def place(self, frame: Frame) -> int:
        """Return where a frame is, the same for the same memory."""
        size = len(frame)
        view = np.frombuffer(frame, dtype=np.uint8) if size else None
        key = (0 if view is None else view.ctypes.data, size)
        if key not in self._places:
            self._places[key] = len(self.frames)
            self.frames.append(frame)
        return self._places[key]


class _Form:
    """What clients of one kind are asked: those who keep something, or the others.

    Args:
        clients: all who take part.
        number: the task's.

    Attributes:
        number: as given.
        template: where it is written down.
        wanted: what is made of it.
    """

    wanted: Wanted

    def __init__(self, clients: Clients, number: int) -> None:
        self.number = number
        self.template = Template(clients.simulation.looks)
        self._only, self._alone = clients.only, len(clients) == 1

    def write(self, local: Local, apart: Apart | None) -> None:
        """Write down what is done.

        Args:
            local: does it.
            apart: what such a client keeps.
        """
        template, data, own = self.template, self.template.data, Own()
        if self._only is not None:
            data = data.taking(self._only)
        if apart is not None:
            own = apart.own(lambda look, frame: template.given(look))
        self.wanted = local(data, own)
        kept, more = (tuple(sorted(part)) for part in self.wanted.own)
        self._own = [part[key] for part in self.wanted.own for key in sorted(part)]
        self._kept = Apart(kept, more, tuple(map(look_at, self._own)), ())

    def apart(self, frames: tuple[Frame, ...]) -> Apart:
        """Return what a client keeps."""
        return self._kept._replace(frames=frames)

    def task(self, shared: _Shared) -> Task:
        """Return the task, and add its frames to those that all get.

        A client's own frames come first, in the order in which they were given.
        """
        wanted = self.wanted
        batch, places = self.template.finish(shared.place)
        averaged = []
        for name, one in wanted.averaged.items():
            before = wanted.before.get(name)
            frame = None  # of one client alone the mean is what it has, to the bit
            if before is not None and not self._alone and _alike(before, one):
                frame = places.get(_id(before))
            shape = tuple(one.shape)
            averaged.append(Averaged(_id(one), DTYPE_NAMES[one.dtype], shape, frame))
        return Task(
            batch,
            tuple(averaged),
            tuple(Summed(_id(one), tuple(one.shape)) for one in wanted.summed),
            tuple(map(_id, self._own)),
            None if wanted.weight is None else _id(wanted.weight),
            wanted.by_rows,
        )


def _kind(apart: Apart) -> object:
    """Return what is the same for clients who keep the like."""
    looks = [(one.shape, one.dtype, one.requires_grad) for one in apart.looks]
    return apart.kept, apart.more, *looks


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.shape, one.dtype) == (other.shape, other.dtype)


def _id(tensor: torch.Tensor) -> int:
    """Return a remote tensor's id."""
    if not isinstance(tensor, RemoteTensor):
        raise AskedError("what a client delivers is not there")
    return tensor._held.id
