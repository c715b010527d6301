"""Amounts that count for a while, and accounts that many threads use."""

from __future__ import annotations

import ast
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import obhut
from obhut.errors import LimitError
from obhut.host.quotas import DAY, Accounts, Quotas, Window

SPAN = 288.0  # in parts of one second


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=20),
    st.floats(0, 500),
)
def test_a_window_adds_up_what_is_recent(
    steps: list[tuple[float, float]], wait: float
) -> None:
    """What was added in the span counts, what is older by a part does not."""
    window, now = Window(SPAN), 0.0
    added: list[tuple[float, float]] = []
    for gap, amount in steps:
        now += gap
        window.add(amount, now)
        added.append((now, amount))
    now += wait
    total = window.total(now)
    surely = sum(amount for when, amount in added if now - when < SPAN - 1e-6)
    at_most = sum(amount for when, amount in added if now - when <= SPAN + 1 + 1e-6)
    assert surely - 1e-6 <= total <= at_most + 1e-6


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 10)), min_size=1))
def test_a_window_tells_when_less_will_count(steps: list[tuple[float, float]]) -> None:
    """At that time less than the limit counts, and shortly before not."""
    window, now = Window(SPAN), 0.0
    for gap, amount in steps:
        now += gap
        window.add(amount, now)
    limit = window.total(now) / 2
    wait = window.below(limit, now)
    assert wait > 0
    assert window.total(now + wait - 1e-3) >= limit - 1e-6
    assert window.total(now + wait + 1e-3) < limit + 1e-6


def test_a_window_stays_small() -> None:
    """A million messages take a few hundred entries."""
    window = Window(DAY)
    for step in range(100_000):
        window.add(1, step * 3.0)
    assert len(window._added) <= 290


@pytest.fixture
def accounts() -> Callable[[Quotas], Accounts]:
    """Return how accounts are made whose clock stands still."""
    return lambda quotas: Accounts("bob", quotas, lambda: 5.0)


def test_many_threads_get_no_more(accounts: Callable[[Quotas], Accounts]) -> None:
    """Of a hundred who ask at once as many are admitted as there is room for."""
    mine = accounts(Quotas(7, 50, 100, requester_memory=500))

    def ask(_: int) -> int:
        try:
            return mine.reserve("me") or 0
        except LimitError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        given_ = list(pool.map(ask, range(100)))
    assert sorted(given_)[-6:] == [0, 100, 100, 100, 100, 100]


def test_strangers_leave_nothing_behind() -> None:
    """Accounts of whom nothing counts any more are forgotten."""
    now = [0.0]
    mine = Accounts("bob", Quotas(1, requester_seconds=10.0), lambda: now[0])
    for number in range(50):
        mine.release(f"{number}", mine.reserve(f"{number}"))
        mine.charge(f"{number}", 1.0)
    now[0] += 2 * DAY
    mine.reserve("me")
    assert list(mine._accounts) == ["me"]


@pytest.mark.parametrize(
    "file",
    [
        "host/quotas.py",
        "transports/grpc/node.py",
        "transports/grpc/streams.py",
        "transports/grpc/ways.py",
        "transports/pipe/meter.py",
    ],
)
def test_nothing_here_looks_at_the_time_of_day(file: str) -> None:
    """A clock on the wall that jumps changes no quota: none of these reads it."""
    tree = ast.parse((Path(obhut.__file__).parent / file).read_text())
    named = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not {"time", "time_ns", "now", "utcnow", "today"} & (named - {"time"})
    assert not {"datetime", "calendar"} & imported
    called = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "time"
    ]
    assert called == []
