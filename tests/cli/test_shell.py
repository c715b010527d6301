from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from .conftest import Invoke

COMMAND = (sys.executable, "-c", "from obhut.cli.main import app; app()", "run")


def _write(folder: Path, *cells: str, may_fail: bool = False) -> Path:
    metadata = {"tags": ["raises-exception"]} if may_fail else {}
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# A title"),
        *(nbformat.v4.new_code_cell(cell, metadata=metadata) for cell in cells),
    ]
    file = folder / "tutorial.ipynb"
    nbformat.write(notebook, file)
    return file


def _saved(file: Path) -> list[NotebookNode]:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_cells_share_a_namespace_and_syft_is_obhut(
    tmp_path: Path, invoke: Invoke
) -> None:
    """Code cells run in order, as one program that may import syft."""
    file = _write(
        tmp_path,
        "import torch\nimport syft as sy\nhook = sy.TorchHook(torch)",
        "bob = sy.VirtualWorker(hook, id='bob')",
        "x = torch.tensor([1.0, 2.0]).send(bob)\nprint((x * 3).get())",
        "print(__name__)",
    )
    before = sys.modules["__main__"]
    result = invoke("run", file)
    assert result.exit_code == 0, result.output
    assert result.stdout == "tensor([3., 6.])\n__main__\n"
    assert sys.modules["__main__"] is before


def test_a_cell_shows_its_last_expression_and_what_it_displays(
    tmp_path: Path, invoke: Invoke
) -> None:
    """As Jupyter prints it; a semicolon hides it, and ``_`` has it."""
    file = _write(
        tmp_path,
        "print('first')\n{'b': 1, 'a': 2}",
        "1 + 1",
        "_ + 1;",
        "x = 5",
        "display('shown')\nNone",
        "if True:\n    'hidden'",
        "import asyncio\nawait asyncio.sleep(0, 'awaited')",
    )
    result = invoke("run", file)
    assert result.exit_code == 0, result.output
    assert result.stdout == "first\n{'b': 1, 'a': 2}\n2\n'shown'\n'awaited'\n"


def test_a_notebook_runs_in_its_folder(tmp_path: Path, invoke: Invoke) -> None:
    """It finds the files beside it, and its arguments; afterwards all is as before."""
    (tmp_path / "rows.txt").write_text("beside it")
    file = _write(
        tmp_path,
        "import sys\nfrom pathlib import Path\n"
        "print(Path('rows.txt').read_text(), sys.argv[1:])",
    )
    before = Path.cwd()
    result = invoke("run", file, "--rounds=3")
    assert result.stdout == "beside it ['--rounds=3']\n"
    assert Path.cwd() == before


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        ("%matplotlib inline\nprint('on')", "on\n"),
        ("if True:\n    !echo 'it runs' \\\n      on", "it runs on\n"),
        ("word = 'on'\n!echo {word}", "on\n"),
        ("!echo on >&2; exit 3\n_exit_code", "on\n3\n"),
        ("!printf '10%%\\r20%%\\n'", "10%\r20%\n"),
        ("a = (7\n% 4)\na", "3\n"),
        ("%%capture said\nprint('off')", ""),
        ("%%bash\necho on", "on\n"),
        ("%cd -q ..\n%cd -q -\n'on'", "'on'\n"),
        ("%load_ext autoreload\n%autoreload 2\n'on'", "'on'\n"),
        (
            "from IPython.display import clear_output\nprint('off')\nclear_output()\n"
            "h = display('on', display_id=True)\nh.update('new')",
            "off\n'on'\n'new'\n",
        ),
        ("%time 1 + 1", r"CPU times: .*\nWall time: .*\n2\n"),
        ("%%time\nx = 2\nx + 1", r"CPU times: .*\nWall time: .*\n3\n"),
    ],
)
def test_magics_and_commands_work(
    cell: str, printed: str, tmp_path: Path, invoke: Invoke
) -> None:
    """What tutorials use does what it does in Jupyter."""
    result = invoke("run", _write(tmp_path, cell))
    assert result.exit_code == 0, result.output
    assert re.fullmatch(printed, result.stdout), result.stdout


