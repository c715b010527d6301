"""Files and declarations of data owners."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from obhut.host.configuration import WorkerConfiguration, load
from obhut.host.data.datasets import Dataset, load_one
from obhut.host.data.declaration import DatasetDeclaration

HEAD = 'id = "bob"\nlisten = "127.0.0.1:0"\n[policy]\nkind = "UnsafeOpen"\n'

Configure = Callable[[str], WorkerConfiguration]
Load = Callable[..., Dataset]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Return what loads a configuration of this text."""

    def configure(text: str) -> WorkerConfiguration:
        file = tmp_path / "worker.toml"
        file.write_text(text, encoding="utf-8")
        return load(file)

    return configure


@pytest.fixture
def load_data(tmp_path: Path) -> Load:
    """Return what writes a file, and loads it as declared."""

    def load_data(file: str, data: str | bytes | None, **declared: object) -> Dataset:
        path = tmp_path / file
        if data is not None:
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        table = {"name": "d", **declared, "path": path}
        return load_one(
            msgspec.convert(
                table, DatasetDeclaration, dec_hook=lambda kind, value: kind(value)
            )
        )

    return load_data
