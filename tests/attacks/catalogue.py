"""All attacks, by name."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    branches,
    direct,
    laundering,
    operators,
    programs,
    provenance,
    queries,
    storing,
)
from .attack import Attack

_MODULES = (
    direct,
    operators,
    branches,
    laundering,
    queries,
    programs,
    provenance,
    storing,
)

ATTACKS: Mapping[str, Attack] = {
    attack.name: attack for module in _MODULES for attack in module.ATTACKS
}
"""Each attack."""

COUNT = sum(len(module.ATTACKS) for module in _MODULES)
"""How many there are; fewer in ``ATTACKS`` would mean that two have one name."""
