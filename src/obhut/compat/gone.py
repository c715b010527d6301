"""What of PySyft is not here on purpose, and what to write instead.

Rule: what a program only imports may be imported; who uses it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from .exceptions import NotHereError

_SERVED = (
    "workers in processes of their own are started with `obhut worker` (docs: "
    "Serving data) and reached with obhut.connect(address)"
)
_SECRETS = (
    "nothing is secret-shared or encrypted here: let a trusted aggregator add what the "
    "owners deliver, under a policy of theirs (docs: the tutorial on a guarded "
    "aggregator)"
)
_PLANS = "write the function as it is, and call it with remote tensors"
_PROGRAMS = "train in rounds: obhut.Federation(owners, aggregator).fit(...)"
_PRIVATE = (
    "what may leave a worker is its policy's to say: "
    "VirtualWorker(hook, id=..., policy=sy.Quorum(...))"
)
_POINTERS = (
    "a remote tensor is at one worker, and there are no pointers to pointers: "
    "x.move(worker) moves it straight to another"
)

_NAMES: Mapping[str, str] = {
    "AdditiveSharingTensor": _SECRETS,
    "AutogradTensor": "autograd runs where the data is: call backward() as it is",
    "DataCentricFLClient": _SERVED,
    "FixedPrecisionTensor": _SECRETS,
    "LoggingTensor": "OBHUT_BLOCKING=1 shows failures at their lines",
    "ModelCentricFLClient": _PROGRAMS,
    "Plan": _PLANS,
    "PlaceHolder": _PLANS,
    "PrivateTensor": _PRIVATE,
    "Protocol": _PLANS,
    "PublicGridNetwork": _SERVED,
    "ReplicatedSharingTensor": _SECRETS,
    "WebsocketClientWorker": _SERVED,
    "WebsocketServerWorker": _SERVED,
    "func2plan": _PLANS,
    "func2protocol": _PLANS,
    "keygen": _SECRETS,
    "make_plan": _PLANS,
    "perform_analysis": "the analysis of PATE is a library's of its own",
}
"""Names of the library, and what to write instead."""

NAMES = frozenset(_NAMES)
"""What stands in for a name that is not here can be imported from here."""

METHODS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "decrypt",
            "encrypt",
            "fix_prec",
            "fix_prec_",
            "fix_precision",
            "fix_precision_",
            "float_prec",
            "float_prec_",
            "float_precision",
            "float_precision_",
            "share",
            "share_",
        ),
        _SECRETS,
    ),
    "create_pointer": "x.send(worker) makes the remote tensor",
    "mid_get": _POINTERS,
    "private_tensor": _PRIVATE,
    "remote_get": _POINTERS,
    "remote_send": _POINTERS,
}
"""Methods of tensors and modules, likewise."""


class _Gone:
    """Stands in for a name; raises when it is used."""

    advice: str

    def __init__(self, *_: object, **__: object) -> None:
        raise NotHereError(type(self).__name__, self.advice)

    def __init_subclass__(cls, **_: object) -> None:
        if "advice" not in vars(cls):
            raise NotHereError(cls.__mro__[1].__name__, cls.advice)


def __getattr__(name: str) -> type[_Gone]:
    advice = _NAMES.get(name)
    if advice is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, (_Gone,), {"advice": advice, "__doc__": f"Not here: {advice}."})
    globals()[name] = made
    return made


# Any: whatever a program gives it.
def refusing(name: str) -> Callable[..., Any]:
    """Return a method that raises what is said of its name."""

    def method(*_: object, **__: object) -> NoReturn:
        raise NotHereError(f"{name}()", METHODS[name])

    method.__name__ = method.__qualname__ = name
    method.__doc__ = f"Refuse: {METHODS[name]}."
    return method
