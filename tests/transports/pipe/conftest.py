"""Children for tests: as shipped, and hostile ones with and without walls."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from obhut.transports.pipe.children import FORK_SERVER, Children
from obhut.transports.pipe.control import Settings
from obhut.transports.pipe.parent import Child

PROBES = (sys.executable, "-P", str(Path(__file__).with_name("probes.py")))
SECRET = "a-secret-of-the-parent"
MEMORY = 2**30

Ask = Callable[[Child, str, str], str]


def started(command: tuple[str, ...], sandbox: str) -> Iterator[Children]:
    """Start a fork server from a careless parent: secrets about, a file inherited."""
    settings = Settings("bob", memory=MEMORY, sandbox=sandbox, seconds=60)
    with pytest.MonkeyPatch.context() as patch, open(__file__) as careless:
        patch.setenv("OBHUT_TEST_SECRET", SECRET)
        os.set_inheritable(careless.fileno(), True)
        children = Children(settings, command=command)
    with children:
        children.ready()
        yield children


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    """Children as they are shipped, with a limit of 1 GiB."""
    yield from started(FORK_SERVER, "auto")


@pytest.fixture(scope="session")
def walled() -> Iterator[Children]:
    """Hostile children behind all walls."""
    yield from started(PROBES, "auto")


@pytest.fixture(scope="session")
def unwalled() -> Iterator[Children]:
    """Hostile children with the sandbox switched off."""
    yield from started(PROBES, "none")


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Child]]:
    """Start a child from one of the fixtures above, by name; it ends with the test."""
    with ExitStack() as stack:

        def begin(source: str) -> Child:
            child = request.getfixturevalue(source).start("session")
            stack.callback(child.close)
            return child

        yield begin


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Let a hostile child do something; return what came of it."""

    def asked(child: Child, probe: str, argument: str = "") -> str:
        return child.exchange(probe, argument.encode(), (), 0.0).header.decode()

    return asked
