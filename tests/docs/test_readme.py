"""The README's code does what the README says it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
END_OF_BLOCK = "--- end of block ---"


def examples(page: Path) -> list[tuple[str, str]]:
    """Return each python block with the text block that shows what it prints.

    A python block that is followed by no text block prints nothing.
    """
    found: list[tuple[str, str]] = []
    for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "python":
            found.append((body, ""))
        else:
            found[-1] = (found[-1][0], body)
    return found


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What each block printed, run one after another in one fresh process."""
    program = f"\nprint({END_OF_BLOCK!r})\n".join(
        code for code, _ in examples(ROOT / "README.md")
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{END_OF_BLOCK}\n")


def test_the_readme_has_examples() -> None:
    """There is code in the README, and what it prints."""
    assert sum(bool(output) for _, output in examples(ROOT / "README.md")) >= 3


def test_the_readme_shows_what_its_code_prints(printed: list[str]) -> None:
    """Each python block prints exactly the text block below it."""
    assert printed == [output for _, output in examples(ROOT / "README.md")]


def test_the_readme_links_to_what_is_there() -> None:
    """Each link and picture that is not on the web is a file; none names a heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    missing = [
        link
        for link in links
        if not link.startswith("https://") and not (ROOT / link).is_file()
    ]
    assert missing == []
