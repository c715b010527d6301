"""One Ray and one crew for the tests of this folder, which kill its actors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from obhut.transports.ray.crew import RayCrew
from obhut.transports.ray.engine import Engine
from obhut.transports.sources import Called

from . import rounds


@pytest.fixture(scope="package")
def engine() -> Iterator[Engine]:
    """A local Ray with room for the actors of one test."""
    engine = Engine(cpus=4)
    yield engine
    engine.close()


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where clients leave marks."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="package")
def crew(engine: Engine, folder: Path) -> Iterator[RayCrew]:
    """Two actors; some of their clients do harm when their data is loaded."""
    names = (*rounds.NAMES, *rounds.HARMFUL)
    crew = RayCrew(Called(rounds.Loader(folder), names), actors=2, deadline=3.0)
    yield crew
    crew.close()
