"""A cluster of three nodes on one machine, two of which are lost in a round.

In a process of its own, which joins the cluster by its address.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .rounds import PATH

SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path

from ray.cluster_utils import Cluster
from obhut.transports.ray.crew import RayCrew
from obhut.transports.sources import Called
from tests.transports.ray import rounds
from tests.transports.ray.test_crew import check


class Waiting:
    '''Loads data once the test has done its harm: its actors are busy meanwhile.'''

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name):
        number, _, name = name.partition(":")
        (self.folder / f"{os.getpid()} {number}").touch()
        while number == "5" and not (self.folder / "done").exists():
            time.sleep(0.01)
        return rounds.data()[name]


def main(folder):
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {}
    for _ in range(2):
        node = cluster.add_node(num_cpus=1)
        nodes[node.node_id] = node
    names = [f"{number}:{name}" for number in range(10) for name in rounds.NAMES]
    crew = RayCrew(
        Called(Waiting(folder), names), actors=3, address=cluster.address, deadline=4.0
    )
    stopped = []
    for number in range(10):
        turns = [
            turn._replace(client=f"{number}:{turn.client}") for turn in rounds.turns()
        ]
        if number == 5:
            while not all(m.ready for m in crew.members()):
                for member in crew.members():
                    member.listen()
                time.sleep(0.05)
            members = {m.node: m for m in crew.members()}
            assert len(members) == 3, members
            pids = {node: members[node].pulse.process for node in nodes}
            killed, silent = nodes

            def harm():
                while not all((folder / f"{pid} 5").exists() for pid in pids.values()):
                    time.sleep(0.01)
                for process in nodes[silent].all_processes["raylet"]:
                    stopped.append(process.process.pid)
                stopped.append(pids[silent])
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                cluster.remove_node(nodes[killed], allow_graceful=False)
                (folder / "done").touch()

            threading.Thread(target=harm).start()
            start = time.monotonic()
        sums = crew.play([rounds.task()], rounds.frames(), turns, retries=2)
        want = [turn._replace(client=turn.client.partition(":")[2]) for turn in turns]
        check(sums, want)
        if number == 5:
            took = time.monotonic() - start
            assert took < 40, took
    assert sum(m.ready for m in crew.members()) == 1
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    crew.close()
    cluster.shutdown()
    print(f"in {took:.0f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_training_goes_on_where_nodes_are_lost(tmp_path: Path) -> None:
    """One is killed and one stands still in a round of ten: the sums are the same."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": PATH,
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("in ")
