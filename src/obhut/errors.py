"""The tree of errors, drawn by what the caller can do about each.

::

    ObhutError
    ├── CallError                 fix the call
    │   ├── LocationError             tensors at different places were combined
    │   ├── OpNotAdmittedError        the op table does not admit the operator
    │   ├── UnsupportedError          PyTorch can do it, a remote tensor can not
    │   ├── NotSendableError          the object can not travel
    │   ├── ObjectNotFoundError       the remote object is gone or never was
    │   ├── CancelledError            Ctrl-C came before it was computed
    │   ├── WorkerNotFoundError       nobody is known by that id
    │   ├── DatasetNotFoundError      the worker has no data of that name
    │   ├── AlignmentError            owners' data sets are not the same columns
    │   ├── PolicyError               the policy contradicts itself
    │   ├── CoefficientError          no coefficient that an audit can take
    │   ├── IdentityError             a node's own key is missing or unusable
    │   ├── UnsafeFileError           others could read or change the file
    │   ├── CertificateError          not such a certificate as obhut makes
    │   ├── PeerError                 the peer can not be pinned under that name
    │   ├── PeerNotFoundError         no peer is pinned under that name or id
    │   ├── InviteError               the invitation does not hold
    │   ├── HandoverError             the hand-over to a new key does not hold
    │   ├── RotationError             this node has to keep its key
    │   ├── MissingExtraError         an optional library is not installed
    │   ├── CheckpointError           it can not be read, or is of another model
    │   ├── ProgramError              it can not be recorded, or is no program
    │   └── RemoteExecutionError      the operator itself failed at the worker
    │       ├── RemoteIndexError          … with an IndexError
    │       ├── RemoteTypeError           … with a TypeError
    │       ├── RemoteValueError          … with a ValueError
    │       └── RemoteNotImplementedError … with a NotImplementedError
    ├── LimitError                ask for less, or ask the owner for more
    │   └── MemoryLimitError          a tensor would exceed the worker's limit
    ├── NonFiniteError            look at the owners' rows, or train more gently
    ├── AccessDeniedError         ask the worker's owner
    ├── ReleaseRefusedError       ask the owners: a rule of theirs keeps the value in
    ├── FileError                 fix the file
    │   ├── ConfigurationError        … with the configuration
    │   ├── DatasetError              … with the data
    │   └── LedgerError               … with the record of releases
    ├── SandboxError              change the host or its configuration
    ├── TransportError            retry
    │   ├── SessionLostError          … in a new session: this one is gone
    │   └── WorkerClosedError         … at another worker: this one is closed
    ├── RemoteProtocolError       drop the peer: it broke the protocol
    └── InternalError             report a bug

Rules: facts are attributes, ``__str__`` renders them, and a class that has some is a
dataclass of them; an error says what was expected, what came and what to do; it never
holds a tensor's values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "AccessDeniedError",
    "AlignmentError",
    "CallError",
    "CancelledError",
    "CertificateError",
    "CheckpointError",
    "CoefficientError",
    "ConfigurationError",
    "DatasetError",
    "DatasetNotFoundError",
    "FileError",
    "HandoverError",
    "IdentityError",
    "InternalError",
    "InviteError",
    "LedgerError",
    "LimitError",
    "LocationError",
    "MemoryLimitError",
    "MissingExtraError",
    "NonFiniteError",
    "NotSendableError",
    "ObhutError",
    "ObjectNotFoundError",
    "OpNotAdmittedError",
    "PeerError",
    "PeerNotFoundError",
    "PolicyError",
    "ProgramError",
    "ReleaseRefusedError",
    "RemoteExecutionError",
    "RemoteIndexError",
    "RemoteNotImplementedError",
    "RemoteProtocolError",
    "RemoteTypeError",
    "RemoteValueError",
    "RotationError",
    "SandboxError",
    "SessionLostError",
    "TransportError",
    "UnsafeFileError",
    "UnsupportedError",
    "WorkerClosedError",
    "WorkerNotFoundError",
]


class ObhutError(Exception):
    """The root: catches whatever obhut raises on its own account."""

    def __post_init__(self) -> None:
        """Let the facts be the arguments, as copies and pickles have them."""
        for name, fact in vars(self).items():
            if isinstance(fact, list):
                setattr(self, name, tuple(fact))
        self.args = tuple(vars(self).values())


class CallError(ObhutError):
    """The call can not be carried out as written."""


@dataclass(eq=False, repr=False)
class LocationError(CallError, RuntimeError):
    """Tensors at different places were combined.

    Attributes:
        op: the operator, such as ``aten.add.Tensor``.
        places: where each tensor is, in the order of the arguments.
        advice: what to write instead.
    """

    op: str
    places: Sequence[str]
    advice: str

    def __str__(self) -> str:
        return f"{self.op} got tensors at {' and '.join(self.places)}; {self.advice}"


@dataclass(eq=False, repr=False)
class OpNotAdmittedError(CallError, RuntimeError):
    """The op table does not admit the operator.

    Attributes:
        op: the operator, such as ``aten.from_file.default``.
        reason: why it is not admitted, from the operator's row.
    """

    op: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op} is not run by workers: {self.reason}"


@dataclass(eq=False, repr=False)
class UnsupportedError(CallError, RuntimeError):
    """PyTorch can do it with a local tensor; a remote tensor can not.

    Attributes:
        what: the function or feature.
        advice: what to write instead.
    """

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what} does not work on a remote tensor; {self.advice}"


@dataclass(eq=False, repr=False)
class NotSendableError(CallError, TypeError):
    """The object can not travel.

    Attributes:
        kind: what it is.
        advice: what can be sent instead.
    """

    kind: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind} can not be sent; {self.advice}"


@dataclass(eq=False, repr=False)
class ObjectNotFoundError(CallError, RuntimeError):
    """The remote object is gone, or never was.

    Attributes:
        id: the object's id.
        worker: where it was looked for.
        why: what became of it, as far as known.
    """

    id: int
    worker: str
    why: str

    def __str__(self) -> str:
        return f"object {self.id} is not at {self.worker}: {self.why}"


@dataclass(eq=False, repr=False)
class CancelledError(CallError, RuntimeError):
    """It was cancelled by Ctrl-C before it ran, or what it needs was.

    Attributes:
        op: what was cancelled.
        worker: where.
        why: how.
        site: the line that asked for it, where known.
    """

    op: str
    worker: str
    why: str = "Ctrl-C came before it, or what it needs, was computed"
    site: str = ""

    def __str__(self) -> str:
        called = f" (called at {self.site})" if self.site else ""
        return (
            f"{self.op} at {self.worker}: {self.why}{called}; run again what makes it"
        )


@dataclass(eq=False, repr=False)
class WorkerNotFoundError(CallError, KeyError):
    """No worker is known by that id.

    Attributes:
        id: the id asked for.
        known: the ids known.
        why: what is known of it nevertheless, and what to do.
    """

    id: str
    known: Sequence[str]
    why: str = ""

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        more = f"; {self.why}" if self.why else ""
        return f"no worker is known as {self.id!r}; known workers: {known}{more}"


@dataclass(eq=False, repr=False)
class DatasetNotFoundError(CallError, KeyError):
    """A worker has no data set, part or column of that name, as far as it tells.

    Attributes:
        where: where it was looked for.
        kind: what was looked for: a data set, a part or a column.
        name: the name that was asked for.
        known: the public names that there are, the nearest first.
        nearest: the one that may be meant; empty if none is like it.
    """

    where: str
    kind: str
    name: str
    known: Sequence[str]
    nearest: str = ""

    def __str__(self) -> str:
        shown, more = self.known[:_KNOWN], len(self.known) - _KNOWN
        known = ", ".join(shown) or "none that is public"
        known += f" and {more:,} more" if more > 0 else ""
        meant = f"; did you mean {self.nearest!r}?" if self.nearest else ""
        return f"{self.where} has no {self.kind} {self.name!r}; it has: {known}{meant}"


_KNOWN = 20
"""Names that an error lists at most."""


@dataclass(eq=False, repr=False)
class AlignmentError(CallError, ValueError):
    """Owners' data sets are not the same columns, so that a sum would mix them.

    Attributes:
        differences: each in words, which name owner and column.
        advice: what to write instead.
    """

    differences: Sequence[str]
    advice: str

    def __str__(self) -> str:
        shown, more = self.differences[:_KNOWN], len(self.differences) - _KNOWN
        known = "; ".join(shown) + (f"; and {more:,} more" if more > 0 else "")
        return f"the owners' data sets differ: {known}: {self.advice}"


@dataclass(eq=False, repr=False)
class PolicyError(CallError, ValueError):
    """A policy contradicts itself, or says nothing.

    Attributes:
        key: the field at fault.
        problem: what was expected, and what came.
        advice: what to write instead.
    """

    key: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.key} of the policy: {self.problem}; {self.advice}"


@dataclass(eq=False, repr=False)
class CoefficientError(CallError, ValueError):
    """A number can not be a coefficient of a sum over owners.

    Attributes:
        value: the number, as it was written.
        why: what is wrong with it, and what to do.
    """

    value: str
    why: str

    def __str__(self) -> str:
        return f"{self.value} is no coefficient: {self.why}"


@dataclass(eq=False, repr=False)
class IdentityError(CallError):
    """A node's own key is missing or can not be used.

    Attributes:
        folder: where it is kept.
        why: what is wrong, and what to do.
    """

    folder: str
    why: str

    def __str__(self) -> str:
        return f"the identity in {self.folder} can not be used: {self.why}"


@dataclass(eq=False, repr=False)
class UnsafeFileError(CallError):
    """Others could read a secret file, or change one that is relied on.

    Attributes:
        path: the file or folder.
        why: what is wrong, and what to do.
    """

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path} is not used: {self.why}"


@dataclass(eq=False, repr=False)
class CertificateError(CallError):
    """It is not such a certificate as obhut makes.

    Attributes:
        why: in what it differs.
    """

    why: str

    def __str__(self) -> str:
        return f"the certificate is refused: {self.why}"


@dataclass(eq=False, repr=False)
class PeerError(CallError):
    """A peer can not be pinned under a name.

    Attributes:
        name: the name.
        why: what stands against it, and what to do.
    """

    name: str
    why: str

    def __str__(self) -> str:
        return f"nobody can be pinned as {self.name!r}: {self.why}"


@dataclass(eq=False, repr=False)
class PeerNotFoundError(CallError, LookupError):
    """No peer is pinned under that name or id.

    Attributes:
        name: the name or id asked for.
        known: the names known.
    """

    name: str
    known: Sequence[str]

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no peer is pinned as {self.name!r}; pinned peers: {known}"


@dataclass(eq=False, repr=False)
class InviteError(CallError):
    """An invitation does not hold, or not any more.

    Attributes:
        why: what is wrong, and what to do.
    """

    why: str

    def __str__(self) -> str:
        return f"the invitation does not hold: {self.why}"


@dataclass(eq=False, repr=False)
class HandoverError(CallError):
    """A hand-over from an old key to a new one does not hold.

    Attributes:
        why: what is wrong, and what to do.
    """

    why: str

    def __str__(self) -> str:
        return f"the hand-over does not hold: {self.why}"


@dataclass(eq=False, repr=False)
class RotationError(CallError):
    """This node has to keep its key.

    Attributes:
        why: what a new one would break, and what to do.
    """

    why: str

    def __str__(self) -> str:
        return f"the key stays as it is: {self.why}"


@dataclass(eq=False, repr=False)
class MissingExtraError(CallError, ImportError):
    """A library that only some of obhut needs is not installed.

    Attributes:
        library: its name, as it is installed.
        purpose: what it is needed for.
        extra: the extra of obhut's that has it.
    """

    library: str
    purpose: str
    extra: str

    def __str__(self) -> str:
        return (
            f"{self.purpose} needs {self.library}, which is not installed; "
            f"install it with: pip install 'obhut[{self.extra}]'"
        )


class CheckpointError(CallError):
    """A checkpoint can not be read, or is of another training or model."""


class ProgramError(CallError, RuntimeError):
    """A function can not be recorded, or a text is no program that workers run."""


@dataclass(eq=False, repr=False)
class RemoteExecutionError(CallError, RuntimeError):
    """An operator failed at the worker.

    It is raised where a value is asked for, which may be later than the line
    that caused it; ``call_site`` names that line.

    Attributes:
        op: the operator.
        worker: where it ran.
        text: PyTorch's own words.
        site: the caller's file and line, empty where unknown.
    """

    op: str
    worker: str
    text: str
    site: str = ""

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


@dataclass(eq=False, repr=False)
class MemoryLimitError(LimitError, RuntimeError):
    """The worker's limit, or its machine, leaves no memory for what was asked.

    Attributes:
        worker: the worker.
        asked: bytes that the request needs; 0 where unknown.
        held: bytes of the tensors that the session names.
        limit: bytes that the session may hold; 0 for no limit but the machine's.
        op: the operator or request.
        site: the caller's file and line, empty where unknown.
    """

    worker: str
    asked: int
    held: int
    limit: int
    op: str
    site: str = ""

    def __str__(self) -> str:
        at = f", called at {self.site}" if self.site else ""
        needs = f"{self.asked:,} bytes" if self.asked else "more memory"
        allows = f"allows {self.limit:,}" if self.limit else "has no more"
        advice = "use smaller tensors"
        if self.held + self.asked <= (self.limit or self.held + self.asked):
            advice = (
                "the rest is what autograd keeps: use smaller batches, and keep "
                "loss.detach() rather than losses"
            )
        return (
            f"{self.op} needs {needs} at {self.worker}, which {allows} and holds "
            f"{self.held:,}{at}; {advice}, or ask its owner for a higher limit"
        )


@dataclass(eq=False, repr=False)
class NonFiniteError(ObhutError, ArithmeticError):
    """Owners delivered what can not be used, so that no sum was fetched.

    It is NaN or infinite, or could not be computed there. Which owners they are is
    theirs to know: each sees it in its own rows.

    Attributes:
        owners: how many did.
        asked: how many owners there were.
        advice: what can be done.
    """

    owners: int
    asked: int
    advice: str

    def __str__(self) -> str:
        return (
            f"{self.owners} of {self.asked} owners delivered what can not be used: it "
            f"is NaN or infinite, or failed there, as their logs say; {self.advice}"
        )


class AccessDeniedError(ObhutError):
    """The worker's owner has not allowed it."""


