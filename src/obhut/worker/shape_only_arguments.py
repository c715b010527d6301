"""The arguments of an operator on tensors without values.

::

    key, given = [overload], []
    for value in args:
        note(value, key, given, floats=False)    # what it decides, and the tensors
    known = learn_call(overload, args, {}, given, None)

Rules:

- What is learnt depends on what is in the key, and on nothing else.
- A number that was written down is told from one that nobody knows; a whole one is in
  the key itself, as it may be a size.
- Where an argument is written of which another shares the memory, or an operator reads
  where its arguments lie, that is in the key too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version

from obhut.errors import OpNotAdmittedError

from .aftermath import Aftermath, aftermath, learn
from .on_zeros import check_memory, checked, in_words
from .overloads import NEEDS_VALUES, Overload
from .shape_only import ShapeOnly
from .shapes import Part, Spec, look_of

# Any below: operators take whatever their schema says.

_META = torch.device("meta")


def note(value: Any, key: list[object], given: list[Any], floats: bool) -> None:
    """Note what an argument decides, and the tensors in it."""
    kind = value.__class__
    if kind is ShapeOnly:
        key.append(value.look)
        given.append(value)
    elif isinstance(value, list | tuple):
        key += (list, len(value))
        for item in value:
            note(item, key, given, floats)
    elif isinstance(value, torch.Tensor):
        key += (torch.Tensor, look_of(value))
        given.append(value)
        if value.dim() == 0 and not (value.is_floating_point() or value.is_complex()):
            key.append(value.item())  # it may be a size
    elif isinstance(value, float) and not floats:
        key.append(float)
    elif isinstance(value, torch.Generator):
        key.append(torch.Generator)
    elif isinstance(value, torch.UntypedStorage | torch.TypedStorage):
        raise OpNotAdmittedError("a storage", NEEDS_VALUES)
    else:
        key += (kind, value)


def memory_of(tensor: torch.Tensor) -> object:
    """Return what tells memory apart."""
    return tensor.memory if isinstance(tensor, ShapeOnly) else tensor


def is_public(
    overload: Overload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    given: Sequence[torch.Tensor],
) -> bool:
    """Tell whether an operator reads, or writes to, written numbers only.

    Raises:
        OpNotAdmittedError: if it would write to one what nobody knows.
    """
    known = [one for one in given if one.__class__ is not ShapeOnly]
    if not known or not (overload.tensorless or overload.writes):
        return False
    if len(known) == len(given) and not overload.reshapes and not overload.out:
        return True
    for at, name in overload.written:
        value = args[at] if at < len(args) else kwargs.get(name)
        targets = value if isinstance(value, list | tuple) else [value]
        if any(one is target for one in known for target in targets):
            raise OpNotAdmittedError(overload.name, "a written number stays as it is")
    return False


def count_writes(
    overload: Overload, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> None:
    """Count writes to lists of tensors, as kernels do that write them one by one."""
    for at, name in overload.lists:
        increment_version(args[at] if at < len(args) else (kwargs or {})[name])


def parts_of(given: Sequence[torch.Tensor]) -> list[Part]:
    """Return which part of which memory each tensor is."""
    numbers: dict[int, int] = {}
    found: list[Part] = []
    for tensor in given:
        storage = tensor.untyped_storage()
        number = numbers.setdefault(storage._cdata, len(numbers))
        offset = int(tensor.storage_offset())
        found.append(Part(look_of(tensor), number, storage.nbytes(), offset))
    return found


def learn_call(
    overload: Overload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    given: Sequence[torch.Tensor],
    parts: Sequence[Part] | None,
) -> Aftermath | str:
    """Return what an operator leaves behind, or why it is refused."""
    looks: list[Spec | Part] = [*(parts or map(look_of, given))]
    positions = {id(one): at for at, one in enumerate(given)}
    numbers = {id(one) for one in given if one.__class__ is not ShapeOnly}
    numbers = {one for one in numbers if given[positions[one]].dim() == 0}

    def described(value: Any, written: bool) -> Any:
        if isinstance(value, torch.Tensor):
            kept = written and id(value) in numbers
            return value if kept else looks[positions[id(value)]]
        if isinstance(value, list | tuple):
            return [described(item, written) for item in value]
        return None if isinstance(value, torch.Generator) else value

    for written in (False, True):
        positional = [described(value, written) for value in args]
        named = {name: described(value, written) for name, value in kwargs.items()}
        if overload.placed:
            named["device"] = _META
        meta = [
            (at, look)
            for at, look in enumerate(looks)
            if not (written and id(given[at]) in numbers)
        ]
        try:
            known = learn(overload, positional, named, meta)
        except OpNotAdmittedError as error:
            if written or not numbers or len(numbers) == len(given):
                return error.reason
            continue  # perhaps it needs a number that was written down
        except RuntimeError as error:
            raise in_words(overload, positional, named, error) from None
        check_memory(overload, positional, named)
        result = checked(overload, positional, named, known.result)
        return known if result is known.result else aftermath(result, known.changes)
    return NEEDS_VALUES
