"""An owner's loader behind its walls: what it can not do, and what it may return."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from obhut.errors import DatasetError, SandboxError
from obhut.host.data.datasets import Dataset, load_one
from obhut.host.data.declaration import DatasetDeclaration
from obhut.transports.pipe import landlock, loading
from obhut.transports.pipe.loading import Loading

Run = Callable[..., Dataset]

POOR = (sys.executable, "-P", str(Path(__file__).with_name("poor_loader.py")))
HERE = str(Path(loading.__file__).parents[3])

IMPORTS = "import os, socket, subprocess, sys, time, tempfile\nimport numpy as np\n"
ONE = "    return np.ones(1)\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an owner's folder with a key in it."""
    (tmp_path / "identity.key").write_text("the secret")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "stored").write_text("another")
    (tmp_path / "rows.txt").write_text("1 2 3")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return what loads a data set by a loader of this text."""
    monkeypatch.setenv("PYTHONPATH", HERE)

    def run(
        body: str, command: object = None, walled: bool = True, **declared: object
    ) -> Dataset:
        text = IMPORTS + textwrap.dedent(body)
        (folder / "clinic.py").write_text(text)
        secrets = (folder / "identity.key", folder / "state")
        run = Loading(secrets, walled)
        if command is not None:
            run = Loading(secrets, walled, command)  # type: ignore[arg-type] # as given
        table = {"name": "d", "loader": folder / "clinic:load", **declared}
        return load_one(DatasetDeclaration(**table), run=run)  # type: ignore[arg-type] # as given

    return run


def values(dataset: Dataset) -> dict[str, object]:
    """Return a data set's tensors as lists."""
    return {
        name: np.frombuffer(one.data, one.dtype).reshape(one.shape).tolist()
        for name, one in dataset.tensors.items()
    }


# --- what it may return -------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return np.arange(3)", {"features": [0, 1, 2]}),
        ("return [[1.5], [2]]", {"features": [[1.5], [2.0]]}),
        ("return np.array(2.5)", {"features": 2.5}),
        (
            "return np.arange(4).reshape(2, 2).T, [0, 1]",
            {"features": [[0, 2], [1, 3]], "target": [0, 1]},
        ),
        ("return {'a': np.array([1], '>i4'), 'b': [True]}", {"a": [1], "b": [True]}),
        (
            "return iter([np.ones((2, 1)), np.zeros((0, 1)), np.zeros((1, 1))])",
            {"features": [[1], [1], [0]]},
        ),
    ],
)
def test_arrays_come_as_they_are(run: Run, body: str, expected: object) -> None:
    """One, a pair, several by name, or pieces, whose rows follow each other."""
    assert values(run(f"def load():\n    {body}\n")) == expected


def test_tensors_come_as_they_are(run: Run) -> None:
    """PyTorch's, of types that NumPy has not, too; the worker loads none for it."""
    body = """
    import torch
    def load():
        yield {"x": torch.ones(2, 3, requires_grad=True).T,
               "h": torch.ones(3, dtype=torch.bfloat16),
               "e": torch.ones(3, dtype=torch.float8_e4m3fn)}
    """
    tensors = run(body).tensors
    assert {n: (a.dtype, a.shape) for n, a in tensors.items()} == {
        "x": ("float32", (3, 2)),
        "h": ("bfloat16", (3,)),
        "e": ("float8_e4m3fn", (3,)),
    }


def test_a_declaration_chooses_and_converts(run: Run) -> None:
    """As of a file: which arrays, of which type; what does not fit is refused."""
    body = "def load():\n    return {'x': [[1, 2]], 'y': [3], 'z': [20240105]}\n"
    found = run(body, features="x", target="y", dtype="float32")
    assert values(found) == {"features": [[1.0, 2.0]], "target": [3]}
    assert found.tensors["features"].dtype == "float32"
    with pytest.raises(
        DatasetError, match=r'"z": expected a whole number that float32'
    ):
        run(body, dtype="float32")
    with pytest.raises(DatasetError, match="expected a finite number, got NaN"):
        run("def load():\n    return np.array([1, np.nan])\n")


FRAME = """
def load():
    import pandas
    return pandas.DataFrame(
        {"age": [41, 52, 63], "sex": ["m", "f", None], "day": ["2024-01-05"] * 3},
        index=["a", "b", "c"],
    )
"""


