"""Which arrays of a file become which tensor.

Rule: without a choice, every array is a tensor of its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from obhut.errors import DatasetError
from obhut.host.wording import nearest, quote

from .declaration import DatasetDeclaration


@dataclass(frozen=True, slots=True)
class Choice:
    """One tensor that is made of an array.

    Attributes:
        tensor: its name.
        stored: the array's name in the file.
        dtype: what its elements become; ``None`` for what they are.
    """

    tensor: str
    stored: str
    dtype: str | None


def choose(declaration: DatasetDeclaration, names: Sequence[str]) -> tuple[Choice, ...]:
    """Find the declared arrays in a file.

    Raises:
        DatasetError: if one is missing, or there are none.
    """
    file = declaration.file
    if not names:
        raise DatasetError(file, "has no arrays", "save some in it")
    features, target, dtype = (
        declaration.features,
        declaration.target,
        declaration.dtype_of("features"),
    )
    if features is None and target is None:
        return tuple(Choice(name, name, dtype) for name in names)
    choices = []
    for tensor, name, kind in (
        ("features", features, dtype),
        ("target", target, declaration.target_dtype),
    ):
        if not isinstance(name, str):
            continue
        if name not in names:
            like = nearest(name, names)
            raise DatasetError(
                file,
                f"the file has {len(names)} arrays, and none of this name",
                f"did you mean {quote(like)}?" if like else "correct the name",
                column=name,
            )
        choices.append(Choice(tensor, name, kind))
    return tuple(choices)
