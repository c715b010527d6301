"""The generator that operators draw from, which is the process's.

::

    seed_draws(7, device)                        # of a request that names a seed
    with seeded(7, device):                      # a run; then all is as before
        ...
    going_on(op.call, args, kwargs)              # draws as many as values say
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

# Any below: what operators take and return.


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the generator of a device."""
    if device.type == "cpu":
        # torch.manual_seed asks each kind of device: 100 us, 800 below many frames.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed; afterwards the generator is as it was."""
    before = torch.default_generator.get_state()
    seed_draws(seed, device)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def going_on(call: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call an operator that draws as many numbers as values say.

    Leak: in the requester's own process the generator is theirs. It goes on from a
    state that follows from the one before.
    """
    generator = torch.default_generator
    before = hashlib.sha256(generator.get_state().numpy().tobytes()).digest()
    try:
        return call(*args, **kwargs)
    finally:
        generator.manual_seed(int.from_bytes(before[:8], "little"))