def test_a_table_is_one_as_a_file_has(run: Run) -> None:
    """With all keys of tables: columns, categories, conditions, missing values."""
    found = run(
        FRAME,
        features="*",
        exclude=("day",),
        encode={"sex": ("m", "f")},
        where="age > 45",
        missing="nan",
    )
    (features,) = values(found).values()
    assert features[0] == [52, 1]  # type: ignore[index] # a list
    assert features[1][0] == 63  # type: ignore[index] # likewise
    assert np.isnan(features[1][1])  # type: ignore[index] # likewise
    assert (found.report.rows, found.report.used) == (3, 2)
    aside = {one.name: one.note for one in found.report.columns if not one.becomes}
    assert "index" in aside["__index_level_0__"]
    assert any("walls" in note for note in found.report.notes)
    with pytest.raises(DatasetError, match='row 3, column "sex"'):
        run(FRAME, features="*", exclude=("day",), encode={"sex": ("m", "f")})
    with pytest.raises(DatasetError, match="used only if they are named"):
        run(FRAME)


@pytest.mark.parametrize("kind", ["pyarrow", "pieces", "other"])
def test_tables_of_other_libraries(run: Run, kind: str) -> None:
    """pyarrow's, several pieces, and whatever hands its rows on as Arrow does."""
    body = """
    import pyarrow as pa
    class Other:
        def __init__(self, table):
            self.table = table
        def __arrow_c_stream__(self, schema=None):
            return self.table.__arrow_c_stream__(schema)
    def load():
        made = pa.table({"x": [1.5, 2.5], "y": [0, 1]})
        match KIND:
            case "pyarrow":
                return pa.concat_tables([made, made])
            case "other":
                return Other(pa.concat_tables([made, made]))
        return iter([made, made.slice(0, 0), made])
    """
    found = run(body.replace("KIND", repr(kind)), features="x", target="y")
    assert values(found) == {
        "features": [1.5, 2.5, 1.5, 2.5],
        "target": [0, 1, 0, 1],
    }


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ("table, np.ones(1)", "returned arrays after a table"),
        ("np.ones(1), table", "returned a table after arrays"),
        ("table, pa.table({'y': [1]})", "tables of several columns or types"),
        ("table, pa.table({'x': ['a']})", "tables of several columns or types"),
    ],
)
def test_pieces_are_alike(run: Run, pieces: str, words: str) -> None:
    """All tables of the same columns, or all arrays."""
    body = f"""
    import pyarrow as pa
    def load():
        table = pa.table({{"x": [1]}})
        return iter([{pieces}])
    """
    declared = {} if pieces.startswith("np") else {"features": ("x",)}
    with pytest.raises(DatasetError, match=words):
        run(body, **declared)


def test_keys_of_tables_mean_nothing_for_arrays(run: Run) -> None:
    """Where it is known that there are no columns."""
    with pytest.raises(DatasetError, match="returned arrays, and where is for tables"):
        run("def load():\n" + ONE, where="a > 1")


@pytest.mark.parametrize(
    "change",
    [
        "data[:8] = bytes(8)",
        "data[4:8] = b'\\xff\\xff\\xff\\x7f'",
        "del data[len(data) // 2 :]",
        "data[-64:] = bytes(64)",
        "data[OFFSETS : OFFSETS + 8] = b'\\xff\\xff\\xff\\x7f' * 2",
    ],
)
def test_a_forged_table_is_refused_or_read(run: Run, change: str) -> None:
    """Offsets that lead out of the memory do not lead there."""
    body = f"""
    import pyarrow as pa
    from obhut.host.data.loader_messages import Done, Rows, write
    def load():
        table = pa.table({{"x": ["aaaa", "bbbb", "cccc"]}})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        data = bytearray(sink.getvalue())
        OFFSETS = data.index((4).to_bytes(4, "little") + (8).to_bytes(4, "little"))
        {change}
        for fd in range(3, 1024):
            try:
                write(fd, Rows(len(data)), [memoryview(data)])
                write(fd, Done())
            except OSError:
                pass
        os._exit(0)
    """
    encode = {"x": ("aaaa", "bbbb", "cccc")}
    with pytest.raises(DatasetError, match="clinic:load"):
        run(body, features=("x",), encode=encode)


