"""The comparison of remote and local runs: it tells every kind of difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import obhut
from obhut.errors import InternalError, UnsupportedError
from obhut.testing.conformance import (
    Outcome,
    Verdict,
    compare_call,
    difference,
    worst,
)
from obhut.testing.databases import compare_optimizer, optimizers
from obhut.testing.pairs import Layout, Pairs


def _sample() -> torch.Tensor:
    return torch.arange(1.0, 7.0).reshape(2, 3).requires_grad_()


def _outcome(call: Callable[..., Any], **how: Any) -> Outcome:
    return compare_call(call, (_sample(),), {}, to_graded=lambda result: result, **how)


def _remote(x: torch.Tensor) -> bool:
    return isinstance(x, obhut.RemoteTensor)


def _fail(error: Exception) -> torch.Tensor:
    raise error


def test_what_is_the_same_is_equal() -> None:
    """A function that does the same at both places is equal."""
    assert _outcome(lambda x: (x * 2, [x.sum(), 3])).verdict is Verdict.EQUAL


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: x + 1e-3 * _remote(x), "result 0: Tensor-likes are not close"),
        (lambda x: x.double() if _remote(x) else x * 1, "torch.float64"),
        (lambda x: x[0] if _remote(x) else x * 1, "[3] of torch.float32, not [2, 3]"),
        (lambda x: (x,) if _remote(x) else x, "a tuple(Tensor), not a Tensor"),
        (lambda x: {"a": x} if _remote(x) else [x], "a dict(a=Tensor), not a list"),
        (lambda x: 1 if _remote(x) else 2, "1, not 2"),
        (lambda x: 1.0 if _remote(x) else float("nan"), "1.0, not nan"),
        (lambda x: x.detach() if _remote(x) else x, "requires_grad=False"),
        (lambda x: x.clone() if _remote(x) else x, "is_leaf=False"),
        (
            lambda x: x.t().contiguous() if _remote(x) else x.t() * 1,
            "has row-major, not other strides",
        ),
        (lambda x: (x - x.detach()) * (1 + _remote(x)), "gradient 0"),
        (lambda x: x.data.add_(_remote(x)).sum() * 0, "input 0"),
        (lambda x: _fail(ValueError("no")) if _remote(x) else x, "raised ValueError"),
    ],
)
def test_each_difference_is_found(call: Callable[..., Any], said: str) -> None:
    """Whatever a caller can observe is compared: one difference is enough."""
    outcome = _outcome(call)
    assert outcome.verdict is Verdict.DIFFERENT
    assert said in outcome.detail


def test_a_gradient_that_is_not_there_is_a_difference() -> None:
    """No gradient and a gradient of zeros are not the same."""

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum() + (y * 0).sum() if _remote(x) else x.sum()

    outcome = compare_call(
        call, (_sample(), _sample()), {}, to_graded=lambda result: result
    )
    assert outcome.verdict is Verdict.DIFFERENT
    assert "gradient 1" in outcome.detail


def test_a_false_claim_is_a_difference() -> None:
    """A remote tensor that looks otherwise than at its worker is found out."""

    def call(x: torch.Tensor) -> torch.Tensor:
        made = x.detach() * 1
        if isinstance(made, obhut.RemoteTensor):
            made._held.tracked().become_leaf(True)
            return made
        return made.requires_grad_()

    outcome = compare_call(call, (_sample(),), {})
    assert outcome.verdict is Verdict.DIFFERENT
    assert "claims requires_grad True, the worker has False" in outcome.detail


def test_an_error_that_names_its_reason_refuses() -> None:
    """An error of obhut's that names what it refuses is a refusal, and is kept."""
    error = UnsupportedError("this", "do that")
    outcome = _outcome(lambda x: _fail(error) if _remote(x) else x)
    assert outcome.verdict is Verdict.REFUSED
    assert outcome.error == "UnsupportedError"
    assert str(outcome).startswith("refused: UnsupportedError: this does not work")


def test_an_error_that_names_nothing_is_a_difference() -> None:
    """An error of obhut's that is a bug of obhut's is no refusal."""
    error = InternalError("contradiction")
    outcome = _outcome(lambda x: _fail(error) if _remote(x) else x)
    assert outcome.verdict is Verdict.DIFFERENT


