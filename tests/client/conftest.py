from collections.abc import Iterator

import pytest

import obhut


@pytest.fixture
def bob() -> Iterator[obhut.VirtualWorker]:
    """A virtual worker that is closed afterwards."""
    worker = obhut.VirtualWorker(id="bob")
    yield worker
    worker.close()


@pytest.fixture
def alice() -> Iterator[obhut.VirtualWorker]:
    """Another virtual worker."""
    worker = obhut.VirtualWorker(id="alice")
    yield worker
    worker.close()
