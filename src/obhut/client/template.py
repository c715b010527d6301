"""What several workers are asked alike, written down once and sent to none.

::

    template = Template({"features": look, "target": look})
    model = send_copy(module, template)
    ratio = training.run(model, template.data)
    batch, frames = template.finish()            # for each worker in turn
    template.error(failure, "client-7")          # with the line that asked

Rules:

- It stands for any of them: how many rows there are is hidden, since they differ.
- Nothing is answered. Who asks for a value gets ``AskedError``, and asks each worker
  instead.
- What each has of its own comes in frames after those that all get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from obhut.worker.tasks import DATASET, Task
from obhut.worker.tensors import DTYPE_NAMES

from .call_site import CallSite
from .failures import to_exception
from .flights import Flight
from .held import Held
from .hidden_dataset import HiddenDataset
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
        self._written = written
        rows = DatasetRows(DATASET, tuple(looks))
        self.data = HiddenDataset(self, rows, list(looks.values()))

    def given(self, look: Spec) -> RemoteTensor:
        """Return a tensor that each worker has of its own, in the order of calls."""
        id = self.session.new_id()
        name = DTYPE_NAMES[look.dtype]
        self.session.post(Put(id, TensorData(name, tuple(look.shape), 0)))
        return RemoteTensor._of(Held(self.session, id, look))

    def finish(self) -> tuple[Batch, list[Frame]]:
        """Return what each worker is asked, and the frames that all get.

        Duty: keep what the frames were made of as it is until the workers are done.

        Raises:
            AskedError: if requests were made under several default dtypes.
        """
        self.session.flush()
        return self._written.batch()

    def frame_of(self, tensor: torch.Tensor) -> int | None:
        """Return which frame holds what a tensor was when it was sent; None for none.

        Duty: call it after ``finish``.
        """
        held: Held = tensor._held  # type: ignore[attr-defined] # remote
        return self._written.places.get(held.id)

    def error(self, failed: Failed, client: str) -> ObhutError:
        """Return what went wrong at one of the workers, with the line that asked."""
        sites = self._written.sites
        site = sites[failed.origin] if failed.origin < len(sites) else None
        return to_exception(failed, client, site)


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
        places: the frame of each tensor that was sent, by its id.
    """

    def __init__(self) -> None:
        super().__init__(_Nowhere(), blocking=False)
        self.sites: list[CallSite | None] = []
        self.places: dict[int, int] = {}
        self._requests: list[AnyRequest] = []
        self._frames: list[Frame] = []
        self._dtypes: list[torch.dtype] = []
        self._own: list[int] = []

    def _submit(self, flight: Flight) -> None:
        """Write a batch down."""
        if flight.items:
            self._dtypes.append(flight.dtype)
        for request, site, frame in flight.items:
            if request.answered():
                raise AskedError("a value was asked for")
            if isinstance(request, Put):
                request = self._placed(request, frame)  # noqa: PLW2901 # with its frame
            self._requests.append(request)
            self.sites.append(site)
        flight.results = True

    def _placed(self, request: Put, frame: Frame | None) -> Put:
        """Return a request with the place of its frame, or of one of a worker's own."""
        if frame is None:
            place = -1 - len(self._own)
            self._own.append(len(self._requests))
        else:
            place = self.places[request.out] = len(self._frames)
            self._frames.append(frame)
        return structs.replace(request, data=structs.replace(request.data, frame=place))

    def batch(self) -> tuple[Batch, list[Frame]]:
        """Return all that was written down."""
        shared = len(self._frames)
        for number, place in enumerate(self._own):
            put = self._requests[place]
            if isinstance(put, Put):
                data = structs.replace(put.data, frame=shared + number)
                self._requests[place] = structs.replace(put, data=data)
        if len(set(self._dtypes)) > 1:
            raise AskedError("the default dtype changed")
        dtype = self._dtypes[0] if self._dtypes else torch.get_default_dtype()
        name = Task.session()
        batch = Batch(name, 1, tuple(self._requests), DTYPE_NAMES[dtype])
        return batch, list(self._frames)
