"""Requests about names only: they are the same whatever a session's objects are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from obhut.protocol.messages import (
    AnyAnswer,
    Clear,
    Count,
    Counted,
    Describe,
    Described,
    Expect,
    Find,
    Found,
    Label,
    TensorSpec,
)

from .objects import Objects

Held = TypeVar("Held")

Naming: TypeAlias = Clear | Count | Describe | Expect | Find | Label
"""Requests that neither make nor change an object."""


def apply_naming(
    objects: Objects[Held],
    request: Naming,
    index: int,
    look: Callable[[Held], TensorSpec],
) -> AnyAnswer | None:
    """Apply a request; return its answer, None where it has none.

    Args:
        objects: the session's.
        request: the request.
        index: its place in its batch.
        look: returns what an object looks like.
    """
    match request:
        case Describe():
            return Described(index, (look(objects[request.id]),))
        case Label():
            objects.label(request.id, request.tags, request.description)
        case Find():
            return Found(
                index,
                tuple(
                    (id, look(objects[id]), tags, description)
                    for id, tags, description in objects.find(request.tags)
                ),
            )
        case Count():
            return Counted(index, len(objects))
        case Clear():
            objects.clear()
        case Expect():
            objects.expect(request.ids, request.sender)
    return None