@dataclass(eq=False, repr=False)
class ReleaseRefusedError(ObhutError):
    """A rule of the owners' keeps a value where it is.

    Whether it does depends on coefficients, names, policies and what was released
    before, and never on a value; so the text may be shown to anybody concerned.

    Attributes:
        rule: the rule's name, such as ``quorum`` or ``p-percent``.
        text: whose contributions, with which coefficients; what would be allowed.
        worker: who refused, empty where unknown.
        site: the caller's file and line, empty where unknown.
    """

    rule: str
    text: str
    worker: str = ""
    site: str = ""

    def __str__(self) -> str:
        at = " at ".join(filter(None, (self.worker, self.site)))
        where = f" ({at})" if at else ""
        return f"not released (rule {self.rule}): {self.text}{where}"


class FileError(ObhutError):
    """A file of the owner's is not as it must be: correct it and start again."""


@dataclass(eq=False, repr=False)
class ConfigurationError(FileError, ValueError):
    """A configuration says what it can not say, or does not say what it must.

    Attributes:
        file: the file's path.
        key: which key, in words; empty where it is the file as a whole.
        problem: what was expected, and what came.
        advice: what to write instead.
    """

    file: str
    key: str
    problem: str
    advice: str

    def __str__(self) -> str:
        where = f"{self.file}, {self.key}" if self.key else self.file
        return f"{where}: {self.problem}; {self.advice}"


