"""How random sequences are tried, the same ones each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

Tried = TypeVar("Tried")


def simplest(
    tried: SearchStrategy[Tried], wrong: Callable[[Tried], bool], count: int
) -> Tried | None:
    """Return the simplest example that is wrong; None if none of so many is.

    Args:
        tried: what examples are drawn from.
        wrong: tells whether something is wrong with one.
        count: how many are tried.
    """
    try:
        return find(
            tried,
            wrong,
            settings=settings(
                max_examples=count,
                database=None,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
    except NoSuchExample:
        return None
