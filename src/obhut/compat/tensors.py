"""PySyft's methods of tensors and modules.

``TorchHook`` gives them to torch's own classes, so that remote tensors have them too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from obhut.client import functions
from obhut.client.modules import come_home, exchange, location_of
from obhut.client.origins import tie
from obhut.client.registry import WORKERS, Place
from obhut.client.remote_tensor import RemoteTensor
from obhut.errors import CallError, LocationError

from .datasets import federate
from .gone import METHODS, refusing
from .multi_tensor import MultiTensor
from .warning import warn

# Any below: methods of torch's classes, whatever they take and return.

_OF_NO_EFFECT = frozenset(
    (
        "force_send",
        "local_autograd",
        "no_wrap",
        "preinitialize_grad",
        "user",
    )
)
"""Old options of ``send`` that say how what is now always so should be brought about:
autograd runs where the data is, gradients come with the tensor, and a remote tensor has
one kind."""

_ids = itertools.count(1)


def send(
    self: torch.Tensor,
    *workers: Place | str,
    inplace: bool = False,
    requires_grad: bool = False,
    garbage_collect_data: bool = True,
    garbage_collection: bool = True,
    **options: Any,
) -> torch.Tensor | MultiTensor:
    """Send a copy to a worker, or to several at once.

    Leak: with ``requires_grad``, gradients come to this process.

    Args:
        workers: themselves or by id, each once.
        inplace: let this very tensor become the remote one; as ``send_``.
        requires_grad: let what ``backward()`` at the worker adds to the copy's gradient
            come back: into ``.grad`` here, or through this tensor's own history.
        garbage_collect_data: with False, the worker keeps the copy when the last
            name for it goes, as it does with tagged ones.
        garbage_collection: likewise.
        options: old options that make no difference any more.

    Returns:
        The remote tensor, or for several workers one that does things at each.

    Raises:
        CallError: if no worker is named, or one twice.
        TypeError: for an option that PySyft 0.2 did not have.
    """
    _check_options(options)
    places = [WORKERS.find(worker) for worker in workers]
    if not places:
        raise CallError("send needs a worker: x.send(bob)")
    if len({place.session for place in places}) != len(places):
        raise CallError("send got a worker twice; name each once")
    if inplace and len(places) > 1:
        raise CallError("send_ needs one worker; x.send(bob, alice) makes copies")
    tags: tuple[str, ...] = tuple(getattr(self, "tags", ()))
    said: str = getattr(self, "description", "")
    sent = [functions.send(self, p, tags=tags, description=said) for p in places]
    for one in sent:
        one._held.keep(not (garbage_collect_data and garbage_collection))
    if inplace:
        exchange(self, sent[0])
        return self
    if requires_grad and not self.requires_grad:
        warn(
            "send(requires_grad=True) brings gradients back, and this tensor requires "
            "none: call x.requires_grad_() first"
        )
    elif requires_grad:
        for one in sent:
            tie(one._held, self)
    if len(sent) > 1:
        return MultiTensor(sent)
    if "_obhut_id" in self.__dict__:
        sent[0].__dict__["_obhut_id"] = self.__dict__["_obhut_id"]
    return sent[0]


def send_(self: torch.Tensor, *workers: Place | str, **options: Any) -> torch.Tensor:
    """Send it, and let this very tensor become the remote one."""
    return send(self, *workers, **{**options, "inplace": True})  # type: ignore[return-value] # one worker


def get_(self: torch.Tensor) -> torch.Tensor:
    """Bring it here, and let this very tensor become the local one.

    Leak: its values come to this process.

    Raises:
        LocationError: if it is here already.
    """
    value = functions.get(self)
    come_home(functions.sent(self, "get_"), value)
    return self


def combine(self: torch.Tensor, *others: torch.Tensor) -> MultiTensor:
    """Return one object that does things at each of the workers; see there."""
    return combine_pointers(*others, self)


def combine_pointers(*tensors: torch.Tensor) -> MultiTensor:
    """Return one object for remote tensors, each at a worker of its own.

    Raises:
        LocationError: if one is here, or two are at one worker.
    """
    remotes = [functions.sent(tensor, "combine_pointers") for tensor in tensors]
    places = [remote.location.id for remote in remotes]
    if len({remote._held.session for remote in remotes}) != len(remotes):
        raise LocationError(
            "combine_pointers", places, "use torch.stack or + at one worker"
        )
    return MultiTensor(remotes)


def tag(self: torch.Tensor, *tags: str) -> torch.Tensor:
    """Add tags, which travel with the tensor."""
    self.tags = tuple(dict.fromkeys((*getattr(self, "tags", ()), *tags)))  # type: ignore[attr-defined] # a patch
    return self


def describe(self: torch.Tensor, description: str) -> torch.Tensor:
    """Say what it is; the words travel with the tensor."""
    self.description = description  # type: ignore[attr-defined] # a patch
    return self


def send_module(
    self: nn.Module,
    *workers: Place | str,
    inplace: bool = True,
    requires_grad: bool = False,
    garbage_collect_data: bool = True,
    **options: Any,
) -> nn.Module:
    """Send the module, in place, and return it.

    Args:
        workers: one, itself or by id.
        inplace: it always is.
        requires_grad: makes no difference: gradients come with the module.
        garbage_collect_data: with False, the worker keeps the parameters when the
            last name for them goes.
        options: old options that make no difference any more.

    Raises:
        CallError: unless one worker is named.
        TypeError: for an option that PySyft 0.2 did not have.
    """
    _check_options(options)
    if len(workers) != 1:
        raise CallError(
            "a module is sent in place, to one worker; send a copy to each: "
            "model.copy().send(worker)"
        )
    functions.send(self, workers[0])
    for tensor in (*self.parameters(), *self.buffers()):
        if isinstance(tensor, RemoteTensor):
            tensor._held.keep(not garbage_collect_data)
    return self


def _check_options(options: dict[str, Any]) -> None:
    unknown = sorted(options.keys() - _OF_NO_EFFECT)
    if unknown:
        raise TypeError(f"send() got an unexpected option {unknown[0]!r}")


def _id(self: torch.Tensor) -> int:
    """Its number in this process, which its pointer has too."""
    kept: int = self.__dict__.setdefault("_obhut_id", 0) or next(_ids)
    self.__dict__["_obhut_id"] = kept
    return kept


def _set_id(self: torch.Tensor, id: int) -> None:
    self.__dict__["_obhut_id"] = id


def _is_collected(self: torch.Tensor) -> bool:
    """Whether the worker lets the object go with its last name."""
    held = functions.sent(self, "gc")._held
    return not (held.kept or held.tags or held.description)


def _set_collected(self: torch.Tensor, collected: bool) -> None:
    functions.sent(self, "gc")._held.keep(not collected)


def _uncollected(self: torch.Tensor) -> torch.Tensor:
    """The tensor itself, whose object stays when its names go."""
    _set_collected(self, False)
    return self


def _owner(self: torch.Tensor) -> Place | None:
    """The worker that has the tensor, or its pointer: this process's own."""
    return WORKERS.home()


