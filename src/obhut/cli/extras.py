"""Libraries that one command needs, and what is said where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from obhut.errors import MissingExtraError

__all__ = ["MissingExtraError", "import_extra"]


def import_extra(
    module: str, library: str, purpose: str, extra: str = "demo"
) -> ModuleType:
    """Import a module of an optional library.

    Raises:
        MissingExtraError: if the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(library, purpose, extra) from None
