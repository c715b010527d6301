"""``obhut worker`` and ``obhut aggregator`` as an owner uses them."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tests.identity.forgery import connected

import obhut
from obhut.cli.serve import FILES
from obhut.client.workers import RemoteWorker
from obhut.errors import AccessDeniedError, SessionLostError
from obhut.identity.identity import Identity
from obhut.identity.peers import PeerBook
from obhut.transports.grpc.client import GrpcTransport
from obhut.transports.grpc.credentials import channel_credentials

from .conftest import Invoke

COMMAND = (sys.executable, "-c", "from obhut.cli.main import app; app()")

CONFIGURATION = """\
id = "bob"
listen = "127.0.0.1:0"
[policy]
kind = "UnsafeOpen"
[access]
sessions = ["me"]
"""


QUORUM = """"Quorum"
aggregators = ["me"]
contributors = ["bob", "me", "a"]
requesters = ["me"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the configuration of a worker who knows ``me``, and is known."""
    people = {name: Identity.create() for name in ("bob", "me")}
    for name, other in (("bob", "me"), ("me", "bob")):
        people[name].save(tmp_path / name)
        book = PeerBook(tmp_path / name / "peers")
        book.add(other, people[other].certificate)
    file = tmp_path / "bob" / "worker.toml"
    file.write_text(CONFIGURATION)
    return file


class Process:
    """``obhut worker`` in a process of its own.

    Attributes:
        address: where it listens.
    """

    def __init__(self, config: Path, command: str = "worker", *more: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, command, "--config", str(config), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.match(r"bob serves at (\S+), id (\w{52})\n", self.line)
        assert found, self.line
        self.address = found[1]
        self.id = found[2]

    def wait(self) -> tuple[int, str, str]:
        """Return the exit code and what else was written, once it has ended."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def close(self) -> None:
        """End it, if it has not."""
        with self.process as process:
            process.kill()


@pytest.fixture
def worker(config: Path) -> Iterator[Process]:
    """A worker that serves."""
    process = Process(config)
    yield process
    process.close()


def refusal(config: Path, command: str = "worker", *more: str) -> str:
    """Return the sentence with which a worker does not start."""
    # In a process of its own: one that serves takes over signals and the log.
    ended = subprocess.run(
        [*COMMAND, command, "--config", str(config), *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    said = ended.stderr.splitlines()[-1]
    assert said.startswith(str(config.parent))
    return said


def test_check_explains_and_starts_nothing(invoke: Invoke, config: Path) -> None:
    """``--check`` says in sentences what the configuration lets happen."""
    result = invoke("worker", "--config", config, "--check")
    assert result.exit_code == 0
    assert result.stderr == ""
    for words in ("bob", "127.0.0.1:0", "me may open sessions"):
        assert words in result.stdout
    assert not (config.parent / "worker.pid").exists()


@pytest.mark.parametrize("command", ["worker", "aggregator"])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('[policy]\nkind = "UnsafeOpen"\n', "", "UnsafeOpen"),
        ('kind = "UnsafeOpen"', 'kind = "Strict"', 'expected "UnsafeOpen" or "Quorum"'),
        ('id = "bob"\n', "", "id"),
        ('listen = "127.0.0.1:0"\n', "", "listen"),
        ('listen = "127.0.0.1:0"', 'listen = "here"', "host:port"),
        ("[access]", "[accessors]", "access"),
        ("[access]", "[access", "worker.toml"),
    ],
)
def test_a_configuration_that_does_not_hold_is_one_sentence(
    invoke: Invoke, config: Path, command: str, old: str, new: str, words: str
) -> None:
    """It exits with 1, names the file and what to do, and shows no traceback."""
    assert old in CONFIGURATION
    config.write_text(CONFIGURATION.replace(old, new))
    for more in ([], ["--check"]):
        result = invoke(command, "--config", config, *more)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert words in result.stderr
        assert str(config) in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stderr.count(str(config)) == 1


def test_check_finds_what_a_start_refuses(invoke: Invoke, config: Path) -> None:
    """Data that can not be loaded is one sentence after the explanation, and exits."""
    (config.parent / "data.csv").write_text("a,y\n1,0\n2,x\n")
    config.write_text(
        CONFIGURATION
        + '[[dataset]]\nname = "d"\npath = "data.csv"\nfeatures = ["a"]\ntarget = "y"\n'
    )
    result = invoke("worker", "--config", config, "--check")
    assert result.exit_code == 1
    assert "me may open sessions" in result.stdout
    assert result.stderr == refusal(config) + "\n"


def test_data_that_can_not_be_loaded_is_one_sentence(config: Path) -> None:
    """A worker does not start half-loaded: file, column and row are named."""
    (config.parent / "data.csv").write_text("a,y\n1,0\n2,x\n")
    config.write_text(
        CONFIGURATION
        + '[[dataset]]\nname = "d"\npath = "data.csv"\nfeatures = ["a"]\ntarget = "y"\n'
    )
    said = refusal(config)
    for words in ("data.csv", "y", "row 2"):
        assert words in said


def test_a_worker_without_an_identity_says_what_to_do(config: Path) -> None:
    """``obhut init`` comes first."""
    (config.parent / "identity.key").unlink()
    assert "obhut init" in refusal(config)


def test_a_second_worker_of_a_folder_is_one_sentence(
    config: Path, worker: Process
) -> None:
    """It does not start, and harms the first not."""
    assert "another worker holds it" in refusal(config)
    assert (config.parent / "worker.pid").read_text() == f"{worker.process.pid}\n"


def test_a_worker_serves_and_stops_when_asked(
    invoke: Invoke, config: Path, worker: Process
) -> None:
    """It says where it is, warns of the policy, and ``--stop`` ends all of it."""
    folder = config.parent.parent
    assert worker.id == Identity.load(config.parent).id
    net = obhut.connect(worker.address, folder=folder / "me")
    x = obhut.send(torch.ones(1), net["bob"])
    assert x.item() == 1.0
    result = invoke("worker", "--config", config, "--stop")
    assert result.exit_code == 0, result.stderr
    code, out, err = worker.wait()
    assert code == 0
    assert out == "bob stops\n"
    assert "UnsafeOpen" in err
    assert "Traceback" not in err
    assert not (config.parent / "worker.pid").exists()
    net["bob"].session._transport.close()


def descendants(pid: int) -> list[int]:
    """Return the processes that come from a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def test_a_worker_that_is_killed_leaves_nothing(config: Path, worker: Process) -> None:
    """Its sessions' processes end with it, and its clients hear that it is gone."""
    folder = config.parent.parent / "me"
    peer = PeerBook(folder / "peers").find("bob")
    credentials, options = channel_credentials(Identity.load(folder), peer)
    bob = RemoteWorker(
        GrpcTransport(
            worker.address,
            credentials,
            options,
            worker="bob",
            address=peer.id,
            reconnect_seconds=0.2,
        )
    )
    x = obhut.send(torch.ones(1), bob)
    assert x.item() == 1.0
    left = {os.pidfd_open(pid) for pid in descendants(worker.process.pid)}
    assert len(left) >= 2  # the fork server and the session
    worker.process.kill()
    with pytest.raises(SessionLostError, match="bob"):
        x.item()
    while left:
        ended, _, _ = select.select(left, [], [], 15)
        assert ended
        for process in ended:
            left.remove(process)
            os.close(process)
    bob.close()
    config.write_text(CONFIGURATION.replace("127.0.0.1:0", worker.address))
    again = Process(config)
    try:
        with obhut.connect(again.address, folder=folder) as net:
            assert obhut.send(torch.ones(1), net["bob"]).item() == 1.0
    finally:
        again.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_aggregator_is_a_worker(config: Path, number: signal.Signals) -> None:
    """``obhut aggregator`` serves as well, and ends with SIGTERM or Ctrl-C."""
    with ExitStack() as stack:
        process = Process(config, "aggregator")
        stack.callback(process.close)
        os.kill(process.process.pid, number)
        code, out, err = process.wait()
        assert (code, out) == (0, "bob stops\n")
        assert "Traceback" not in err


def test_an_aggregator_begins_anew_for_a_reason_only(
    invoke: Invoke, config: Path
) -> None:
    """Killed, it starts; with an emptied record it does not, until it is told why."""
    policy = f"""kind = "Quorum"
aggregators = ["bob"]
contributors = ["me", "{"a" * 52}", "{"b" * 52}"]
requesters = ["me"]
"""
    config.write_text(CONFIGURATION.replace('kind = "UnsafeOpen"\n', policy))
    ledger = config.parent / "ledger.sqlite"
    for _ in range(2):
        with contextlib.closing(Process(config, "aggregator")):
            said = refusal(config, "aggregator")
            assert "another worker holds it; end that one with --stop" in said
    for file in config.parent.glob("ledger.sqlite*"):
        file.write_bytes(b"")
    expected = "it is empty, and ledger.mark says that it had 0 entries"
    said = refusal(config, "aggregator")
    assert expected in said
    assert "obhut aggregator --begin-anew REASON" in said
    checked = invoke("aggregator", "--config", config, "--check")
    assert checked.exit_code == 1
    assert checked.stderr == said + "\n"
    assert "expected a reason" in refusal(config, "aggregator", "--begin-anew", " ")
    assert ledger.read_bytes() == b""
    with contextlib.closing(
        Process(config, "aggregator", "--begin-anew", "the disk failed")
    ) as process:
        process.process.terminate()
        _, _, err = process.wait()
    assert "begun anew" in err
    assert "the disk failed" in err
    said = refusal(config, "aggregator", "--begin-anew", "the disk failed")
    assert "it is whole, and goes on; start without --begin-anew" in said
    assert "Note: the record" in invoke("log", "--config", config).stdout
    assert invoke("aggregator", "--config", config, "--check").exit_code == 0


@pytest.mark.parametrize("left", [None, "", "nonsense", "999999999"])
def test_there_is_nothing_to_stop(
    invoke: Invoke, config: Path, left: str | None
) -> None:
    """``--stop`` where none runs says so, whatever an old file says."""
    if left is not None:
        (config.parent / "worker.pid").write_text(left)
    result = invoke("worker", "--config", config, "--stop")
    assert result.exit_code == 1
    assert "no worker runs" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_worker_that_is_not_let_attach_says_what_it_waits_for(config: Path) -> None:
    """An aggregator that accepts connections and says nothing is waited for aloud."""
    me = Identity.load(config.parent.parent / "me").id
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        config.write_text(
            CONFIGURATION.replace('listen = "127.0.0.1:0"', f'attach = "{at}"')
            + f'[[peer]]\nname = "me"\nid = "{me}"\naddress = "{at}"\n'
        )
        with subprocess.Popen(
            [*COMMAND, "worker", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            expected = f"WARNING waiting for {at} to let bob attach\n"
            found = any(line.endswith(expected) for line in process.stderr)
            process.kill()
    assert found


def logged(worker: Process, words: str) -> str:
    """Return the next line of the log with these words."""
    assert worker.process.stderr is not None
    for line in worker.process.stderr:
        if words in line:
            return line
    raise AssertionError(f"the log ended without {words!r}")


def test_sighup_takes_over_who_may_come(worker: Process, config: Path) -> None:
    """Sessions of who is named no more end; who is named again opens one."""
    folder = config.parent.parent / "me"
    with obhut.connect(worker.address, folder=folder) as net:
        x = obhut.send(torch.ones(2), net["bob"])
        assert x.sum().item() == 2.0
        config.write_text(CONFIGURATION.replace('["me"]', "[]"))
        worker.process.send_signal(signal.SIGHUP)
        assert logged(worker, "reloaded").endswith(f"{config} was reloaded\n")
        with pytest.raises((AccessDeniedError, SessionLostError)):
            x.sum().item()
    with obhut.connect(worker.address, folder=folder) as net:
        with pytest.raises(AccessDeniedError, match='add "me" to sessions'):
            obhut.send(torch.ones(2), net["bob"]).get()
        said = logged(worker, "to let me in")
        assert said.endswith(f'add "me" to sessions under [access] in {config}\n')
    config.write_text(CONFIGURATION)
    worker.process.send_signal(signal.SIGHUP)
    logged(worker, "was reloaded")
    with obhut.connect(worker.address, folder=folder) as net:
        assert obhut.send(torch.ones(2), net["bob"]).sum().item() == 2.0


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"UnsafeOpen"', '"Nothing"', "kind of"),
        ("[access]", '[limits]\nmemory = "1 GiB"\n[access]', "[limits]"),
        ('"UnsafeOpen"\n', QUORUM, "[policy]"),
        ('sessions = ["me"]', 'sessions = []\nattach = ["me"]', "attach of [access]"),
    ],
)
def test_sighup_takes_nothing_over_of_what_needs_a_start(
    worker: Process, config: Path, old: str, new: str, key: str
) -> None:
    """Nor anything beside it; what runs goes on as it was, and the log says why."""
    folder = config.parent.parent / "me"
    with obhut.connect(worker.address, folder=folder) as net:
        x = obhut.send(torch.ones(2), net["bob"])
        x.sum().item()
        config.write_text(CONFIGURATION.replace(old, new))
        worker.process.send_signal(signal.SIGHUP)
        assert key in logged(worker, "was not reloaded")
        assert x.sum().item() == 2.0


DATA = '[[dataset]]\nname = "d"\npath = "d.csv"\nfeatures = "a"\n'


def test_data_is_read_again_while_it_serves(
    worker: Process, config: Path, invoke: Invoke
) -> None:
    """``--reload`` asks for it, from a terminal as well; the log says what was read."""
    folder, file = config.parent.parent / "me", config.parent / "d.csv"
    for rows in ("1\n", "2\n3\n"):
        file.write_text("a\n" + rows)
        config.write_text(CONFIGURATION + DATA)
        result = invoke("worker", "--config", config, "--reload")
        assert result.exit_code == 0
        assert result.stdout == "bob reads again; its log says what came of it\n"
        count = rows.count("\n")
        assert f"data set d was read anew: {count} rows" in logged(worker, "data set")
        logged(worker, f"{config} was reloaded")
        with obhut.connect(worker.address, folder=folder) as net:
            expected = [float(row) for row in rows.split()]
            assert net["bob"]["d"].get().tolist() == expected
    file.write_text("a\nno number\n")
    invoke("worker", "--config", config, "--reload")
    assert "d.csv, row 1" in logged(worker, "was not reloaded")
    with obhut.connect(worker.address, folder=folder) as net:
        assert net["bob"]["d"].get().tolist() == [2.0, 3.0]


def test_what_goes_wrong_ends_no_worker(
    worker: Process, config: Path, invoke: Invoke
) -> None:
    """A configuration that can't be read is told to who asks, and changes nothing."""
    config.write_text("no table")
    result = invoke("worker", "--config", config, "--reload")
    assert result.exit_code == 1
    worker.process.send_signal(signal.SIGHUP)
    logged(worker, "was not reloaded")
    config.write_text(CONFIGURATION)
    worker.process.send_signal(signal.SIGHUP)
    logged(worker, "was reloaded")


def test_nothing_is_read_again_where_none_runs(config: Path, invoke: Invoke) -> None:
    """``--reload`` says so, and sends no signal to whom a file names."""
    (config.parent / "worker.pid").write_text(f"{os.getpid()}\n")
    result = invoke("worker", "--config", config, "--reload")
    assert result.exit_code == 1
    assert "no worker runs with" in result.stderr


def test_strangers_do_not_fill_the_log(config: Path) -> None:
    """Neither with bytes that are no TLS nor with keys that nobody knows."""
    worker = Process(config)
    try:
        host, port = worker.address.rsplit(":", 1)
        stranger = Identity.create()
        for _ in range(300):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(100):
            with (
                contextlib.suppress(OSError),
                connected(worker.address, stranger) as secured,
            ):
                secured.recv(1)
        worker.process.terminate()
        _, _, said = worker.wait()
    finally:
        worker.close()
    assert len(said.splitlines()) < 10, said


def test_a_worker_takes_the_files_that_it_needs(config: Path) -> None:
    """Where a shell allows few, as far as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    worker = Process(config)
    try:
        limits = Path(f"/proc/{worker.process.pid}/limits").read_text()
    finally:
        worker.close()
    found = re.search(r"Max open files +(\d+)", limits)
    assert found is not None
    assert int(found[1]) >= min(FILES, hard)
