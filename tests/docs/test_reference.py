"""The reference by what one wants to do has every name that a program uses."""

import re
from pathlib import Path
from types import ModuleType

import obhut
import obhut.federated

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
LINK = re.compile(r"\{py:obj\}`(obhut(?:\.federated)?)\.(\w+) <([\w.]+)>`")


def homes() -> set[tuple[str, str, str]]:
    """Return public names but the older library's: whose, the name, where it is."""
    return {
        (package.__name__, name, _home(found))
        for package in (obhut, obhut.federated)
        for name in package.__all__
        if name not in (*obhut._OLD_HOMES, "exceptions")
        for found in [getattr(package, name)]
    }


def _home(found: object) -> str:
    """Return where a name is described."""
    if isinstance(found, ModuleType):
        return found.__name__
    return f"{found.__module__}.{found.__qualname__}"  # type: ignore[attr-defined] # a class or a function


def test_every_public_name_is_on_the_page() -> None:
    """Each links to its description, and no other name does."""
    assert set(LINK.findall(PAGE.read_text(encoding="utf-8"))) == homes()
