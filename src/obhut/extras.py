"""Optional libraries, and what is said where one is missing.

::

    pandas = import_extra("pandas", "History.to_pandas", "pandas")
"""

from __future__ import annotations

import importlib
from types import ModuleType

from obhut.errors import MissingExtraError

__all__ = ["import_extra"]


def import_extra(
    module: str, purpose: str, extra: str, library: str = ""
) -> ModuleType:
    """Import a module of an optional library.

    Args:
        module: its name, as it is imported.
        purpose: what it is needed for.
        extra: the extra of obhut's that has it.
        library: its name, as it is installed, where that is another.

    Raises:
        MissingExtraError: if the library is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingExtraError(library or package, purpose, extra) from None
