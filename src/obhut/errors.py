"""The tree of errors, drawn by what the caller can do about each.

::

    ObhutError
    ├── CallError                 fix the call
    │   ├── LocationError             tensors at different places were combined
    │   ├── OpNotAdmittedError        the op table does not admit the operator
    │   ├── UnsupportedError          PyTorch can do it, a remote tensor can not
    │   ├── NotSendableError          the object can not travel
    │   ├── ObjectNotFoundError       the remote object is gone or never was
    │   ├── WorkerNotFoundError       nobody is known by that id
    │   └── RemoteExecutionError      the operator itself failed at the worker
    │       ├── RemoteIndexError          … with an IndexError
    │       ├── RemoteTypeError           … with a TypeError
    │       ├── RemoteValueError          … with a ValueError
    │       └── RemoteNotImplementedError … with a NotImplementedError
    ├── LimitError                ask for less, or ask the owner for more
    │   └── MemoryLimitError          a tensor would exceed the worker's limit
    ├── TransportError            retry
    │   └── WorkerClosedError         … at another worker: this one is closed
    ├── RemoteProtocolError       drop the peer: it broke the protocol
    └── InternalError             report a bug

Rules: facts are attributes, ``__str__`` renders them; an error says what was
expected, what came and what to do; it never holds a tensor's values.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CallError",
    "InternalError",
    "LimitError",
    "LocationError",
    "MemoryLimitError",
    "NotSendableError",
    "ObhutError",
    "ObjectNotFoundError",
    "OpNotAdmittedError",
    "RemoteExecutionError",
    "RemoteIndexError",
    "RemoteNotImplementedError",
    "RemoteProtocolError",
    "RemoteTypeError",
    "RemoteValueError",
    "TransportError",
    "UnsupportedError",
    "WorkerClosedError",
    "WorkerNotFoundError",
]


class ObhutError(Exception):
    """The root: catches whatever obhut raises on its own account."""


class CallError(ObhutError):
    """The call can not be carried out as written."""


class LocationError(CallError, RuntimeError):
    """Tensors at different places were combined.

    Attributes:
        op: the operator, such as ``aten.add.Tensor``.
        places: where each tensor is, in the order of the arguments.
        advice: what to write instead.
    """

    def __init__(self, op: str, places: Sequence[str], advice: str) -> None:
        super().__init__(op, tuple(places), advice)
        self.op = op
        self.places = tuple(places)
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.op} got tensors at {' and '.join(self.places)}; {self.advice}"


class OpNotAdmittedError(CallError, RuntimeError):
    """The op table does not admit the operator.

    Attributes:
        op: the operator, such as ``aten.from_file.default``.
        reason: why it is not admitted, from the operator's row.
    """

    def __init__(self, op: str, reason: str) -> None:
        super().__init__(op, reason)
        self.op = op
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.op} is not run by workers: {self.reason}"


class UnsupportedError(CallError, RuntimeError):
    """PyTorch can do it with a local tensor; a remote tensor can not.

    Attributes:
        what: the function or feature.
        advice: what to write instead.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what, advice)
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.what} does not work on a remote tensor; {self.advice}"


class NotSendableError(CallError, TypeError):
    """The object can not travel.

    Attributes:
        kind: what it is.
        advice: what can be sent instead.
    """

    def __init__(self, kind: str, advice: str) -> None:
        super().__init__(kind, advice)
        self.kind = kind
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.kind} can not be sent; {self.advice}"


class ObjectNotFoundError(CallError, RuntimeError):
    """The remote object is gone, or never was.

    Attributes:
        id: the object's id.
        worker: where it was looked for.
        why: what became of it, as far as known.
    """

    def __init__(self, id: int, worker: str, why: str) -> None:
        super().__init__(id, worker, why)
        self.id = id
        self.worker = worker
        self.why = why

    def __str__(self) -> str:
        return f"object {self.id} is not at {self.worker}: {self.why}"


class WorkerNotFoundError(CallError, LookupError):
    """No worker is known by that id.

    Attributes:
        id: the id asked for.
        known: the ids known.
    """

    def __init__(self, id: str, known: Sequence[str]) -> None:
        super().__init__(id, tuple(known))
        self.id = id
        self.known = tuple(known)

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no worker is known as {self.id!r}; known workers: {known}"


class RemoteExecutionError(CallError, RuntimeError):
    """An operator failed at the worker.

    It is raised where a value is asked for, which may be later than the line
    that caused it; ``site`` names that line.

    Attributes:
        op: the operator.
        worker: where it ran.
        text: PyTorch's own words.
        site: the caller's file and line, empty where unknown.
    """

    def __init__(self, op: str, worker: str, text: str, site: str = "") -> None:
        super().__init__(op, worker, text, site)
        self.op = op
        self.worker = worker
        self.text = text
        self.site = site

    def __str__(self) -> str:
        at = f", called at {self.site}" if self.site else ""
        return f"{self.text} ({self.op} at {self.worker}{at})"


class RemoteIndexError(RemoteExecutionError, IndexError):
    """An operator failed at the worker with an ``IndexError``."""


class RemoteTypeError(RemoteExecutionError, TypeError):
    """An operator failed at the worker with a ``TypeError``."""


class RemoteValueError(RemoteExecutionError, ValueError):
    """An operator failed at the worker with a ``ValueError``."""


class RemoteNotImplementedError(RemoteExecutionError, NotImplementedError):
    """An operator failed at the worker with a ``NotImplementedError``."""


class LimitError(ObhutError):
    """The request is larger than the worker allows."""


class MemoryLimitError(LimitError, RuntimeError):
    """A tensor would take more memory than the worker's limit leaves.

    Attributes:
        worker: the worker.
        asked: bytes that the request needs.
        held: bytes that the session holds already.
        limit: bytes that the session may hold.
        op: the operator or request.
        site: the caller's file and line, empty where unknown.
    """

    def __init__(
        self, worker: str, asked: int, held: int, limit: int, op: str, site: str = ""
    ) -> None:
        super().__init__(worker, asked, held, limit, op, site)
        self.worker = worker
        self.asked = asked
        self.held = held
        self.limit = limit
        self.op = op
        self.site = site

    def __str__(self) -> str:
        at = f", called at {self.site}" if self.site else ""
        return (
            f"{self.op} needs {self.asked:,} bytes at {self.worker}, which allows "
            f"{self.limit:,} and holds {self.held:,}{at}; use smaller tensors or ask "
            "its owner for a higher limit"
        )


class TransportError(ObhutError, ConnectionError):
    """The worker could not be reached; the call may be tried again."""


class WorkerClosedError(TransportError):
    """The worker, or the session with it, is closed.

    Attributes:
        worker: the worker.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker

    def __str__(self) -> str:
        return f"{self.worker} is closed: its tensors are gone; open a new worker"


class RemoteProtocolError(ObhutError):
    """The peer sent something that the protocol does not allow."""


class InternalError(ObhutError):
    """Obhut contradicted itself; please report it."""
