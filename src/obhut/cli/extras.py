"""Libraries that one command needs, and what is said where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(Exception):
    """A library that is not installed.

    Attributes:
        library: its name, as it is installed.
        purpose: what it is needed for.
        extra: the package's extra that has it.
    """

    def __init__(self, library: str, purpose: str, extra: str = "demo") -> None:
        super().__init__(library, purpose, extra)
        self.library = library
        self.purpose = purpose
        self.extra = extra

    def __str__(self) -> str:
        return (
            f"{self.purpose} needs {self.library}, which is not installed; "
            f"install it with: pip install 'obhut[{self.extra}]'"
        )


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
