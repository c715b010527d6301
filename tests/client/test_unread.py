"""Where libraries are told that there is no value to read."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.distributions import Distribution

from obhut.client.unread import values_unread


@pytest.fixture(autouse=True)
def _validates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let distributions check arguments, which PyTorch's compiler ends for good."""
    monkeypatch.setattr(Distribution, "_validate_args", True)


def told() -> bool:
    """Return what a library is told, and check that distributions are too."""
    assert Distribution._validate_args is not torch.compiler.is_compiling()
    return torch.compiler.is_compiling()


def test_it_ends_with_the_last_thread() -> None:
    """Whoever came first and goes first takes nothing from the other."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with values_unread():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with values_unread():
        thread.start()
        assert inside.wait(10)
    assert told()
    leave.set()
    thread.join()
    assert not told()


def test_it_ends_with_an_error_too() -> None:
    """Also where it was entered twice."""
    with values_unread():
        with pytest.raises(ZeroDivisionError), values_unread():
            raise ZeroDivisionError
        assert told()
    assert not told()


def test_what_another_compiles_is_left_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is left as it was found."""
    monkeypatch.setattr(torch.compiler, "_is_compiling_flag", True)
    with values_unread():
        assert torch.compiler.is_compiling()
    assert torch.compiler.is_compiling()
