"""What deciding about a release costs: 100 owners, 60 independent sums before it.

The history is itself permitted, under the defaults (K = 3, one colluder, p = 100): each
sum is over all 100 owners, weighted by counts of rows between 1 and 1,000, drawn anew
for each cohort. So each new cohort is a new row, and all of them are one block, which
is the dearest case. Nothing is cut short: each decision runs all rules.

The mix is that of training: each cohort releases one model of some tensors in several
rounds, and now and then somebody asks for something that is refused. Figures are ratios
to the exact sum itself, the least that evaluating a release costs in plain Python.
"""

from __future__ import annotations

import argparse
import datetime
import random
import statistics
import time
from fractions import Fraction

from rich.console import Console
from rich.table import Table

from obhut.guard.audit import Auditor
from obhut.guard.policy import Quorum
from obhut.guard.provenance import digest
from obhut.guard.release import Atom, Decision, Release

TODAY = datetime.date(2027, 1, 1)


class Aggregator:
    """An auditor, and the time that each decision took."""

    def __init__(self, owners: int) -> None:
        self.owners = [f"owner{number:03}" for number in range(owners)]
        self.policy = Quorum(
            aggregators=("hub",), contributors=tuple(self.owners), requesters=("me",)
        )
        self.policies = dict.fromkeys(self.owners, self.policy)
        self.auditor = Auditor("hub", self.policy)
        self.delivered = 0

    def ask(self, weights: dict[str, Fraction]) -> tuple[Decision, float]:
        """Decide and record; return the decision and the seconds that both took."""
        self.delivered += 1
        terms = {Atom(o, f"s/{self.delivered}"): x for o, x in weights.items()}
        made = dict.fromkeys(terms, digest("bench", self.delivered))
        release = Release("me", terms, self.policies, digests=made)
        began = time.perf_counter()
        decision = self.auditor.decide(release, TODAY)
        self.auditor.record(release, decision)
        return decision, time.perf_counter() - began


def summed(weights: dict[str, Fraction]) -> float:
    """Return the seconds that the exact sum of one element per owner takes."""
    began = time.perf_counter()
    sum((x * 3 for x in weights.values()), Fraction(0))
    return time.perf_counter() - began


def weighted(aggregator: Aggregator, rng: random.Random) -> dict[str, Fraction]:
    """Return weights for a new cohort: shares of rows."""
    rows = [rng.randint(1, 1000) for _ in aggregator.owners]
    return {
        owner: Fraction(count, sum(rows))
        for owner, count in zip(aggregator.owners, rows, strict=True)
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--owners", type=int, default=100)
    parser.add_argument("--cohorts", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=10, help="of each cohort")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    hub = Aggregator(args.owners)
    first, again, refused, sums = [], [], [], []
    for _ in range(args.cohorts):
        weights = weighted(hub, rng)
        decision, seconds = hub.ask(weights)
        if not decision.permits:
            raise SystemExit(f"the history is not permitted: {decision.text}")
        first.append(seconds)
        for _ in range(args.rounds - 1):
            again.append(hub.ask(weights)[1])
            sums.append(summed(weights))
        alone = dict.fromkeys(hub.owners[:2], Fraction(1, 2))
        skewed = weights | {hub.owners[0]: weights[hub.owners[0]] + 1}
        for asked in (alone, skewed):
            decision, seconds = hub.ask(asked)
            if decision.permits:
                raise SystemExit("a release over too few was permitted")
            refused.append(seconds)
    every = [*first, *again, *refused]

    fixed = Aggregator(args.owners)
    cohort = weighted(fixed, rng)
    rounds = [fixed.ask(cohort)[1] for _ in range(500)]

    unit = statistics.median(sums)
    table = Table(
        title=f"{args.owners} owners, {args.cohorts} independent sums, "
        f"{len(every):,} decisions"
    )
    for header in ("decision", "ms", "times the exact sum"):
        table.add_column(header, justify="left" if header == "decision" else "right")
    for name, seconds in (
        ("all, mean", statistics.mean(every)),
        ("a new cohort, median", statistics.median(first)),
        ("a new cohort, worst", max(first)),
        ("a further round, median", statistics.median(again)),
        ("a refusal, median", statistics.median(refused)),
        ("a refusal, worst", max(refused)),
        ("worst of all", max(every)),
        ("fixed cohort: first round", rounds[0]),
        ("fixed cohort: last 20 of 500, median", statistics.median(rounds[-20:])),
    ):
        table.add_row(name, f"{seconds * 1e3:.2f}", f"{seconds / unit:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
