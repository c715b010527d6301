"""Where a node's key and peers are when nobody says.

Rule: commands and ``obhut.connect`` look at the same place, so that who ran ``obhut
init`` can connect.
"""

from __future__ import annotations

import os
from pathlib import Path

from .identity import KEY

VARIABLE = "OBHUT_FOLDER"
"""The environment variable that names the folder."""

CONFIGURATION = "worker.toml"
"""What a worker's configuration is called, if nothing speaks against it."""


def default_folder() -> Path:
    """Return the folder of this user, or of the worker whose folder this is.

    It is what ``OBHUT_FOLDER`` says; else the current one, if it holds an identity or a
    ``worker.toml``; else ``~/.config/obhut``.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    here = Path.cwd()
    if any((here / name).exists() for name in (KEY, CONFIGURATION)):
        return here
    return Path.home() / ".config" / "obhut"
