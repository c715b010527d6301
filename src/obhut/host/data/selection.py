"""Which arrays of a file become which tensor.

::

    with ArrayTensors(declaration) as tensors:
        for choice in tensors.choose(("x", "y")):
            tensors.append(choice, stored, stream, file)     # once, or for each part
        loaded = tensors.finish()

Rule: without a choice, every array is a tensor of its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from obhut.errors import DatasetError
from obhut.host.closing import Closing
from obhut.host.wording import nearest, quote

from .arrays import Array
from .declaration import DatasetDeclaration
from .report import Report
from .stored import Readable, Stored, TensorMaker


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


class Loaded(NamedTuple):
    """What was made of arrays.

    Attributes:
        tensors: by choice.
        report: for the owner.
    """

    tensors: tuple[tuple[Choice, Array], ...]
    report: Report


class ArrayTensors(Closing):
    """The tensors of a data set while they are made of arrays.

    Use it as a context manager: what was not finished is given up.
    """

    def __init__(self, declaration: DatasetDeclaration) -> None:
        self._declaration = declaration
        self._nan = declaration.missing == "nan"
        self._makers: dict[Choice, TensorMaker] = {}

    def close(self) -> None:
        """Give up what was not finished."""
        for maker in self._makers.values():
            maker.close()

    def choose(self, names: Sequence[str]) -> tuple[Choice, ...]:
        """Find the declared arrays.

        Raises:
            DatasetError: if one is missing, or there are none.
        """
        choices = choose(self._declaration, names)
        self._makers = {one: TensorMaker(one.dtype, self._nan) for one in choices}
        return choices

    def append(
        self,
        choice: Choice,
        stored: Stored,
        stream: Readable,
        file: str,
        *,
        ahead: bool = True,
    ) -> None:
        """Add an array's rows to its tensor.

        Args:
            choice: the tensor, from ``choose``.
            stored: what the array is.
            stream: stands at its first byte.
            file: where it is, for errors.
            ahead: as for ``TensorMaker.append``.

        Raises:
            DatasetError: naming the element's row.
        """
        self._makers[choice].append(stored, stream, file, ahead=ahead)

    def finish(self) -> Loaded:
        """Return the tensors.

        Raises:
            DatasetError: if one has no elements, or a column of whole numbers was
                rounded.
        """
        made, columns = [], []
        for choice, maker in self._makers.items():
            if not maker.begun:
                raise DatasetError(
                    self._declaration.file,
                    "has no elements",
                    "leave it out, or fill it",
                    column=choice.stored,
                )
            array, column = maker.finish()
            made.append((choice, array))
            columns.append(replace(column, becomes=f"{choice.tensor}, {array.dtype}"))
        rows = max((a.shape[0] for _, a in made if a.shape), default=1)
        return Loaded(tuple(made), Report(tuple(columns), rows, rows))


def choose(declaration: DatasetDeclaration, names: Sequence[str]) -> tuple[Choice, ...]:
    """Find the declared arrays in a file.

    Raises:
        DatasetError: if one is missing, or there are none.
    """
    file = declaration.file
    if not names:
        raise DatasetError(file, "has no arrays", "save some in it")
    wanted = _wanted(declaration, names)
    dtypes = declaration.dtype if isinstance(declaration.dtype, dict) else {}
    for tensor in dtypes:
        if tensor not in wanted:
            problem = "dtype names a tensor that there is not"
            raise _unknown(file, problem, tensor, tuple(wanted))
    for name in wanted.values():
        if name not in names:
            problem = f"there are {len(names)} arrays, and none of this name"
            raise _unknown(file, problem, name, names)
    named = declaration.target is not None  # else "target" is a name as any other
    return tuple(
        Choice(
            tensor,
            name,
            declaration.dtype_of("features" if not (named or dtypes) else tensor),
        )
        for tensor, name in wanted.items()
    )


def _wanted(declaration: DatasetDeclaration, names: Sequence[str]) -> dict[str, str]:
    """Return the arrays' names by those of their tensors."""
    features, target = declaration.features, declaration.target
    if features is None and target is None:
        return {name: name for name in names}
    wanted = {}
    if isinstance(features, dict):
        wanted = {key: one for key, one in features.items() if isinstance(one, str)}
    elif isinstance(features, str):
        wanted = {"features": features}
    if isinstance(target, str):
        wanted["target"] = target
    return wanted


def _unknown(file: str, problem: str, name: str, known: Sequence[str]) -> DatasetError:
    like = nearest(name, known)
    advice = f"did you mean {quote(like)}?" if like else "correct the name"
    return DatasetError(file, problem, advice, column=name)
