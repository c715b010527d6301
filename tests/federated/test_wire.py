"""Models and contributions in half precision, and what rounding loses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.federated.test_federation import same
from tests.federated.test_strategies import (
    POLICY,
    TRAINING,
    Parts,
    federate,
    make_model,
    make_parts,
    trained_here,
)
from torch import nn

import obhut
from obhut.errors import CallError
from obhut.federated.parameters import named_tensors

HALF = torch.bfloat16
ROUNDS = 4


def short(parts: Parts) -> dict[str, dict[str, torch.Tensor]]:
    """Return rows in float32."""
    return {
        name: {"features": part["features"].float(), "target": part["target"]}
        for name, part in parts.items()
    }


def played(model: nn.Module, parts: Parts) -> None:
    """Play the rounds here, and round what would travel."""
    rows = {name: len(part["target"]) for name, part in parts.items()}
    power = 2 ** (max(rows.values()) - 1).bit_length()
    down: dict[str, Any] = {}
    up: dict[tuple[str, str], Any] = {}
    for _ in range(ROUNDS):
        began = copy.deepcopy(model)
        for name, tensor in named_tensors(began).items():
            if tensor.is_floating_point():
                whole = tensor.data + down.get(name, 0.0)
                tensor.data.copy_(whole.to(HALF))
                down[name] = whole - tensor.data
        sums: dict[str, Any] = {}
        for owner, part in parts.items():
            trained = trained_here(began, part)
            for name, tensor in named_tensors(trained).items():
                if not tensor.is_floating_point():
                    sums[name] = sums.get(name, 0.0) + tensor.double() * rows[owner]
                    continue
                change = tensor.data - named_tensors(began)[name].data
                whole = change * (rows[owner] / power) + up.get((owner, name), 0.0)
                sent = whole.to(HALF)
                up[owner, name] = whole - sent
                sums[name] = sums.get(name, 0.0) + sent.double()
        for name, tensor in named_tensors(model).items():
            if tensor.is_floating_point():
                mean = sums[name].float() / (sum(rows.values()) / power)
                tensor.data.copy_(tensor + mean)
            else:
                tensor.data.copy_((sums[name] / sum(rows.values())).round())


@pytest.mark.parametrize("policy", [None, POLICY], ids=["open", "same"])
def test_what_rounding_loses_is_sent_with_the_next(policy: obhut.Quorum | None) -> None:
    """Rounds are the arithmetic of error feedback both ways, written out."""
    parts, model = short(make_parts()), make_model().float()
    expected = copy.deepcopy(model)
    plain = copy.deepcopy(model)
    played(expected, parts)
    federate(parts, policy).fit(
        model, TRAINING, rounds=ROUNDS, wire_dtype=HALF, progress=False
    )
    for name, tensor in named_tensors(model).items():
        assert torch.equal(tensor, named_tensors(expected)[name])
    federate(parts).fit(plain, TRAINING, rounds=ROUNDS, progress=False)
    assert not same(model, plain)


def test_half_as_many_bytes_travel() -> None:
    """The model, and what an owner delivers of it."""
    parts = short(make_parts())
    sizes: dict[Any, int] = {}
    for dtype in (None, HALF):
        federation = federate(parts)
        sent: list[int] = []
        session = federation.owners["aspen"].location.session
        post = session.post

        def counting(
            request: Any,
            frame: Any = None,
            *args: Any,
            sent: list[int] = sent,
            post: Any = post,
            **kwargs: Any,
        ) -> Any:
            sent.append(0 if frame is None else len(frame))
            return post(request, frame, *args, **kwargs)

        session.post = counting
        model = nn.Linear(4, 3)
        federation.fit(model, TRAINING, rounds=3, wire_dtype=dtype, progress=False)
        sizes[dtype] = sum(sent)
    assert sizes[None] == 3 * 15 * 4
    assert sizes[HALF] == 3 * 15 * 2


def test_other_dtypes_are_refused() -> None:
    """Before anything is sent."""
    with pytest.raises(CallError, match=r"wire_dtype of torch.bfloat16 or"):
        federate(make_parts()).fit(
            make_model(), TRAINING, rounds=1, wire_dtype=torch.int8
        )