def test_what_fails_locally_is_skipped() -> None:
    """A sample that fails here shows nothing, whatever the remote run does."""
    outcome = _outcome(lambda x: x if _remote(x) else _fail(ValueError("no")))
    assert outcome.verdict is Verdict.SKIPPED


def test_a_backward_pass_that_fails_locally_is_left_out() -> None:
    """Results are compared although they can not be differentiated."""

    def call(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        z = y.exp()
        z.add_(1)
        return z

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        call(_sample()).sum().backward()
    assert _outcome(call).verdict is Verdict.EQUAL


def test_uninitialised_memory_is_zeros_at_a_worker() -> None:
    """Where a local result is uninitialised memory, zeros are what is right."""
    outcome = compare_call(torch.empty, ((50,),), {}, uninitialised=True)
    assert outcome.verdict is Verdict.EQUAL


def test_random_numbers_are_the_same() -> None:
    """Both runs begin with the same seed."""
    assert _outcome(lambda x: x + torch.randn_like(x)).verdict is Verdict.EQUAL


def test_what_can_not_be_sent_is_refused() -> None:
    """A sample with a sparse tensor is refused by an error that says so."""
    sparse = torch.eye(2).to_sparse()
    outcome = compare_call(lambda x: x * 2, (sparse,), {})
    assert outcome.error == "NotSendableError"


@pytest.mark.parametrize("layout", list(Layout))
def test_twins_are_laid_out_alike(layout: Layout) -> None:
    """Both copies have the values, the strides and the flags that were asked for."""
    values = [torch.randn(2, 1, 4, 5), torch.randn(3, 4).requires_grad_(), 7]
    worker = obhut.VirtualWorker(id="bob")
    pairs = Pairs(worker, layout)
    here, there = pairs.local_one([values, values]), pairs.remote_one([values])
    for value, local, remote in zip(values, here[0], there[0], strict=True):
        if not isinstance(value, torch.Tensor):
            assert local == remote == value
            continue
        assert torch.equal(local, value)
        assert local.stride() == remote.stride()
        assert local.requires_grad == remote.requires_grad == value.requires_grad
        assert torch.equal(remote.detach().get(), value)
    leaves = pytree.tree_leaves(here)
    assert leaves[0] is leaves[3]
    transposed = here[0][1].stride() == (1, 3)
    assert transposed is (layout is Layout.TRANSPOSED)
    worker.close()


def test_the_worst_sample_decides() -> None:
    """One different sample outweighs a refused one, and that one equal ones."""
    equal, skipped = Outcome(Verdict.EQUAL), Outcome(Verdict.SKIPPED)
    refused = Outcome(Verdict.REFUSED, error="LocationError", detail="there")
    different = Outcome(Verdict.DIFFERENT, detail="that")
    assert worst([equal, refused, different]) == Outcome(
        Verdict.DIFFERENT, 3, detail="that"
    )
    assert worst([equal, refused, skipped]) == Outcome(
        Verdict.REFUSED, 2, "LocationError", "there"
    )
    assert worst([equal, skipped]) == Outcome(Verdict.EQUAL, 1)
    assert worst([skipped]) == Outcome(Verdict.SKIPPED, 0)


def test_an_optimizer_with_another_rate_is_different(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An update that is not the local one shows in the parameters."""
    info = optimizers()["SGD"]
    step = torch.optim.SGD.step

    def wrong(self: torch.optim.SGD, closure: Any = None) -> Any:
        for group in self.param_groups:
            if isinstance(group["params"][0], obhut.RemoteTensor):
                group["lr"] = group["lr"] * 1.01
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", wrong)
    assert compare_optimizer(info).verdict is Verdict.DIFFERENT


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_half_precision_complex_numbers_are_compared() -> None:
    """The one dtype that PyTorch can not compare is compared all the same."""
    x = torch.tensor([1 + 2j], dtype=torch.complex32)
    assert difference(x, x.clone()) == ""
    assert difference(x, (x.to(torch.complex64) * 2).to(torch.complex32)) != ""
