"""What every test gets: one torch thread, a recorder, a skip without a device."""

from collections.abc import Iterator

import pytest
import torch

from obhut.testing.recording import recording
from obhut.testing.transcripts import differences


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Keep sums in one order, and runners with few cores responsive."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _modes_as_they_were() -> Iterator[None]:
    """No test leaves a mode of PyTorch's to the next one."""
    yield
    left = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch._C._len_torch_dispatch_stack(),
        torch._C._is_torch_function_enabled(),
    )
    torch.set_grad_enabled(True)
    torch._C._set_torch_function_state(torch._C._TorchFunctionState.ENABLED)
    assert left == (True, torch.float32, 0, True)


@pytest.fixture(autouse=True)
def _low_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever owners' workers say in a test, one without data says as well."""
    if request.node.get_closest_marker("unrecorded"):
        yield
        return
    with recording() as transcripts:
        yield
    for transcript in transcripts:
        assert list(differences(transcript)) == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where torch sees no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
