"""Workers that are really served: identities, processes, a network that can be cut."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from obhut.client.network import Network, connect
from obhut.host import configuration as configurations
from obhut.testing.cables import Cable
from obhut.testing.people import People
from obhut.transports.serving import Served

WORKERS = ("bob", "alice", "secure_worker")
CLIENTS = ("me", "you", "mallory")

ROWS = 1_000

DATASET = """
[[dataset]]
name = "d"
path = "data.csv"
features = ["a", "b"]
target = "y"
"""

DATA = f"""{DATASET}tags = ["#d"]
public = {{ names = true, types = true, rows = "rounded" }}
"""


class World(People):
    """People of whom some serve, from this process.

    Args:
        root: where the folders are.
        names: who there is.

    Attributes:
        served: the workers that serve, by name.
        between: what can be cut between alice and the aggregator.
    """

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        super().__init__(root, names)
        self.served: dict[str, Served] = {}
        self.between: Cable | None = None

    def serve(
        self,
        name: str,
        attached: Callable[[], None] = lambda: None,
        begin_anew: str = "",
        **options: Any,
    ) -> Served:
        """Start a worker that ``me`` and ``you`` may use and workers deliver to.

        Args:
            name: who serves.
            attached: called each time that it is attached.
            begin_anew: why its record of releases begins anew.
            options: more of its configuration.
        """
        may = {"sessions": ["me", "you"], "deliver": ["bob", "alice"]}
        file = self.configure(name, **may | options)
        served = Served(configurations.load(file), begin_anew=begin_anew)
        self.served[name] = served
        served.start(attached)
        self.addresses[name] = served.address
        return served

    def close(self) -> None:
        """Stop all that serve."""
        for served in self.served.values():
            served.close(grace=0)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three workers who serve, and three clients who are known to them."""
    world = World(tmp_path_factory.mktemp("world"), WORKERS + CLIENTS)
    lines = "".join(f"{k},{k * 0.5},{k % 2}\n" for k in range(ROWS))
    (world.root / "bob" / "data.csv").write_text("a,b,y\n" + lines)
    try:
        world.serve("secure_worker")
        reach = {"secure_worker": world.address("secure_worker")}
        limits = 'memory = "256 MiB"\nsessions = 64'
        world.serve("bob", limits=limits, reach=reach, more=DATA)
        world.between = Cable(world.address("secure_worker"))
        world.serve("alice", reach={"secure_worker": world.between.address})
        yield world
    finally:
        world.close()
        if world.between is not None:
            world.between.close()


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds that nobody tells."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


Connect = Callable[..., Network]


@pytest.fixture
def enter(world: World) -> Iterator[Connect]:
    """Let somebody connect to workers by name; sessions end with the test."""
    with contextlib.ExitStack() as stack:

        def enter(who: str, *workers: str) -> Network:
            addresses = [world.address(name) for name in workers or ("bob",)]
            return stack.enter_context(connect(*addresses, folder=world.root / who))

        yield enter


@pytest.fixture
def cabled() -> Iterator[Callable[[str], Cable]]:
    """Put a network that can be cut in front of an address."""
    with contextlib.ExitStack() as stack:
        yield lambda target: stack.enter_context(Cable(target))