@pytest.mark.parametrize(
    ("cell", "left_out"),
    [
        ("!pip install it's", "'!pip install it\\'s'"),
        ("!{sys.executable} -m pip install it", "pip install it'"),
        ("%pip install it", "'%pip install it'"),
        ("%conda install it", "'%conda install it'"),
        ("%tensorflow_version 2.x", "'%tensorflow_version 2.x'"),
        ("%%bash\ncd it\npip3 -q install .", "'%%bash'"),
        ("%%javacode\nx", "'%%javacode'"),
    ],
)
def test_what_installs_and_unknown_magics_are_left_out(
    cell: str, left_out: str, tmp_path: Path, invoke: Invoke
) -> None:
    """A note says so, and the rest of the notebook runs."""
    result = invoke("run", _write(tmp_path, cell, "print('on')"))
    assert result.exit_code == 0, result.output
    assert result.stdout == "on\n"
    assert "cell 1: left out" in result.stderr
    assert left_out.replace("\\", "") in result.stderr.replace('"', "'")


def test_without_matplotlib_its_magic_is_left_out(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that draws nothing needs none."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = invoke("run", _write(tmp_path, "%matplotlib inline\nprint('on')"))
    assert result.stdout == "on\n"
    assert "left out '%matplotlib'" in result.stderr


def test_an_exception_names_cell_and_line(tmp_path: Path, invoke: Invoke) -> None:
    """A traceback names each cell it passes, shows the lines, and nothing of ours."""
    file = _write(
        tmp_path,
        "def fail():\n    return 1 / 0",
        "\n\nx = 1\nfail()",
        "print('not run')",
    )
    result = invoke("run", file)
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = [line.strip() for line in result.stderr.splitlines()]
    assert [line for line in lines if set(line) - set("~^ ")] == [
        "Traceback (most recent call last):",
        f'File "{file}, cell 2", line 4, in <module>',
        "fail()",
        f'File "{file}, cell 1", line 2, in fail',
        "return 1 / 0",
        "ZeroDivisionError: division by zero",
    ]
    assert "    return 1 / 0\n           ~~^~~\n" in result.stderr


@pytest.mark.parametrize("magic", ["%%time", "\n%%time", "%%capture"])
def test_an_exception_under_a_magic_names_cell_and_line(
    magic: str, tmp_path: Path, invoke: Invoke
) -> None:
    """The lines are those of the cell."""
    file = _write(tmp_path, f"{magic}\n\nx = 1\n1 / 0\n")
    result = invoke("run", file)
    assert result.exit_code == 1
    line = 4 + magic.count("\n")
    assert f'File "{file}, cell 1", line {line}, in <module>' in result.stderr
    assert "    1 / 0\n" in result.stderr
    assert "IPython" not in result.stderr


def test_causes_are_shown_without_the_shells_frames(
    tmp_path: Path, invoke: Invoke
) -> None:
    """An exception's cause and a group's members have the cells' frames only."""
    file = _write(
        tmp_path,
        "try:\n    %run missing.py\nexcept Exception as error:\n"
        "    raise ExceptionGroup('both', [ValueError('one')]) from error",
    )
    result = invoke("run", file)
    assert result.exit_code == 1
    assert "ValueError: one" in result.stderr
    assert "direct cause" in result.stderr
    assert "IPython/" not in result.stderr


def test_a_failure_at_a_worker_names_the_cell(tmp_path: Path, invoke: Invoke) -> None:
    """An error of a remote operator names the cell and line that asked for it."""
    file = _write(
        tmp_path,
        "import torch\nimport syft as sy\nbob = sy.VirtualWorker(id='bob')",
        "import obhut\nx = obhut.send(torch.zeros(2), bob)\n"
        "i = obhut.send(torch.tensor([7]), bob)\ny = x[i]\ny.get()",
    )
    result = invoke("run", file)
    assert result.exit_code == 1
    assert f"{file}, cell 2:4" in result.stderr


@pytest.mark.parametrize("above", ["", "%%time\n"])
def test_a_syntax_error_names_the_cell(
    above: str, tmp_path: Path, invoke: Invoke
) -> None:
    """What is not Python, and no magic either, fails with cell and line."""
    file = _write(tmp_path, "x = 1", f"\n{above}y = 1\nz = = 2")
    result = invoke("run", file)
    assert result.exit_code == 1
    assert f'cell 2", line {3 + above.count("%") // 2}\n' in result.stderr
    assert "z = = 2" in result.stderr


def test_a_cell_may_be_meant_to_raise(tmp_path: Path, invoke: Invoke) -> None:
    """One tagged raises-exception shows its traceback, and the next one runs."""
    file = _write(tmp_path, "1 / 0", "print('on')", may_fail=True)
    result = invoke("run", file)
    assert result.exit_code == 0
    assert result.stdout == "on\n"
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('no data')", 1, "no data\n"),
        ("exit()", 0, ""),
        ("%time sys.exit(4)", 4, ""),
    ],
)
def test_a_cell_can_exit(
    code: str, expected: int, said: str, tmp_path: Path, invoke: Invoke
) -> None:
    """The notebook ends there, with its own code and no traceback."""
    file = _write(tmp_path, f"import sys\n{code}", "print('not run')", may_fail=True)
    result = invoke("run", file)
    assert (result.exit_code, result.stdout, result.stderr) == (expected, "", said)


