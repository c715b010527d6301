"""What remote tensors claim to look like, and when the worker is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import obhut
from obhut.errors import UnsupportedError


@pytest.fixture
def asked(bob: obhut.VirtualWorker, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that waited for bob's answer."""
    requests: list[Any] = []
    ask = bob.session.ask

    def note(request: Any) -> Any:
        requests.append(request)
        return ask(request)

    monkeypatch.setattr(bob.session, "ask", note)
    return requests


def test_strides_that_a_device_decides_are_asked_for_once(
    bob: obhut.VirtualWorker, asked: list[Any]
) -> None:
    """A convolution of channels-last images asks; the next of that kind does not."""
    weight = obhut.send(torch.randn(4, 3, 2, 2, requires_grad=True), bob)
    images = obhut.send(torch.randn(2, 3, 5, 5), bob)
    torch.nn.functional.conv2d(images, weight)
    assert not asked
    last = images.contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        result = torch.nn.functional.conv2d(last, weight)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert result.requires_grad
        result.flatten(1).sum().backward()
    assert len(asked) == 1


def test_an_in_place_operator_may_resize(bob: obhut.VirtualWorker) -> None:
    """``addbmm_`` gives its first argument the shape that it is broadcast to."""
    x = obhut.send(torch.ones(1), bob)
    y = x.addbmm_(*(obhut.send(torch.ones(2, 3, 3), bob) for _ in range(2)))
    assert y is x
    assert x.shape == (3, 3)
    assert torch.equal(x.get(), torch.full((3, 3), 7.0))


def test_what_is_written_into_empty_tensors_looks_as_the_worker_says(
    bob: obhut.VirtualWorker, asked: list[Any]
) -> None:
    """A tensor given as ``out`` that fits stays as it is; else the worker is asked."""
    x = obhut.send(torch.randn(3, 2), bob)
    fitting, empty = obhut.send(torch.zeros(2, 2), bob), obhut.send(torch.empty(0), bob)
    torch.mm(x.t(), x, out=fitting)
    assert not asked
    q, r = torch.linalg.qr(x, out=(empty, fitting))
    assert q is empty
    assert q.stride() == torch.linalg.qr(torch.randn(3, 2))[0].stride()
    assert r.shape == (2, 2)


def test_a_composite_with_out_is_taken_apart_or_refused(
    bob: obhut.VirtualWorker,
) -> None:
    """What travels whole has no ``out``; what makes tensors inside refuses it."""
    x, out = obhut.send(torch.eye(2), bob), obhut.send(torch.zeros(2, 2), bob)
    assert torch.matmul(x, x, out=out) is out
    assert torch.equal(out.get(), torch.eye(2))
    rank = obhut.send(torch.zeros((), dtype=torch.int64), bob)
    with pytest.raises(UnsupportedError, match="matrix_rank with out="):
        torch.linalg.matrix_rank(x, out=rank)


def test_a_number_may_stand_beside_meta_tensors(bob: obhut.VirtualWorker) -> None:
    """Operators whose meta kernel takes no number from the CPU are known as well."""
    x = torch.randn(4, 3)
    pinverse = torch.linalg.pinv(obhut.send(x, bob))
    assert pinverse.shape == (3, 4)
    torch.testing.assert_close(pinverse.get(), torch.linalg.pinv(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_view_without_grad_mode_is_what_it_is_in_torch(
    mode: Any, bob: obhut.VirtualWorker
) -> None:
    """Under no_grad a view of a parameter requires a gradient, and gets none."""
    here = torch.ones(2, 3, requires_grad=True)
    there = obhut.send(here, bob)
    with mode():
        views = [x.t() for x in (here, there)]
    assert views[0].requires_grad is views[1].requires_grad
    assert views[0].is_leaf is views[1].is_leaf is True
    assert views[1].grad_fn is None
    if mode is torch.no_grad:
        for x, view in ((here, views[0]), (there, views[1])):
            (x.sum() + view.sum()).backward()
        assert views[0].grad is views[1].grad is None
        assert there.grad is not None
        assert torch.equal(there.grad.get(), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x: torch.linalg.vector_norm(x, 0), (3, 3)),
        (lambda x: torch.linalg.householder_product(x, x.detach()[0]), (3, 0)),
    ],
)
def test_a_gradient_that_does_not_arrive_is_none(
    call: Any, shape: tuple[int, ...], bob: obhut.VirtualWorker
) -> None:
    """Operators that record themselves and pass nothing on leave ``grad`` None."""
    for x in (torch.ones(shape), obhut.send(torch.ones(shape), bob)):
        x.requires_grad_()
        call(x).sum().backward()
        assert x.grad is None
        (call(x).sum() + x.sum()).backward()
        assert x.grad is not None
        assert x.grad.shape == shape


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:, :1].t(),
        lambda x: x.expand(2, 3, 4),
        lambda x: x[:0],
        lambda x: torch.block_diag(x, x)[1:2],
    ],
)
def test_any_strides_can_be_fetched(make: Any, bob: obhut.VirtualWorker) -> None:
    """Views come here as they are, whatever the strides of sizes of 1."""
    x = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(make(obhut.send(x, bob)).get(), make(x))


def test_a_gradient_of_zeros_without_memory_can_be_fetched(
    bob: obhut.VirtualWorker,
) -> None:
    """Autograd's zeros, which have no memory, arrive as zeros."""
    x = obhut.send(torch.ones(3, requires_grad=True), bob)
    x.sgn().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.get(), torch.zeros(3))
