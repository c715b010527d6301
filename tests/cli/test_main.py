from __future__ import annotations

import subprocess
import sys

import obhut

from .conftest import Invoke


def test_version(invoke: Invoke) -> None:
    """``obhut --version`` prints the package's version."""
    assert invoke("--version").output == f"obhut {obhut.__version__}\n"


def test_help_names_the_commands(invoke: Invoke) -> None:
    """``obhut --help`` names what can be done, and so does no argument at all."""
    for args in (["--help"], []):
        output = invoke(*args).output
        assert "demo" in output
        assert "run" in output


def test_help_loads_no_torch() -> None:
    """Help is quick: it loads neither torch nor scikit-learn nor matplotlib."""
    code = (
        "import sys; from typer.testing import CliRunner\n"
        "from obhut.cli.main import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "sys.exit(not {'torch', 'sklearn', 'matplotlib'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
