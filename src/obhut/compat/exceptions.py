"""PySyft's exceptions, by their old names.

Rule: an old name stands for the error that is raised in the same situation here,
so that ``except`` clauses of old programs go on catching what they meant to.
"""

from __future__ import annotations

from obhut.errors import (
    InternalError,
    LocationError,
    NotSendableError,
    ObjectNotFoundError,
    UnsupportedError,
    WorkerNotFoundError,
)

CannotRequestObjectAttribute = UnsupportedError
PureFrameworkTensorFoundError = LocationError
RemoteObjectFoundError = NotSendableError
ResponseSignatureError = InternalError
SendNotPermittedError = NotSendableError
TensorsNotCollocatedException = LocationError
WorkerNotFoundException = WorkerNotFoundError

__all__ = [
    "CannotRequestObjectAttribute",
    "ObjectNotFoundError",
    "PureFrameworkTensorFoundError",
    "RemoteObjectFoundError",
    "ResponseSignatureError",
    "SendNotPermittedError",
    "TensorsNotCollocatedException",
    "WorkerNotFoundException",
]
