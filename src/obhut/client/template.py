"""What several workers are asked alike, written down once and sent to none.

::

    template = Template({"features": look, "target": look})
    model = send_copy(module, template)
    ratio = training.run(model, template.data)
    batch, places = template.finish(place)       # for each worker in turn
    template.error(failure, "client-7")          # with the line that asked

Rules:

- It stands for any of them: how many rows there are is hidden, since they differ.
- Nothing is answered. Who asks for a value gets ``AskedError``, and asks each worker
  instead.
- What each has of its own comes in frames after those that all get.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from msgspec import structs

from obhut.errors import InternalError, ObhutError
from obhut.protocol.codec import Frame
from obhut.protocol.messages import (
    AnyMessage,
    AnyRequest,
    Batch,
    DatasetRows,
    Failed,
    Put,
    TensorData,
    Welcome,
)
from obhut.transports.local import Arrived
from obhut.worker.effects import Parcel
from obhut.worker.shapes import Spec
from obhut.worker.tasks import DATASET
from obhut.worker.tensors import DTYPE_NAMES

from .call_site import CallSite
from .failures import to_exception
from .flights import Flight
from .held import Held
from .hidden_dataset import HiddenDataset
from .registry import WORKERS
from .remote_tensor import RemoteTensor
from .session import Session
from .workers import RemoteWorker


class AskedError(InternalError):
    """A value was asked for while requests were written down."""


class Template(RemoteWorker):
    """Stands for workers that are asked alike.

    Args:
        looks: what a row of each part of their data looks like.

    Attributes:
        data: their rows.
    """

    def __init__(self, looks: Mapping[str, Spec]) -> None:
        written = _Written()
        super().__init__(_Nowhere(), session=written)
        WORKERS.remove(self)  # nobody finds it by a name
        self._written = written
        rows = DatasetRows(DATASET, tuple(looks))
        self.data: HiddenDataset = _Rows(self, rows, list(looks.values()))

    def given(self, look: Spec) -> RemoteTensor:
        """Return a tensor that each worker has of its own, in the order of calls."""
        id = self.session.new_id()
        name, tracked = DTYPE_NAMES[look.dtype], look.requires_grad
        self.session.post(Put(id, TensorData(name, tuple(look.shape), 0, tracked)))
        held = Held(self.session, id, look.plain)
        if tracked:
            held.tracked().become_leaf(True)
        return RemoteTensor._of(held)

    def finish(self, place: Callable[[Frame], int]) -> tuple[Batch, dict[int, int]]:
        """Return what each worker is asked.

        Duty: keep what was sent with ``send_copy`` as it is until the workers are done.

        Args:
            place: takes a frame that all workers get, and returns where it is among
                those. In the batch they come after the worker's own.

        Returns:
            The batch, and by the id of what was sent where its frame is.

        Raises:
            AskedError: if requests were made under several default dtypes.
        """
        self.session.flush()
        return self._written.batch(place)

    def close(self) -> None:
        """Forget what was written down, and what it was made of."""
        super().close()
        self._written.clear()

    def error(self, failed: Failed, client: str) -> ObhutError:
        """Return what went wrong at one of the workers, with the line that asked."""
        sites = self._written.sites
        site = sites[failed.origin] if failed.origin < len(sites) else None
        return to_exception(failed, client, site)


class _Rows(HiddenDataset):
    """Rows of each worker."""

    __slots__ = ()

    def _hidden(self, why: str) -> AskedError:
        return AskedError("workers have different rows")


class _Nowhere:
    """The way to nobody; a ``Transport``."""

    worker = "simulated clients"
    address = ""
    eager = False
    mends = True
    shared = False

    def submit(self, message: AnyMessage, frames: Sequence[Frame] = ()) -> Arrived:
        """Say welcome."""
        return Arrived(Parcel(Welcome(0)))

    def progress(self, session: str, number: int) -> float | None:
        """Know nothing."""
        return None

    def close(self) -> None:
        """Do nothing."""


class _Written(Session):
    """A session whose requests are written down.

    Attributes:
        sites: the line that made each request.
    """

    def __init__(self) -> None:
        super().__init__(_Nowhere(), blocking=False)
        self.sites: list[CallSite | None] = []
        self._items: list[tuple[AnyRequest, Frame | None]] = []
        self._dtypes: set[torch.dtype] = set()

    def _submit(self, flight: Flight) -> None:
        """Write a batch down."""
        if flight.items:
            self._dtypes.add(flight.dtype)
        for request, site, frame in flight.items:
            if request.answered():
                raise AskedError("a value was asked for")
            if frame is not None and not memoryview(frame).readonly:
                frame = bytes(frame)  # noqa: PLW2901 # its tensor may change
            self._items.append((request, frame))
            self.sites.append(site)
        flight.results = True

    def clear(self) -> None:
        """Let go of the frames at once: what names them may be in a cycle."""
        self._items.clear()
        self.place = None

    def batch(self, place: Callable[[Frame], int]) -> tuple[Batch, dict[int, int]]:
        """Return all that was written down; see ``Template.finish``."""
        if len(self._dtypes) > 1:
            raise AskedError("the default dtype changed")
        puts = [(r, frame) for r, frame in self._items if isinstance(r, Put)]
        own = sum(frame is None for _, frame in puts)
        places: dict[int, int] = {}
        requests: list[AnyRequest] = []
        given = 0
        for request, frame in self._items:
            if not isinstance(request, Put):
                requests.append(request)
                continue
            if frame is None:
                at, given = given, given + 1
            else:
                places[request.out] = place(frame)
                at = own + places[request.out]
            data = structs.replace(request.data, frame=at)
            requests.append(structs.replace(request, data=data))
        dtype = next(iter(self._dtypes), torch.get_default_dtype())
        return Batch("task", 1, tuple(requests), DTYPE_NAMES[dtype]), places
