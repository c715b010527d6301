"""Ray is started and ended without a trace, however the process ends.

In processes of their own: Ray is one for a process, and prints at its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.transports.grpc.conftest import until

from .rounds import PATH

BEGIN = """
import os, signal, sys, threading
from pathlib import Path

import ray
from obhut.transports.ray.crew import RayCrew
from obhut.transports.ray.engine import Engine, _running
from obhut.transports.sources import Given
from tests.transports.ray import rounds


def play(crew, retries=0):
    return crew.play([rounds.task()], rounds.frames(), rounds.turns(), retries=retries)


def descendants(of):
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, parent, *_ = rest.split()
        if state != "Z":
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, todo = [], [of]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def tell():
    print(_running[0].remains.folder, *descendants(os.getpid()), flush=True)


def main():
"""

END = """

if __name__ == "__main__":
    main()
"""

CLOSED = """
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    crew = RayCrew(Given(rounds.data()), actors=2)
    assert dict(os.environ) == before
    play(crew)
    os.kill(next(m for m in crew.members() if m.ready).pulse.process, signal.SIGKILL)
    play(crew, retries=1)
    tell()
    crew.close()
    assert not ray.is_initialized()
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) == handler
"""

FORGOTTEN = """
    crew = RayCrew(Given(rounds.data()), actors=1)
    tell()
    play(crew)
"""

INTERRUPTED = """
    crew = RayCrew(Given(rounds.data()), actors=1)
    play(crew)
    tell()
    threading.Timer(0.3, os.killpg, (os.getpgrp(), signal.SIGINT)).start()
    while True:
        play(crew)
"""

DEAD = """
    crew = RayCrew(Given(rounds.data()), actors=1)
    play(crew)
    tell()
    os._exit(3)
"""

BROKEN_OFF = """
    def broken_off(*args):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, broken_off)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    try:
        Engine(cpus=1)
    except KeyboardInterrupt:
        pass
    assert not ray.is_initialized()
    assert not descendants(os.getpid()), descendants(os.getpid())
    crew = RayCrew(Given(rounds.data()), actors=1)
    play(crew)
    tell()
"""

OTHERS = """
    how = {"include_dashboard": False, "log_to_driver": False, "logging_level": 50}
    ray.init("local", num_cpus=2, **how)
    crew = RayCrew(Given(rounds.data()), actors=2)
    play(crew)
    crew.close()
    assert ray.is_initialized()
    two = RayCrew(Given(rounds.data()), actors=1)
    play(two)
    print("", *descendants(os.getpid()), flush=True)
"""

SHARED = """
    one = RayCrew(Given(rounds.data()), actors=1)
    two = RayCrew(Given(rounds.data()), actors=1)
    one.close()
    tell()
    two.close()
    assert not ray.is_initialized()
    assert not Path.home().joinpath(".ray").exists()
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level=50)
    assert ray.get(ray.put(1)) == 1
    ray.shutdown()
"""


def run(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a session of its own; it prints its processes, and no more."""
    script = folder / "script.py"
    script.write_text(BEGIN + text + END)
    return subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "HOME": str(folder), "PYTHONPATH": PATH},
        start_new_session=True,
    )


def check_gone(printed: str) -> None:
    """Check that the processes and the folder that a script printed are gone."""
    folder, *processes = printed.rstrip("\n").split(" ")
    assert len(processes) > 2
    until(lambda: not any(Path("/proc", one).exists() for one in processes))
    if folder:
        until(lambda: not Path(folder).exists())


def test_nothing_is_printed_and_nothing_is_left(tmp_path: Path) -> None:
    """Not even when an actor is killed; variables and signals are as before."""
    done = run(CLOSED, tmp_path)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.returncode == 0
    check_gone(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [FORGOTTEN, DEAD, BROKEN_OFF, SHARED, OTHERS],
    ids=["forgotten", "dead", "broken off", "shared", "another's"],
)
def test_nothing_is_left_however_it_ends(text: str, tmp_path: Path) -> None:
    """Not closed, dead at once, broken off while it starts, or shared by two."""
    done = run(text, tmp_path)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.returncode == (3 if text is DEAD else 0)
    check_gone(done.stdout)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """It reaches all processes of the terminal; the driver ends with a traceback."""
    done = run(INTERRUPTED, tmp_path)
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stderr.count("Traceback") == 1
    assert done.stdout.count("\n") == 1
    check_gone(done.stdout)
