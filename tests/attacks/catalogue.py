"""All attacks, by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import direct, laundering, operators, programs, queries
from .attack import Attack

ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for module in (direct, operators, laundering, queries, programs)
    for attack in module.ATTACKS
}
"""Each attack."""

COUNT = sum(
    len(module.ATTACKS) for module in (direct, operators, laundering, queries, programs)
)
"""How many there are; fewer in ``ATTACKS`` would mean that two have one name."""