def test_a_loader_gets_the_path_and_reads_what_is_there(run: Run, folder: Path) -> None:
    """The declared path as an argument; other files relative to the folder."""
    body = """
    def load(path):
        assert "rows.txt" in os.listdir(".") and path.is_absolute()
        with tempfile.TemporaryDirectory() as scratch:
            with open(scratch + "/x", "w") as file:
                file.write(path.read_text())
            return np.loadtxt(scratch + "/x"), np.loadtxt("rows.txt")
    """
    found = run(body, path=folder / "rows.txt")
    assert values(found) == {"features": [1, 2, 3], "target": [1, 2, 3]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return None", "returned None, and not an array"),
        ("return 'text'", "features is a str, and not an array"),
        ("return np.array(['a'])", "elements of <U1"),
        ("return np.array([object()])", "elements of object"),
        ("return [[1], [1, 2]]", "rows of several lengths"),
        ("return 1, 2, 3", "this has 3 parts: name them in a dict"),
        ("return {}", "the dict is empty"),
        ("return {1: [1]}", "a dict has arrays by name"),
        ("return iter([])", "it yielded nothing"),
        ("return np.zeros((0, 3))", "has no elements"),
        ("return iter([np.ones(1), {'x': np.ones(1)}])", "with arrays of other names"),
        ("return iter([np.ones((1, 2)), np.ones((1, 3))])", "is float64, 1 x 3, and"),
        ("return np.ones((2, 1)), np.ones(3)", "2 rows of features and 3"),
        ("raise ValueError('patient 7')", "raised ValueError in clinic.py, line 5"),
        ("sys.exit(3)", "raised SystemExit in clinic.py, line 5, load"),
        ("os._exit(3)", "ended before it returned: it exited with 3"),
        ("os.abort()", "ended before it returned: SIG"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_named(run: Run, body: str, words: str) -> None:
    """What it returned, where it failed, or how its process ended."""
    with pytest.raises(DatasetError, match=words) as caught:
        run(f"\ndef load():\n    {body}\n")
    assert "patient" not in str(caught.value)


def test_a_loader_that_is_not_there(run: Run) -> None:
    """Module and function are named; an import that fails inside it is the owner's."""
    with pytest.raises(DatasetError, match="clinic has no function load"):
        run("load = 3\n")
    with pytest.raises(DatasetError, match="raised ModuleNotFoundError in clinic"):
        run("import nowhere_at_all\n")
    with pytest.raises(DatasetError, match="there is no module nowhere_at_all in /"):
        run("", loader=Path("/nowhere_at_all:load"))


def test_what_it_prints_is_the_owners_to_see(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line by line, with nothing that could move the terminal's cursor."""
    body = """
    def load():
        print("one\\x1b[2J", end="\\rtwo\\n", flush=True)
        os.system("echo three >&2")
        raise KeyError("the whole trace")
    """
    with pytest.raises(DatasetError):
        run(body)
    said = capsys.readouterr().err
    assert "d: one\\x1b[2J\nd: two\n" in said
    assert "d: three\n" in said
    assert "KeyError: 'the whole trace'\n" in said
    assert "loader_call" not in said


# --- what it can not do -------------------------------------------------------------


ATTACKS = {
    "reads the key": "open('identity.key')",
    "reads what requesters stored": "open('state/stored')",
    "reads it by a name": "os.link('identity.key', TMP + '/l') or open(TMP + '/l')",
    "reads it by a program": "subprocess.run(['cat', 'identity.key'], check=True)",
    "reads the worker's memory": "open(f'/proc/{PARENT}/mem', 'rb').read(1)",
    "reads the worker's variables": "open(f'/proc/{PARENT}/environ').read(1)",
    "takes the worker's files": "open(f'/proc/{PARENT}/fd/0')",
    "writes beside the data": "open('new.txt', 'w')",
    "changes a file": "open('rows.txt', 'a')",
    "shortens a file": "os.truncate('rows.txt', 0)",
    "removes a file": "os.remove('rows.txt')",
    "renames a file": "os.rename('rows.txt', TMP + '/x')",
    "writes into the system's": "open('/var/tmp/obhut-loader-was-here', 'w')",
    "connects": "socket.create_connection(('127.0.0.1', PORT), 2)",
    "listens": "socket.create_server(('127.0.0.1', 0))",
    "speaks to a socket that is a file": "socket.socket(socket.AF_UNIX)",
    "ends the worker": "os.kill(PARENT, 9)",
    "watches the worker": "ctypes.CDLL(None).ptrace(16, PARENT, 0, 0) < 0 and 1 / 0",
    "leaves its namespace": "os.close(os.open('/proc/1/ns/net', os.O_RDONLY))",
    "mounts": "ctypes.CDLL(None).mount(b'/', b'/mnt', None, 4096, None) and 1 / 0",
}  # fmt: skip


@pytest.mark.parametrize("poor", [False, True])
def test_attacks_fail(run: Run, folder: Path, poor: bool) -> None:
    """Each by itself, with namespaces and without; the files are as they were."""
    if poor and not landlock.version():
        pytest.skip("without namespaces files are kept by Landlock alone")
    with socket.create_server(("127.0.0.1", 0)) as server:
        lines = "\n".join(
            f"    attempt({name!r}, lambda: ({action}))"
            for name, action in ATTACKS.items()
        )
        body = f"""\
import ctypes
PARENT, PORT = {os.getpid()}, {server.getsockname()[1]}
done, TMP = [], os.environ["TMPDIR"]
def attempt(name, action):
    try:
        action()
    except (OSError, ZeroDivisionError, subprocess.SubprocessError):
        return
    done.append(name)
def load():
{lines}
    assert not done, done
    return np.ones(1)
"""
        found = run(body, (*POOR, "namespaces") if poor else None)
    walls = found.report.notes[0]
    assert ("network" in walls) is not poor
    assert (folder / "rows.txt").read_text() == "1 2 3"
    assert not (folder / "new.txt").exists()
    assert not Path("/var/tmp/obhut-loader-was-here").exists()


def test_the_network_is_open_where_its_owner_opened_it(run: Run) -> None:
    """For a loader that asks a server. The other walls stand."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = f"""
        def load():
            socket.create_connection({server.getsockname()!r}, 5).close()
            try:
                open("identity.key")
            except OSError:
                return np.ones(1)
        """
        walls = run(body, loader_network=True).report.notes[0]
    assert "network" not in walls
    assert "system calls" in walls


def test_a_host_without_walls_runs_no_loader(run: Run) -> None:
    """Unless its owner says so, by the network or by ``sandbox = "none"``."""
    body = "def load():\n" + ONE
    with pytest.raises(SandboxError, match="wall to the network"):
        run(body, (*POOR, "all"))
    assert run(body, (*POOR, "all"), loader_network=True)
    assert run(body, walled=False).report.notes == ("read behind these walls: none",)


@pytest.mark.parametrize("poor", [False, True])
def test_nothing_that_it_starts_stays(run: Run, folder: Path, poor: bool) -> None:
    """Not a process that left its group, nor one that holds pipe and console."""
    mark = f"obhut-test-{os.getpid()}-{poor}"
    body = f"""
    def load():
        code = "import os, time; os.setsid(); print(1, flush=True); time.sleep(600)"
        child = subprocess.Popen(
            [sys.executable, "-c", code, {mark!r}], close_fds=False,
            stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"1\\n"
        return np.ones(1)
    """
    assert run(body, (*POOR, "namespaces") if poor else None)
    deadline = time.monotonic() + 10
    while _running(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _running(mark: str) -> bool:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in process.read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(
    "written",
    [
        "b'garbage in the pipe of its result'",
        "b'\\0\\0\\0\\x0d' + b'{\"type\":\"Own\"}'",
        "b'\\x7f\\xff\\xff\\xff' + b'x' * 100",
        "(64).to_bytes(4, 'big') + b'\\x80\\x04pickle.' * 8",
    ],
)
def test_garbage_in_the_pipe_is_no_data(run: Run, written: str) -> None:
    """Whoever finds the pipe and writes into it is told that this is none."""
    body = f"""
    def load():
        for fd in range(3, 1024):
            try:
                os.write(fd, {written})
            except OSError:
                pass
        os._exit(0)
    """
    with pytest.raises(DatasetError, match=r"clinic:load: (wrote into|ended)"):
        run(body)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("('x', 'float32', (2**40,))", '"x": ends too early'),
        ("('x', 'float32', (2**62, 2**62, 2**62))", '"x": ends too early'),
        ("('x', 'float32', (2**63,))", "larger than a tensor can be"),
        ("('x', 'float32', (1,) * 65)", "larger than a tensor can be"),
        ("('x', 'object', (1,))", 'elements of type "object"'),
        ("('x', 'complex32', (1,))", 'elements of type "complex32"'),
    ],
)
def test_a_lie_about_sizes_takes_no_memory(run: Run, head: str, words: str) -> None:
    """What is announced and does not come costs nothing, and is named."""
    body = f"""
    from obhut.host.data.loader_messages import Head, Values, write
    def load():
        for fd in range(3, 1024):
            try:
                write(fd, Values((Head(*{head}),)), [memoryview(bytes(8))])
            except OSError:
                pass
        os._exit(0)
    """
    with pytest.raises(DatasetError, match=words):
        run(body)


def test_who_waits_for_it_can_end_it(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, while it hangs; its process is gone, and its folder of drafts."""
    scratch = folder / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    body = """
    def load():
        print("waiting", os.environ["TMPDIR"], flush=True)
        time.sleep(600)
    """
    timer = threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(body)
    assert time.monotonic() - began < 30
    assert not list(scratch.iterdir())


def test_a_module_that_others_can_change_is_not_run(run: Run, folder: Path) -> None:
    """Who writes it decides what is served."""
    (folder / "open.py").write_text("def load():\n    return [1]\n")
    (folder / "open.py").chmod(0o666)
    with pytest.raises(Exception, match="others may change it"):
        run("", loader=folder / "open:load")
