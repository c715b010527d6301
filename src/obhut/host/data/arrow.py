"""pyarrow, which is loaded when it is first used.

::

    from .arrow import pa, pc
    pc.is_null(pa.array([None]))     # loads it

Rule: whoever reads no table needs no memory and no start for it.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Module:
    """A module that is imported with the first look into it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, found)
        return found


pa: Any = _Module("pyarrow")
"""The module ``pyarrow``."""

pc: Any = _Module("pyarrow.compute")
"""The module ``pyarrow.compute``."""

pa_parquet: Any = _Module("pyarrow.parquet")
"""The module ``pyarrow.parquet``."""

pa_csv: Any = _Module("pyarrow.csv")
"""The module ``pyarrow.csv``."""
