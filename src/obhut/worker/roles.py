"""What a worker is under a policy: an owner, or an aggregator.

Rule: a worker without a role is open. It enforces nothing, and takes nothing from
an owner who has a policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from obhut.guard.policy import Quorum

from .evaluation import keep


@dataclass(frozen=True, slots=True)
class Owner:
    """A worker that holds an owner's data.

    Nothing leaves it but what goes to an aggregator that its policy names.

    Attributes:
        policy: the owner's.
        log: takes lines that only the owner may read.
    """

    policy: Quorum
    log: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, slots=True)
class Aggregator:
    """A worker that adds what owners deliver, and holds no data of its own.

    Attributes:
        policy: its operator's, which holds beside those of the owners.
        passed: told of each block of a contribution once it was read and is not needed
            for now.
    """

    policy: Quorum
    passed: Callable[[torch.Tensor], None] = keep


Role: TypeAlias = Owner | Aggregator
