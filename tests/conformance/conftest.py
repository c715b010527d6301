"""How much of PyTorch's databases is run, and what became of it, in one place.

``OBHUT_CONFORMANCE=full`` runs all of them; else a fixed sample of each is run.
"""

from __future__ import annotations

import collections
import pathlib
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from obhut.testing.conformance import Outcome, Verdict

Table = dict[str, dict[str, dict[str, str]]]
Counts = collections.Counter[tuple[str, str]]

_COUNTS = pytest.StashKey[Counts]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to count."""
    config.stash[_COUNTS] = collections.Counter()


@pytest.fixture(scope="session")
def refused() -> Table:
    """The committed table of what is refused, and why."""
    path = pathlib.Path(__file__).with_name("refused.toml")
    return tomllib.loads(path.read_text())


@pytest.fixture
def settle(
    refused: Table, request: pytest.FixtureRequest
) -> Callable[[str, str, Outcome], None]:
    """A check of one outcome against the table, which also counts it.

    It fails if anything differs, if something is refused that the table does not
    have, and if the table has something that is not refused, or by another error.
    """
    counts = request.config.stash[_COUNTS]

    def check(section: str, name: str, outcome: Outcome) -> None:
        counts[section, outcome.verdict] += 1
        entry = refused[section].get(name)
        if entry is None:
            assert outcome.verdict is Verdict.EQUAL, str(outcome)
        elif "error" in entry:
            assert outcome.verdict is Verdict.REFUSED, f"the table is stale: {outcome}"
            assert outcome.error == entry["error"], str(outcome)
        else:
            assert outcome.verdict is Verdict.SKIPPED, f"the table is stale: {outcome}"

    return check


@pytest.fixture
def settle_variant(refused: Table) -> Callable[[str, str, Outcome], None]:
    """A check of a variant: equal, or refused if its table has it, or not there."""

    def check(section: str, name: str, outcome: Outcome) -> None:
        if outcome.verdict is Verdict.SKIPPED:
            pytest.skip("no sample runs locally")
        if name not in refused[section]:
            assert outcome.verdict is Verdict.EQUAL, str(outcome)
        else:
            assert outcome.verdict is not Verdict.DIFFERENT, str(outcome)

    return check


OTHERWISE = {
    "nn.functional.batch_norm": "expected 2 dimensions or more, got 1",
}
"""What a guard refuses though it runs: PyTorch reads the second size of a vector."""


@pytest.fixture
def settle_guarded(
    refused: Table, request: pytest.FixtureRequest
) -> Callable[[str, str, Outcome], None]:
    """A check behind a guard: equal, but for known strides, or refused by name.

    What only a guard refuses is in the op table, with the reason.
    """
    counts = request.config.stash[_COUNTS]
    path = pathlib.Path(__file__).with_name("shape_only.toml")
    strides = tomllib.loads(path.read_text())["strides"]

    def check(section: str, name: str, outcome: Outcome) -> None:
        counts[f"{section} behind a guard", outcome.verdict] += 1
        if outcome.verdict is Verdict.REFUSED:
            known = name in {**refused["operators"], **refused.get(section, {})}
            by_guard = "behind a guard" in outcome.detail
            by_guard &= outcome.error == "OpNotAdmittedError"
            assert known or by_guard, str(outcome)
        elif outcome.verdict is Verdict.DIFFERENT:
            parts = outcome.detail.split("; ")
            strided = all("row-major" in one or "strides" in one for one in parts)
            known = strided and name in strides.get(section, ())
            assert known or OTHERWISE.get(name, "-") in outcome.detail, str(outcome)

    return check


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what was counted to the process that sums up, if there is another."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        counts = session.config.stash[_COUNTS]
        output["conformance"] = [(s, v.name, n) for (s, v), n in counts.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # Any: a class of pytest-xdist
    """Add what another process has counted."""
    counts = node.config.stash[_COUNTS]
    for section, verdict, count in getattr(node, "workeroutput", {}).get(
        "conformance", ()
    ):
        counts[section, Verdict[verdict]] += count


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(
    terminalreporter: Any,  # Any: pytest's reporter, whose class is private
) -> Iterator[None]:
    """Say how many of each are equal."""
    yield
    counts = terminalreporter.config.stash[_COUNTS]
    for section in dict.fromkeys(section for section, _ in counts):
        of = {verdict: counts[section, verdict] for verdict in Verdict}
        terminalreporter.write_line(
            f"conformance: {of[Verdict.EQUAL]} of {sum(of.values())} {section} equal, "
            f"{of[Verdict.REFUSED]} refused by name, {of[Verdict.SKIPPED]} that do not "
            f"run locally, {of[Verdict.DIFFERENT]} different"
        )