def _is_remote(self: torch.Tensor) -> bool:
    """Whether it is a remote tensor."""
    return isinstance(self, RemoteTensor)


def _child(self: torch.Tensor) -> RemoteTensor:
    """The remote tensor itself: nothing is wrapped. What is here has none.

    Raises:
        AttributeError: if it is here.
    """
    if not isinstance(self, RemoteTensor):
        raise AttributeError("a tensor that is here has no child")
    return self


_GC = property(_is_collected, _set_collected)

_OF_BOTH: Mapping[str, Any] = {
    "get": functions.get,
    "move": functions.move,
    "copy": functions.copy,
    **{name: refusing(name) for name in METHODS},
}

PATCHES: Mapping[type, Mapping[str, Any]] = {
    torch.Tensor: {
        **_OF_BOTH,
        "send": send,
        "send_": send_,
        "get_": get_,
        "move_": functions.move,
        "combine": combine,
        "tag": tag,
        "tags": (),
        "describe": describe,
        "description": "",
        "id": property(_id, _set_id),
        "location": None,
        "owner": property(_owner),
        "child": property(_child),
        "has_child": _is_remote,
        "is_wrapper": property(_is_remote),
        "gc": _GC,
        "garbage_collection": _GC,
        "garbage_collect_data": _GC,
        "disable_gc": property(_uncollected),
    },
    nn.Module: {
        **_OF_BOTH,
        "send": send_module,
        "send_": send_module,
        "get_": functions.get,
        "move_": functions.move,
        "location": property(location_of),
    },
    Dataset: {"federate": federate},
}
"""What is given to which class, by name."""
