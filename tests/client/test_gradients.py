"""Autograd at the worker, seen from the client."""

from collections.abc import Callable

import pytest
import torch

import obhut
from obhut.errors import LocationError

ROWS = torch.arange(6.0).reshape(2, 3) + 1


def leaf(
    worker: obhut.VirtualWorker | None, values: torch.Tensor = ROWS
) -> torch.Tensor:
    """Return a leaf that requires a gradient, here or at a worker."""
    made = values.clone().requires_grad_()
    return made if worker is None else obhut.send(made, worker)


PROGRAMS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda w: (w**3).sum(),
    lambda w: (w * w.detach()).sum(),
    lambda w: w[0].exp().sum() + w.T.contiguous()[1].log().sum(),
    lambda w: torch.nn.functional.cross_entropy(w, w.argmax(1)),
    lambda w: torch.zeros_like(w).copy_(w).pow(2).sum(),
    lambda w: (w * 2).mul_(w).sum(),
    lambda w: torch.cat([w, w]).max(),
    lambda w: w.view(-1).index_select(0, w.argmax().view(1)).sum(),
    lambda w: torch.where(w > 2, w, -w).sum(),
    lambda w: w.unbind(1)[2].sum(),
    lambda w: torch.nn.functional.dropout(w, 0.0).sum(),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_gradients_are_those_of_plain_torch(
    program: Callable[[torch.Tensor], torch.Tensor], bob: obhut.VirtualWorker
) -> None:
    """Twice over: gradients accumulate, and the flags agree throughout."""
    local, remote = leaf(None), leaf(bob)
    for _ in range(2):
        ours, theirs = program(remote), program(local)
        assert ours.requires_grad
        assert not ours.is_leaf
        assert ours.grad_fn is not None
        ours.backward()
        theirs.backward()
        assert torch.equal(remote.grad.copy().get(), local.grad)
    remote.grad = None
    assert remote.grad is None


def test_what_is_not_reached_has_no_gradient(bob: obhut.VirtualWorker) -> None:
    """``.grad`` stays None without asking the worker."""
    used, unused = leaf(bob), leaf(bob)
    (used * 2).sum().backward()
    assert used.grad is not None
    assert unused.grad is None


def test_no_grad_holds_at_the_worker(bob: obhut.VirtualWorker) -> None:
    """Nothing is recorded under ``no_grad``, and ``enable_grad`` records again."""
    w = leaf(bob)
    with torch.no_grad():
        assert not (w * 2).requires_grad
        with torch.enable_grad():
            assert (w * 2).requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        w.detach().sum().backward()


def test_views_of_what_was_written_belong_to_its_history(
    bob: obhut.VirtualWorker,
) -> None:
    """Writing through a view gives the base a gradient, and its other views."""

    def program(w: torch.Tensor) -> torch.Tensor:
        base = torch.zeros_like(w.detach())
        other = base[1]
        base[0] = w[0] * 2
        base[1].add_(w[1] * 3)
        assert base.requires_grad
        assert other.requires_grad
        return (base**2).sum() + other.sum()

    local, remote = leaf(None), leaf(bob)
    program(local).backward()
    program(remote).backward()
    assert torch.equal(remote.grad.get(), local.grad)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda w: w.add_(1), "a leaf Variable that requires grad"),
        (lambda w: w[0].zero_(), "a view of a leaf Variable"),
        (lambda w: w.sum(1).backward(), "only for scalar outputs"),
        (lambda w: (w * 2).requires_grad_(False), "leaf variables"),
        (lambda w: w.long().requires_grad_(), "floating point"),
        (lambda w: w.detach().retain_grad(), "requires_grad=False"),
        (
            lambda w: setattr(w, "grad", w.T.detach()),
            "attempting to assign a gradient of size",
        ),
    ],
)
def test_mistakes_are_told_in_torchs_words(
    write: Callable[[torch.Tensor], object], words: str, bob: obhut.VirtualWorker
) -> None:
    """The same mistake raises the same error as locally, before it is sent."""
    for worker in (None, bob):
        with pytest.raises(RuntimeError, match=words):
            write(leaf(worker))


def test_a_second_backward_fails_as_locally(bob: obhut.VirtualWorker) -> None:
    """The worker's error comes with the line that asked for it."""
    w = leaf(bob)
    loss = (w**2).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        w.grad.get()


