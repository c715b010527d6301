"""One Ray for all tests of a module, which they have to leave as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from obhut.transports.ray.engine import Engine


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    """A local Ray with room for the actors of one test."""
    engine = Engine(cpus=4)
    yield engine
    engine.close()
