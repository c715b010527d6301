"""The picture of the rooms is what the imports are."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_picture_is_drawn_from_the_imports() -> None:
    """It is the one that the script would draw, and no arrow goes up."""
    drawn = subprocess.run(
        [sys.executable, ROOT / "tools" / "rooms.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert drawn.returncode == 0, drawn.stdout + drawn.stderr
    assert "0 of them upwards" in drawn.stdout
