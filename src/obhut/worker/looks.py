"""What decides how an operator's results look, as a key under which that is remembered.

::

    remembered = Remembered()
    key = [overload]
    for value in args:
        note(value, key, floats=False)
    known = remembered.get(tuple(key))

Rules:

- Of a tensor sizes, strides, dtype and bits stand in the key; of a number its type and
  itself, since 1, 1.0 and True are equal and decide different dtypes.
- A float's value stands in it only where it decides something: a learning rate that
  changes at each step is not to be a new key at each step.
- What is remembered is forgotten all at once when there is too much.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch

from .shapes import spec_of

T = TypeVar("T")

AT_MOST = 1 << 14
"""How many keys one table has."""


class Remembered(Generic[T]):
    """A table that begins anew when it is full.

    Attributes:
        get: returns what is remembered under a key, or a default.
    """

    __slots__ = ("_known", "get")

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], T] = {}
        self.get = self._known.get

    def __len__(self) -> int:
        return len(self._known)

    def __setitem__(self, key: tuple[object, ...], value: T) -> None:
        if len(self._known) >= AT_MOST:
            self._known.clear()
        self._known[key] = value


def note(value: object, key: list[object], *, floats: bool) -> None:
    """Note what an argument decides: of a tensor its look, of a number itself.

    Args:
        value: the argument.
        key: what it is noted in.
        floats: whether float arguments decide the results' shape.
    """
    kind = value.__class__
    if kind is torch.Tensor or isinstance(value, torch.Tensor):
        key += (value.shape, value.stride(), value.dtype)  # type: ignore[attr-defined] # compared
    elif kind is list or kind is tuple:
        items: list[object] = value  # type: ignore[assignment] # the class was compared
        key += (list, len(items))
        for item in items:
            note(item, key, floats=floats)
    elif kind is not float or floats:
        key += (kind, value)
    else:
        key.append(float)


def described(value: object) -> object:
    """Return an argument as inference takes it."""
    if isinstance(value, torch.Tensor):
        return spec_of(value).plain
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    return value


class Itself:
    """An object as a key, which keeps it: it is equal to itself only."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
