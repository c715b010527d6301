"""A file as an owner has it, how it is declared, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Content: TypeAlias = str | bytes | Callable[[Path], None]
"""A file's text or bytes, or what writes it to a path."""

Values: TypeAlias = Sequence[object]
"""Elements of a tensor, nested as its dimensions are."""


@dataclass(frozen=True)
class Case:
    """One data set.

    Attributes:
        name: what it is about.
        files: what is written, by path below a folder. The data set's path is the
            first, unless ``toml`` has one.
        toml: the keys of its ``[[dataset]]`` table besides name and path.
        tensors: what it becomes, by data set and tensor: ``d/features``.
        dtypes: element types by tensor, where they are not float32.
        refused: a part of the first line of its error, where it becomes nothing.
        noted: parts of the owner's report, each somewhere in it.
    """

    name: str
    files: Mapping[str, Content]
    toml: str = ""
    tensors: Mapping[str, Values] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    noted: tuple[str, ...] = ()


class Cases(list[Case]):
    """Cases of one kind of file.

    Args:
        file: what the file is called.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file

    def loads(
        self,
        name: str,
        content: Content | Mapping[str, Content],
        toml: str = 'features = "*"',
        features: Values | None = None,
        *,
        file: str = "",
        target: Values | None = None,
        noted: str | tuple[str, ...] = (),
        dtypes: Mapping[str, str] | None = None,
        **others: Values,
    ) -> None:
        """Add a file that becomes tensors. Others are ``dataset__tensor`` by name."""
        tensors = {one.replace("__", "/"): values for one, values in others.items()}
        for tensor, values in (("features", features), ("target", target)):
            if values is not None:
                tensors[f"d/{tensor}"] = values
        noted = (noted,) if isinstance(noted, str) else noted
        files = self._files(content, file)
        self.append(Case(name, files, toml, tensors, dict(dtypes or {}), noted=noted))

    def refuses(
        self,
        name: str,
        content: Content | Mapping[str, Content],
        toml: str,
        refused: str,
        *,
        file: str = "",
    ) -> None:
        """Add a file of which the error's first line says this."""
        self.append(Case(name, self._files(content, file), toml, refused=refused))

    def _files(
        self, content: Content | Mapping[str, Content], file: str
    ) -> Mapping[str, Content]:
        if isinstance(content, Mapping):
            return content
        return {file or self._file: content}
