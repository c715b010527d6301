"""Trains on a cluster of two nodes of this machine, and loses one in round 5 of 10.

``python -m tests.federated.losing_nodes killed``, or ``stopped``: a process of its own,
which joins the cluster.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from ray.cluster_utils import Cluster

import obhut
from obhut.federated import Round

from .test_simulation_on_ray import TRAINING, distance, model, simulated, trained


def processes(node: Any) -> list[int]:
    """Return the processes of a node: Ray's own, and those that they started."""
    found = [
        process.process.pid
        for several in node.all_processes.values()
        for process in several
    ]
    for pid in found:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            found += map(int, file.read().split())
    return found


def main(fate: str) -> None:
    """Train, and say how far the model is from one of this process."""
    expected, _ = trained(obhut.Federation(simulated(0)), rounds=10)
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    stopped: list[int] = []
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        def lose(report: Round) -> None:
            if report.number != 4:
                return
            if fate == "killed":
                cluster.remove_node(node, allow_graceful=False)
                return
            for pid in processes(node):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)

        with simulated(2, address=cluster.address) as clients:
            one = model()
            history = obhut.Federation(clients).fit(
                one,
                TRAINING,
                rounds=10,
                participants=6,
                seed=2,
                retries=3,
                callbacks=[lose],
                progress=False,
            )
        print(len(history), distance(one, expected))  # noqa: T201 # for the test
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
