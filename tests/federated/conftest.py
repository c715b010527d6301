"""Every test here: who answers for an owner has never seen a value."""

import pytest


@pytest.fixture(autouse=True)
def _low_alone(request: pytest.FixtureRequest) -> None:
    """Reproduce all that owners' workers say from workers without data.

    But where Ctrl-C comes in the middle, which is no message.
    """
    if request.node.path.name != "test_interruption.py":
        request.getfixturevalue("low_alone")
