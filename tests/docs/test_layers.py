"""The map of each layer names every module that is there, and none that is not."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "obhut"
PAGES = ROOT / "docs" / "layers"
LAYERS = sorted(page.stem for page in PAGES.glob("*.md") if page.stem != "index")


def modules(layer: str) -> dict[str, str]:
    """Return the names of a layer's modules, by their paths below it."""
    if (SOURCE / f"{layer}.py").exists():
        return {layer: layer}
    folder = SOURCE / layer
    return {
        str(file.relative_to(folder).with_suffix("")): file.stem
        for file in folder.rglob("*.py")
        if not file.stem.startswith("__")
    }


def test_each_layer_has_a_page() -> None:
    """A folder of the package that no page is about is on no map."""
    found = {
        entry.stem
        for entry in SOURCE.iterdir()
        if not entry.name.startswith(("_", ".")) and entry.suffix in ("", ".py")
    }
    assert found == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_page_names_every_module_of_its_layer(layer: str) -> None:
    """In code type: in a table, in a sentence, or by its reference."""
    page = (PAGES / f"{layer}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_0-9]+)`", page))
    named |= {
        path.removeprefix(f"obhut.{layer}.").replace(".", "/")
        for path in re.findall(r"\bobhut(?:\.[a-z_0-9]+)+", page)
    }
    missing = {
        path
        for path, name in modules(layer).items()
        if name not in named and path not in named
    }
    assert not missing


@pytest.mark.parametrize("layer", LAYERS)
def test_a_page_lists_no_module_that_is_gone(layer: str) -> None:
    """What stands first in a row of a table of modules is one."""
    page = (PAGES / f"{layer}.md").read_text(encoding="utf-8")
    listed: set[str] = set()
    for table in re.findall(r"^\| module \|.*\n(?:\|.*\n)+", page, re.MULTILINE):
        for row in table.splitlines()[2:]:
            listed |= set(re.findall(r"`([^`]+)`", row.split("|")[1]))
    assert listed <= set(modules(layer).values())