def test_a_notebook_is_saved_with_its_outputs(tmp_path: Path, invoke: Invoke) -> None:
    """Streams, values, displays and errors, in a valid notebook; the first stays."""
    file = _write(
        tmp_path,
        "import sys\nprint('out')\nprint('err', file=sys.stderr)\n7",
        "from IPython.display import HTML\ndisplay(HTML('<b>bold</b>'))",
        "1 / 0",
        "print('not run')",
    )
    before = file.read_text()
    saved = tmp_path / "saved.ipynb"
    result = invoke("run", "--save", saved, file)
    assert result.exit_code == 1
    assert file.read_text() == before
    first, second, third, fourth = _saved(saved)
    assert [output.output_type for output in first.outputs] == [
        "stream",
        "stream",
        "execute_result",
    ]
    assert [output.text for output in first.outputs[:2]] == ["out\n", "err\n"]
    assert first.outputs[2].data == {"text/plain": "7"}
    assert second.outputs[0].data["text/html"] == "<b>bold</b>"
    assert third.outputs[0].ename == "ZeroDivisionError"
    assert f'{file}, cell 3", line 1' in "\n".join(third.outputs[0].traceback)
    counts = [cell.execution_count for cell in (first, second, third, fourth)]
    assert counts == [1, 2, 3, None]
    assert fourth.outputs == []


def test_figures_are_kept(tmp_path: Path) -> None:
    """In the saved notebook and as files, at ``show()`` and at a cell's end."""
    file = _write(
        tmp_path,
        "%matplotlib notebook\nimport matplotlib.pyplot as plt\n"
        "plt.plot([1, 2])\nplt.show()\nprint('after')\nplt.plot([2, 1]);",
    )
    saved, plots = tmp_path / "saved.ipynb", tmp_path / "plots"
    command = [*COMMAND, "--save", saved, "--plots", plots, file]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figure = "<Figure size 640x480 with 1 Axes>\n"
    assert done.stdout == f"{figure}after\n{figure}"
    assert done.stderr.count("obhut run: wrote") == 2
    names = ("cell-1-1.png", "cell-1-2.png")
    assert sorted(path.name for path in plots.iterdir()) == list(names)
    for name in names:
        assert (plots / name).read_bytes().startswith(b"\x89PNG")
    (cell,) = _saved(saved)
    assert sum("image/png" in output.get("data", ()) for output in cell.outputs) == 2


def test_input_and_ctrl_c_work(tmp_path: Path) -> None:
    """Outputs come as they are made; what came before Ctrl-C is saved."""
    file = _write(
        tmp_path,
        "name = input('who? ')\nprint('hello', name, flush=True)",
        "import time\nprint('waits', flush=True)\ntime.sleep(60)",
        "print('not run')",
        may_fail=True,
    )
    saved = tmp_path / "saved.ipynb"
    with subprocess.Popen(
        [*COMMAND, "--save", saved, file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("ann\n")
        process.stdin.flush()
        assert process.stdout.readline() == "who? hello ann\n"
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert out == ""
    assert f'{file}, cell 2", line ' in err
    cells = _saved(saved)
    assert cells[1].outputs[-1].ename == "KeyboardInterrupt"
    assert cells[2].outputs == []


def test_nothing_of_ipythons_is_written(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a profile nor a history at home; the environment is as before."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("MPLBACKEND", "agg")
    file = _write(tmp_path, "import os\nprint(os.environ['MPLBACKEND'])")
    result = invoke("run", file)
    assert "inline" in result.stdout
    assert list(home.iterdir()) == []
    assert invoke("run", file).stdout == result.stdout
