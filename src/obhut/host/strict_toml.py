"""TOML read into frozen structs, with nothing passed over.

Rules:

- A key that is not known is refused, with the nearest one that is.
- An error names the key in the words of the file: ``sessions of [limits]``,
  ``path of [[dataset]] "diagnosis"``.
"""

from __future__ import annotations

import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import msgspec

from obhut.errors import ConfigurationError, PolicyError

from .wording import enumerate_names, nearest, quote

Table: TypeAlias = dict[str, object]

Keys: TypeAlias = tuple[str | int, ...]
"""The way to a value: names of keys, and places in lists from 0."""

Check: TypeAlias = Callable[[bool, str | Keys, str, str], None]
"""Takes whether a key is right, the key or the way to it, what is wrong, what to do."""

T = TypeVar("T", bound=msgspec.Struct)

_FILE_BYTES = 2**20
"""Bytes of a configuration; one that is longer is some other file."""

_WORDS: Mapping[str, str] = {
    "array": "a list in [ ]",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "text in quotes",
}
"""What msgspec calls a type, in an owner's words."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file's tables, before they are checked.

    Attributes:
        file: where it came from.
        tables: what it says.
        advice: what to do about a key that is missing, by the key in words.
    """

    file: Path
    tables: Table
    advice: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, advice: Mapping[str, str]) -> Document:
        """Read a file.

        Raises:
            ConfigurationError: if it can not be read, or is not TOML.
        """
        try:
            with file.open("rb") as stream:
                data = stream.read(_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigurationError(
                str(file),
                "",
                f"can not be read: {error.strerror}",
                "check the path and who may read it",
            ) from error
        if len(data) > _FILE_BYTES:
            raise ConfigurationError(
                str(file),
                "",
                f"expected at most {_FILE_BYTES:,} bytes",
                "check that it is the configuration",
            )
        try:
            tables = tomllib.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigurationError(
                str(file), f"line {line}", "is not UTF-8", "save the file as UTF-8"
            ) from error
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigurationError(
                str(file), "", f"is not TOML: {error}", "correct that place"
            ) from error
        return cls(file, tables, advice)

    def convert(self, kind: type[T], parse: Callable[[type, object], object]) -> T:
        """Return the tables as a struct.

        Args:
            kind: the struct; names of its fields are the keys.
            parse: makes a value of a type that TOML does not have, or raises
                ``ValueError`` with what it expected.

        Raises:
            ConfigurationError: naming the key, what was expected and what came.
        """
        top = tuple(one.encode_name for one in msgspec.structs.fields(kind))
        self._check(self.tables, kind, (), top)
        try:
            return msgspec.convert(self.tables, kind, dec_hook=parse)
        except msgspec.ValidationError as error:
            text, keys = _parse(str(error))
            if isinstance(error.__cause__, PolicyError):
                said = error.__cause__
                raise self.error((*keys, said.key), said.problem, said.advice) from said
            advice = "correct it, or leave the key out for its default"
            if ", got" not in text:
                text += f", got {quote(self._at(keys))}"
            raise self.error(keys, text, advice) from error

    def error(self, keys: Keys, problem: str, advice: str) -> ConfigurationError:
        """Return the error that names a key of this file."""
        return ConfigurationError(str(self.file), self._spoken(keys), problem, advice)

    def check_in(self, *table: str | int) -> Check:
        """Return what refuses keys of a table, by the way to it."""

        def check(ok: bool, key: str | Keys, problem: str, advice: str) -> None:
            if not ok:
                keys = (key,) if isinstance(key, str) else key
                raise self.error((*table, *keys), problem, advice)

        return check

    def _check(
        self,
        table: Table,
        kind: type[msgspec.Struct],
        keys: Keys,
        top: tuple[str, ...],
    ) -> None:
        """Refuse keys that are unknown or missing, and choices that are none."""
        fields = {one.encode_name: one for one in msgspec.structs.fields(kind)}
        tag = kind.__struct_config__.tag_field
        known = tuple(fields) if tag is None else (tag, *fields)
        for name in table:
            if name not in known:
                raise self._unknown(name, known, keys, top)
        for name, one in fields.items():
            if name not in table:
                if one.required:
                    spoken = self._spoken((*keys, name))
                    advice = self.advice.get(spoken, f"add {name} = …")
                    raise self.error((*keys, name), "is missing", advice)
                continue
            value = table[name]
            choices = _choices(one.type)
            if choices and isinstance(value, str) and value not in choices:
                like = nearest(value, choices)
                raise self.error(
                    (*keys, name),
                    f"expected {enumerate_names([quote(c) for c in choices], 'or')}, "
                    f"got {quote(value)}",
                    f"write {quote(like or choices[0])}",
                )
            inner = _structs(one.type)
            if inner:
                for at, entry in _tables((*keys, name), value):
                    self._check(entry, self._chosen(inner, entry, at), at, top)

    def _chosen(
        self, kinds: tuple[type[msgspec.Struct], ...], table: Table, keys: Keys
    ) -> type[msgspec.Struct]:
        """Return which of several structs a table says that it is."""
        by_tag = {str(one.__struct_config__.tag): one for one in kinds}
        tag = kinds[0].__struct_config__.tag_field
        if tag is None:
            return kinds[0]
        if tag not in table:
            advice = self.advice.get(self._spoken((*keys, tag)), f"add {tag} = …")
            raise self.error((*keys, tag), "is missing", advice)
        said = table[tag]
        if isinstance(said, str) and said in by_tag:
            return by_tag[said]
        names = [quote(one) for one in by_tag]
        like = nearest(str(said), tuple(by_tag))
        raise self.error(
            (*keys, tag),
            f"expected {enumerate_names(names, 'or')}, got {quote(said)}",
            f"did you mean {quote(like)}?" if like else f"write {names[0]}",
        )

    def _unknown(
        self, name: str, known: tuple[str, ...], keys: Keys, top: tuple[str, ...]
    ) -> ConfigurationError:
        like = nearest(name, known)
        if keys and name in top:
            advice = "it belongs at the top of the file, before the first [table]"
        elif like is not None:
            advice = f"did you mean {like}?"
        else:
            advice = f"known here: {enumerate_names(known)}"
        return self.error((*keys, name), "is not a known key", advice)

    def _at(self, keys: Keys) -> object:
        value: object = self.tables
        for key in keys:
            if isinstance(value, dict | list):
                value = value[key]  # type: ignore[index]  # msgspec named the way
        return value

    def _spoken(self, keys: Keys) -> str:
        """Return the way to a key from the inside out, in the file's own notation."""
        words: list[str] = []
        value: object = self.tables
        for place, key in enumerate(keys):
            last = place == len(keys) - 1
            inside = value.get(key) if isinstance(value, dict) else None
            if isinstance(key, int):
                if isinstance(value, list) and key < len(value):
                    inside = value[key]
                name = inside.get("name") if isinstance(inside, dict) else None
                which = quote(name) if isinstance(name, str) else f"number {key + 1}"
                if isinstance(inside, dict) and words:
                    words[-1] = f"[[{words[-1].strip('[]')}]] {which}"
                else:
                    words.append(f"entry {key + 1}")
            elif isinstance(inside, dict) and (not last or place == 0):
                words.append(f"[{key}]")
            else:
                words.append(str(key) if len(str(key)) < 60 else quote(key))
            value = inside
        return " of ".join(reversed(words))


def _parse(text: str) -> tuple[str, Keys]:
    """Split what msgspec says into what is wrong, in other words, and where."""
    text, _, where = text.partition(" - at `$")
    keys = tuple(
        int(index) if index else name
        for name, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", where)
    )

    def rename(match: re.Match[str]) -> str:
        names = [one for one in match[1].split(" | ") if one != "null"]
        return enumerate_names([_WORDS.get(one, one) for one in names], "or")

    text = re.sub(r"`([^`]+)`", rename, text)
    return text[:1].lower() + text[1:], keys


def _tables(keys: Keys, value: object) -> Iterator[tuple[Keys, Table]]:
    if isinstance(value, dict):
        yield keys, value
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, dict):
                yield (*keys, index), entry


def _structs(annotation: object) -> tuple[type[msgspec.Struct], ...]:
    """Return the structs that a field may hold, alone or in a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return (annotation,)
    if typing.get_origin(annotation) in (tuple, types.UnionType):
        inner = typing.get_args(annotation)
        return tuple(one for each in inner for one in _structs(each))
    return ()


def _choices(annotation: object) -> tuple[str, ...]:
    """Return the texts that a field may hold, if they are a list."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        for inner in typing.get_args(annotation):
            found = _choices(inner)
            if found:
                return found
    return ()
