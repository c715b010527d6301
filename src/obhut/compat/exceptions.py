"""PySyft's exceptions, by their old names.

Rule: an old name stands for the error that is raised in the same situation here,
so that ``except`` clauses of old programs go on catching what they meant to. Where
there is no such situation, it stands for ``NotHereError``, which says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from obhut.errors import (
    CallError,
    InternalError,
    LocationError,
    MissingExtraError,
    NotSendableError,
    ObjectNotFoundError,
    ReleaseRefusedError,
    UnsupportedError,
    WorkerNotFoundError,
)


@dataclass(eq=False, repr=False)
class NotHereError(CallError):
    """What is asked for is not here on purpose.

    Attributes:
        what: what the older library called it.
        advice: what to write instead.
    """

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what} of the older library is not here: {self.advice}"


CannotRequestObjectAttribute = UnsupportedError
CompressionNotFoundException = NotHereError
DependencyError = MissingExtraError
EmptyCryptoPrimitiveStoreError = NotHereError
GetNotPermittedError = ReleaseRefusedError
IdNotUniqueError = NotHereError
InvalidProtocolFileError = NotHereError
InvalidTensorForRemoteGet = NotHereError
PlanCommandUnknownError = NotHereError
PureFrameworkTensorFoundError = LocationError
RemoteObjectFoundError = NotSendableError
ResponseSignatureError = InternalError
SendNotPermittedError = NotSendableError
TensorsNotCollocatedException = LocationError
TranslationUnavailableError = NotHereError
UndefinedProtocolTypeError = NotHereError
UndefinedProtocolTypePropertyError = NotHereError
WorkerNotFoundException = WorkerNotFoundError

__all__ = [
    "CannotRequestObjectAttribute",
    "CompressionNotFoundException",
    "DependencyError",
    "EmptyCryptoPrimitiveStoreError",
    "GetNotPermittedError",
    "IdNotUniqueError",
    "InvalidProtocolFileError",
    "InvalidTensorForRemoteGet",
    "NotHereError",
    "ObjectNotFoundError",
    "PlanCommandUnknownError",
    "PureFrameworkTensorFoundError",
    "RemoteObjectFoundError",
    "ResponseSignatureError",
    "SendNotPermittedError",
    "TensorsNotCollocatedException",
    "TranslationUnavailableError",
    "UndefinedProtocolTypeError",
    "UndefinedProtocolTypePropertyError",
    "WorkerNotFoundException",
]
