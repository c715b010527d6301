"""Hooks that are set before or after what they hang on is sent."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .programs import Place, row


@row("a forward hook of a module, set before `send`")
def forward_hook(at: Place) -> Any:
    """The hook runs, here, on what the module returns there."""
    layer = nn.Linear(2, 1)
    seen: list[tuple[int, ...]] = []
    layer.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape)))
    at.send(layer)
    return [layer(at.send(torch.ones(3, 2))), seen]
