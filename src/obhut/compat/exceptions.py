"""The seed's exceptions, by their old names."""

from __future__ import annotations

from obhut.errors import (
    LocationError,
    NotSendableError,
    ObhutError,
    ObjectNotFoundError,
    UnsupportedError,
    WorkerNotFoundError,
)

TensorsNotCollocatedException = LocationError
ObjectNotFoundError = ObjectNotFoundError
WorkerNotFoundException = WorkerNotFoundError
CannotRequestObjectAttribute = UnsupportedError
PureFrameworkTensorFoundError = LocationError
RemoteObjectFoundError = NotSendableError
ResponseSignatureError = ObhutError

__all__ = [
    "CannotRequestObjectAttribute",
    "ObjectNotFoundError",
    "PureFrameworkTensorFoundError",
    "RemoteObjectFoundError",
    "ResponseSignatureError",
    "TensorsNotCollocatedException",
    "WorkerNotFoundException",
]