@dataclass(eq=False, repr=False)
class DatasetError(FileError, ValueError):
    """A data set can not be loaded from its file.

    Leak: ``problem`` may quote one cell, and ``column`` and ``row`` say which. It
    is for the owner's console; never send it to anybody else.

    Attributes:
        file: the file's path.
        problem: what was expected, and what came.
        advice: what to correct.
        column: the column's or array's name, empty where it is none.
        row: the row of data, from 1, header not counted; 0 where it is none.
        line: the line of the file, from 1; 0 where there are no lines.
    """

    file: str
    problem: str
    advice: str
    column: str = ""
    row: int = 0
    line: int = 0

    def __str__(self) -> str:
        where = self.file
        if self.row:
            where += f", row {self.row}"
        if self.line:
            where += f" (line {self.line})" if self.row else f", line {self.line}"
        if self.column:
            where += f', column "{self.column}"'
        return f"{where}: {self.problem}; {self.advice}"


@dataclass(eq=False, repr=False)
class LedgerError(FileError, ValueError):
    """The record of what was released is not what was written.

    Attributes:
        file: the ledger's path.
        problem: what was expected, and what came.
        advice: what to do.
    """

    file: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}; {self.advice}"


@dataclass(eq=False, repr=False)
class SandboxError(ObhutError, RuntimeError):
    """Sessions can not be walled in on this host as the configuration asks.

    Attributes:
        wall: what can not be had.
        why: what the host said.
        advice: what to change.
    """

    wall: str
    why: str
    advice: str

    def __str__(self) -> str:
        return f"no {self.wall} for sessions here: {self.why}; {self.advice}"


class TransportError(ObhutError, ConnectionError):
    """The worker could not be reached; the call may be tried again."""


@dataclass(eq=False, repr=False)
class SessionLostError(TransportError):
    """A session ended before its client closed it; its tensors are gone.

    Attributes:
        worker: the worker.
        why: what became of the session.
    """

    worker: str
    why: str

    def __str__(self) -> str:
        return (
            f"the session at {self.worker} is lost: {self.why}; its tensors are gone, "
            "open a new session and send them again: net.reconnect(), which keeps what "
            "is still at other workers"
        )


@dataclass(eq=False, repr=False)
class WorkerClosedError(TransportError):
    """The worker, or the session with it, is closed.

    Attributes:
        worker: the worker.
    """

    worker: str

    def __str__(self) -> str:
        return f"{self.worker} is closed: its tensors are gone; open a new worker"


class RemoteProtocolError(ObhutError):
    """The peer sent something that the protocol does not allow."""


class InternalError(ObhutError):
    """Obhut contradicted itself; please report it."""
