"""A command line in this process, which leaves no patches behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from obhut.cli.main import app
from obhut.compat.hook import TorchHook
from obhut.compat.install import uninstall_syft

Invoke = Callable[..., Result]


@pytest.fixture
def invoke() -> Iterator[Invoke]:
    """Return a function that runs ``obhut`` with its arguments."""
    before = set(sys.modules)

    def run(*args: str | Path) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    yield run
    uninstall_syft()
    if TorchHook.active is not None:
        TorchHook.active.unhook()
    assert not {name for name in set(sys.modules) - before if "syft" in name}