def test_autograd_functions_differentiate_at_the_worker(
    bob: obhut.VirtualWorker,
) -> None:
    """``torch.autograd.grad`` and ``backward``, also of gradients, agree."""

    def program(w: torch.Tensor, idle: torch.Tensor) -> list[torch.Tensor | None]:
        loss = (w**3).sum()
        first, none = torch.autograd.grad(
            loss, [w, idle], create_graph=True, allow_unused=True
        )
        (second,) = torch.autograd.grad(first.sum(), w, retain_graph=True)
        (filled,) = torch.autograd.grad(
            first, idle, w.detach(), allow_unused=True, materialize_grads=True
        )
        torch.autograd.backward([(w * 2).sum(), w], [None, torch.ones_like(w)])
        return [first.detach(), none, second, filled, w.grad]

    local = program(leaf(None), leaf(None))
    remote = program(leaf(bob), leaf(bob))
    for ours, theirs in zip(remote, local, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert torch.equal(ours.get(), theirs)


def test_an_unused_input_is_an_error(bob: obhut.VirtualWorker) -> None:
    """Without ``allow_unused``, in PyTorch's words."""
    w, idle = leaf(bob), leaf(bob)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad((w * 2).sum(), idle)


def test_backward_into_inputs_only(bob: obhut.VirtualWorker) -> None:
    """``inputs=`` leaves other leaves without a gradient."""
    one, two = leaf(bob), leaf(bob)
    (one * two).sum().backward(inputs=[one])
    assert torch.equal(one.grad.get(), ROWS)
    assert two.grad is None


def test_retain_grad_keeps_the_gradient_of_a_result(bob: obhut.VirtualWorker) -> None:
    """As locally, for a result that something else was made of."""
    w = leaf(bob)
    middle = w * 2
    middle.retain_grad()
    assert middle.retains_grad
    (middle**2).sum().backward()
    assert torch.equal(middle.grad.get(), 4 * ROWS)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_double_backward_through_grad(bob: obhut.VirtualWorker) -> None:
    """``create_graph`` makes ``.grad`` differentiable."""

    def program(w: torch.Tensor) -> torch.Tensor:
        (w**3).sum().backward(create_graph=True)
        penalty = (w.grad**2).sum()
        w.grad = None
        penalty.backward()
        return w.grad

    assert torch.equal(program(leaf(bob)).get().detach(), program(leaf(None)).detach())


def test_gradients_at_two_workers_do_not_mix(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """A backward over two places is refused, naming both."""
    with pytest.raises(LocationError, match="bob and alice"):
        torch.autograd.backward([leaf(bob).sum(), leaf(alice).sum()])
    w = leaf(bob)
    with pytest.raises(LocationError):
        w.grad = torch.ones(2, 3)


def test_get_brings_the_gradient_along(bob: obhut.VirtualWorker) -> None:
    """A fetched leaf has the gradient that it had at the worker."""
    w = leaf(bob)
    (w**2).sum().backward()
    fetched = w.get()
    assert fetched.requires_grad
    assert torch.equal(fetched.grad, 2 * ROWS)
    again = obhut.send(fetched, bob)
    assert torch.equal(again.grad.get(), 2 * ROWS)


def test_a_fetched_result_has_no_history(bob: obhut.VirtualWorker) -> None:
    """The value of a loss comes as a plain number's tensor."""
    loss = (leaf(bob) ** 2).sum().get()
    assert not loss.requires_grad
    assert float(loss) == 91.0


def both_gradients(
    program: Callable[[torch.Tensor], torch.Tensor | None], bob: obhut.VirtualWorker
) -> None:
    """Compare what a program returns, values and strides, with plain torch."""
    ours, theirs = program(leaf(bob)), program(leaf(None))
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert ours.stride() == theirs.stride()
        assert torch.equal(ours.get(), theirs)


def twice(w: torch.Tensor) -> torch.Tensor | None:
    """A kept gradient that is read between two passes."""
    y = w.t() * 2
    y.retain_grad()
    total = y.sum()
    total.backward(retain_graph=True)
    assert y.grad is not None
    total.backward()
    return y.grad


def of_a_view(w: torch.Tensor) -> torch.Tensor | None:
    """A kept gradient of a view that was written into."""
    view = torch.zeros_like(w.detach()).view(-1)[:3]
    view += w[0]
    view.retain_grad()
    (view * 3).sum().backward()
    return view.grad


def of_an_input(w: torch.Tensor) -> torch.Tensor | None:
    """A result that is named as an input."""
    y = w * 2
    (y**2).sum().backward(inputs=[y])
    return y.grad


def of_a_list(w: torch.Tensor) -> torch.Tensor | None:
    """One of several inputs of an operator on lists, which its result has not used."""
    other = (w.detach() * 1).requires_grad_()
    first, _ = torch._foreach_mul([w, other], 2.0)
    first.sum().backward()
    return other.grad


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("program", [twice, of_a_view, of_an_input, of_a_list])
def test_unusual_gradients_are_those_of_plain_torch(
    program: Callable[[torch.Tensor], torch.Tensor | None], bob: obhut.VirtualWorker
) -> None:
    """Presence, values and strides."""
    both_gradients(program, bob)


def test_a_found_leaf_is_the_same_leaf(bob: obhut.VirtualWorker) -> None:
    """Two names for one object share what autograd knows of it."""
    weight = leaf(bob).tag("#w")
    (found,) = bob.search("#w")
    (found * found).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad.get(), 2 * ROWS)


def test_unused_gradients_leave_nothing_behind(bob: obhut.VirtualWorker) -> None:
    """An error about one input frees the gradients of the others."""
    w, idle = leaf(bob), leaf(bob)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad((w * 2).sum(), [w, idle])
    assert bob.objects_count() == 2
