"""What an attack is: a program, and what is claimed about it.

Rules:

- A program uses what any client can: the public API, or messages of its own.
- It need not say what it learned. Judges look at all that reached the requester.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .stage import Changes, Stage

Program: TypeAlias = Callable[["Stage"], object]
"""What an attacker runs. What it returns, it has printed."""


class Family(enum.StrEnum):
    """What kind of way out an attack tries."""

    EGRESS = "direct egress"
    OPERATORS = "operators"
    LAUNDERING = "laundering"
    QUERIES = "aggregator queries"
    PROGRAMS = "programs"


class Level(enum.StrEnum):
    """The level that stops an attack, as docs/claims.md has them."""

    L0 = "L0"
    L1 = "L1"
    L2 = "L2"
    L3 = "L3"


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        name: short, and no other's.
        tries: what it tries, in a sentence without a subject.
        family: which kind it is.
        program: what the attacker runs.
        rules: the rules that stop it. With all of them off it gets through; if they
            are several, any one of them is enough to stop it.
        level: the level that stops it; above L0 it gets through today.
        refused: the rule or kind of error that the attacker is told; empty if
            nothing is said.
        opposite: whether what it is permitted to see are sums in which bob and alice
            weigh the same: then nothing shows if one has more by what the other has
            less.
        forked: whether it may end the process in which the values are.
        changes: clauses of policies that are otherwise, by worker; ``*`` for all.
        ledger: whether the aggregator keeps a record on disk.
        finding: why it gets through although it should not; empty if it does not.
    """

    name: str
    tries: str
    family: Family
    program: Program
    rules: tuple[str, ...] = ()
    level: Level = Level.L0
    refused: str = ""
    opposite: bool = False
    forked: bool = False
    changes: Changes = field(default_factory=dict)
    ledger: bool = False
    finding: str = ""
