"""A client that waits for a worker says so, connecting and in a round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from obhut.testing.sites import Sites

ROUND = """
import sys
import torch, obhut
with obhut.connect(sys.argv[1], folder=sys.argv[2]) as net:
    x = obhut.send(torch.ones(3), net["bob"])
    assert x.sum().item() == 3.0
    print("connected", flush=True)
    sys.stdin.readline()
    print(x.sum().item(), flush=True)
"""


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    """Bob, who serves in a process of his own, and me."""
    with Sites(tmp_path, ["bob", "me"]) as sites:
        sites.serve("bob", sessions=["me"])
        yield sites


def client(sites: Sites) -> subprocess.Popen[str]:
    """Return a program in a process of its own, with nobody's log set up."""
    return subprocess.Popen(
        [sys.executable, "-c", ROUND, sites.addresses["bob"], str(sites.root / "me")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line of standard error."""
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(
        target=lambda: lines.append(process.stderr.readline()), daemon=True
    )
    reader.start()
    reader.join(60)
    assert lines, "nothing was said"
    return lines[0]


@pytest.mark.slow
def test_a_stopped_worker_is_spoken_of(sites: Sites) -> None:
    """While connecting, and in a round; when it goes on, so does the client."""
    bob = sites.pids["bob"]
    os.kill(bob, signal.SIGSTOP)
    with client(sites) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            address = sites.addresses["bob"]
            assert said(process) == f"waiting to hear who is at {address}\n"
            os.kill(bob, signal.SIGCONT)
            assert process.stdout.readline() == "connected\n"
            os.kill(bob, signal.SIGSTOP)
            process.stdin.write("go on\n")
            process.stdin.flush()
            line = said(process)
            while "who is" in line or not line.startswith("waiting for bob"):
                line = said(process)  # opening the session may have taken long, too
            assert line == f"waiting for bob at {address}\n"
            os.kill(bob, signal.SIGCONT)
            assert process.stdout.readline() == "3.0\n"
            process.stdin.close()
            assert process.wait(60) == 0
        finally:
            os.kill(bob, signal.SIGCONT)
            process.kill()
