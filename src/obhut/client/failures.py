"""What a worker answers of a failure, as an exception again.

Rule: by table only. A kind that is not in the table is a worker that breaks the
protocol, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from obhut import errors
from obhut.errors import ObhutError, RemoteProtocolError
from obhut.protocol.messages import Failed, Refused

from .call_site import CallSite

_EXECUTION: Mapping[str, type[errors.RemoteExecutionError]] = {
    kind.__name__: kind
    for kind in (
        errors.RemoteExecutionError,
        errors.RemoteIndexError,
        errors.RemoteTypeError,
        errors.RemoteValueError,
        errors.RemoteNotImplementedError,
    )
}

_PLAIN: Mapping[str, type[ObhutError]] = {
    kind.__name__: kind
    for kind in (
        errors.AccessDeniedError,
        errors.CallError,
        errors.LimitError,
        errors.ProgramError,
        errors.TransportError,
        errors.RemoteProtocolError,
        errors.InternalError,
    )
}

_WORDS: Mapping[str, type[ObhutError]] = {
    "CancelledError": errors.CallError,
    "CoefficientError": errors.CallError,
    "LocationError": errors.CallError,
    "NotSendableError": errors.CallError,
    "ObjectNotFoundError": errors.CallError,
    "UnsupportedError": errors.CallError,
    "WorkerClosedError": errors.TransportError,
    "WorkerNotFoundError": errors.CallError,
    "MemoryLimitError": errors.LimitError,
}
"""What stands for errors of which only the words came."""

_FACTS_OF_MEMORY = 3


def to_exception(failed: Failed, worker: str, site: CallSite | None) -> ObhutError:
    """Return the exception that a failed request raises at the client.

    Args:
        failed: the worker's answer.
        worker: the worker's id.
        site: the line that caused it, where known.
    """
    at = str(site) if site else ""
    execution = _EXECUTION.get(failed.kind)
    if execution is not None:
        return execution(failed.op, worker, failed.text, at)
    match failed.kind:
        case "MemoryLimitError" if len(failed.facts) == _FACTS_OF_MEMORY:
            asked, held, limit = failed.facts
            return errors.MemoryLimitError(worker, asked, held, limit, failed.op, at)
        case "ObjectNotFoundError" if failed.facts:
            return errors.ObjectNotFoundError(failed.facts[0], worker, failed.text)
        case "CancelledError":
            return errors.CancelledError(failed.op, worker, failed.text, at)
        case "OpNotAdmittedError":
            return errors.OpNotAdmittedError(failed.op, failed.text)
        case "SessionLostError":  # the session that something was to be moved to
            return errors.TransportError(
                f"{failed.op} at {worker}: the session that it goes to is lost: "
                f"{failed.text}; open a new one there"
                + (f" (called at {at})" if at else "")
            )
        case "ReleaseRefusedError":
            return _refused_release(failed.text, worker, at)
        case _:
            pass
    called = f" (called at {at})" if at else ""
    return to_error(failed.kind, f"{failed.op} at {worker}: {failed.text}{called}")


def to_error(kind: str, text: str) -> ObhutError:
    """Return an exception of a kind that carries nothing but words."""
    if kind == "ReleaseRefusedError":
        return _refused_release(text)
    known = _PLAIN.get(kind) or _WORDS.get(kind)
    if known is None:
        return RemoteProtocolError(f"{kind[:80]}: {text}")
    return known(text)


def _refused_release(
    text: str, worker: str = "", site: str = ""
) -> errors.ReleaseRefusedError:
    """Return the error for a text that begins with the rule that refused."""
    rule, _, said = text.partition(": ")
    return errors.ReleaseRefusedError(rule, said, worker, site)


def to_refusal(refused: Refused, worker: str) -> ObhutError:
    """Return the exception that a refused message raises at the client."""
    if refused.kind == "WorkerClosedError":
        return errors.WorkerClosedError(worker)
    if refused.kind == "SessionLostError":
        return errors.SessionLostError(worker, refused.text)
    if refused.kind == "ReleaseRefusedError":
        return _refused_release(refused.text, worker)
    return to_error(refused.kind, f"{worker} refused: {refused.text}")
