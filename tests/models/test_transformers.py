"""Models of ``transformers`` are trained at a worker as they are here.

Rules:

- Configurations are tiny, weights random, and nothing is downloaded.
- What is trained at a worker equals what is trained here: losses, gradients of the
  last step, weights and statistics after it, and the loss without gradients. It is
  equal to the bit, but where the table says that another path is taken.
- Behind a policy too: there a test looks past the guard.
"""

from __future__ import annotations

import re
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from torch import nn

import obhut

from .architectures import (
    ARCHITECTURES,
    ROUNDED,
    SAME,
    bert,
    continued,
    gpt2,
    t5,
)
from .conftest import Peeked
from .training import Make, check, train

pytestmark = pytest.mark.slow

PAGE = FilePath(__file__).parents[2] / "docs" / "works.md"
HEADER = "| model | open | behind a policy | line that it needs |\n"


def rows() -> dict[str, tuple[str, ...]]:
    """Return what the page says of each model."""
    _, _, rest = PAGE.read_text("utf-8").partition(HEADER)
    found: dict[str, tuple[str, ...]] = {}
    for line in rest.split("\n\n", 1)[0].splitlines()[1:]:
        names, *cells = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        for name in re.split(r",\s+", names):
            assert name not in found
            found[name] = tuple(cells)
    return found


def test_the_page_says_what_becomes_of_each() -> None:
    """There is no model without a row, and no row without a model."""
    assert rows() == {
        name: (one.open, one.guarded, one.line) for name, one in ARCHITECTURES.items()
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_is_trained_as_it_is_here(name: str, place: Peeked) -> None:
    """Or it raises what its row says."""
    one = ARCHITECTURES[name]
    outcome = one.guarded if place.guarded else one.open
    if outcome in (SAME, ROUNDED):
        check(one.make, place, atol=1e-6 if outcome == ROUNDED else 0)
        return
    with pytest.raises(Exception) as raised:  # noqa: PT011 # compared below
        train(one.make, place)
    assert type(raised.value).__name__ == outcome


def all_kept() -> tuple[nn.Module, dict[str, Any]]:
    """Return a model and a mask that masks nothing."""
    model, inputs = gpt2()
    return model, {
        "input_ids": inputs["input_ids"],
        "attention_mask": torch.ones_like(inputs["attention_mask"]),
        "labels": inputs["input_ids"],
    }


def test_a_mask_of_ones_changes_nothing(place: Peeked) -> None:
    """Here it is dropped; behind a policy it is applied, by another kernel."""
    check(all_kept, place, atol=1e-6 if place.guarded else 0)


def dropping() -> tuple[nn.Module, dict[str, Any]]:
    """Return a model that drops a tenth of all, as it comes."""
    model, inputs = gpt2()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.1
    return model, inputs


def test_what_is_dropped_comes_from_the_seed(place: Peeked) -> None:
    """At virtual workers, which draw from this process's generator."""
    check(dropping, place)


def written_out() -> tuple[nn.Module, dict[str, Any]]:
    """Return a model that writes attention out."""
    model, inputs = gpt2()
    model.set_attn_implementation("eager")
    return model, inputs


def test_attention_may_be_written_out(place: Peeked) -> None:
    """The other way to compute it works as well."""
    check(written_out, place)


@pytest.mark.parametrize("make", [gpt2, t5])
def test_text_is_generated_inside_the_worker(make: Make) -> None:
    """Without a policy, since it asks after each token whether to go on."""
    torch.manual_seed(0)
    model, inputs = make()
    asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    here = model.generate(**asked, **how)
    bob = obhut.VirtualWorker("bob")
    obhut.send(model, bob)
    sent = {name: obhut.send(x, bob) for name, x in asked.items()}
    with bob:
        there = model.generate(**sent, **how)
    assert torch.equal(obhut.get(there), here)
    bob.close()


def test_a_mask_of_four_dimensions_needs_no_look(place: Peeked) -> None:
    """``transformers`` takes it as it is, behind a policy too."""
    ids, kept = (continued()[name] for name in ("input_ids", "attention_mask"))
    torch.manual_seed(0)
    model, _ = bert()
    model.eval()
    here = model(input_ids=ids, attention_mask=kept).logits.detach()
    obhut.send(model, place.worker)
    remote, mask = (obhut.send(x, place.worker) for x in (ids, kept))
    there = model(input_ids=remote, attention_mask=mask[:, None, None, :].bool())
    torch.testing.assert_close(place.value(there.logits), here, rtol=0, atol=1e-6)
