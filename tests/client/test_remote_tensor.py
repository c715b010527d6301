"""What a remote tensor answers, and what it refuses."""

import contextlib
import copy
import gc
import io
import pickle
from collections.abc import Callable

import pytest
import torch

import obhut
from obhut.errors import (
    LocationError,
    ObjectNotFoundError,
    OpNotAdmittedError,
    RemoteIndexError,
    UnsupportedError,
    WorkerNotFoundError,
)

ROWS = torch.arange(12.0).reshape(4, 3) - 5


def both(func: Callable[[torch.Tensor], object], bob: obhut.VirtualWorker) -> None:
    """Compare a function of a remote tensor with the same of a local one."""
    local = func(ROWS.clone())
    remote = func(obhut.send(ROWS, bob))
    if isinstance(local, torch.Tensor):
        assert isinstance(remote, obhut.RemoteTensor)
        assert remote.shape == local.shape
        assert remote.dtype == local.dtype
        assert remote.stride() == local.stride()
        assert torch.equal(remote.get(), local)
    else:
        assert remote == local


@pytest.mark.parametrize(
    "func",
    [
        lambda x: x.T,
        lambda x: x[1:, ::2],
        lambda x: x[x > 0],
        lambda x: x[[0, 2]],
        lambda x: x[torch.tensor([0, 2]), torch.tensor([1, 1])],
        lambda x: x[:, None, 0],
        lambda x: x.view(-1).unfold(0, 3, 2),
        lambda x: torch.stack([x, x]).sum(0),
        lambda x: torch.cat([x, x * 2], 1),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.nonzero(),
        lambda x: torch.unique(x.sign()),
        lambda x: x.max(1).values,
        lambda x: x.sort(0, descending=True).indices,
        lambda x: x.to(torch.int64) // 2,
        lambda x: x.double() * 2,
        lambda x: x.half(),
        lambda x: x.bool(),
        lambda x: x + 1j,
        lambda x: torch.einsum("ij,kj->ik", x, x),
        lambda x: x @ x.T,
        lambda x: x.new_zeros(2, 2),
        lambda x: x.new_tensor([1, 2]),
        lambda x: x.expand(2, 4, 3),
        lambda x: x.contiguous(memory_format=torch.contiguous_format),
        lambda x: torch.add(x, x, out=torch.empty_like(x)),
        lambda x: (x.data / 2).detach(),
        lambda x: torch.tensor(3.0) * x,
        lambda x: x.size(),
        lambda x: x.dtype,
        lambda x: x.numel(),
        lambda x: x.is_contiguous(),
        lambda x: x.T.storage_offset() + x[1:].storage_offset(),
        len,
        lambda x: x[0, 0].item(),
        lambda x: bool((x < 100).all()),
        lambda x: int(x[1, 1]),
        lambda x: f"{x[2, 2]:.2f}",
        lambda x: [float(v) for v in x[0]],
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x + 0),
        lambda x: 3.0 in x,
        lambda x: x.device,
    ],
)
def test_an_expression_gives_what_it_gives_locally(
    func: Callable[[torch.Tensor], object], bob: obhut.VirtualWorker
) -> None:
    """Values, sizes, strides and dtype are those of plain torch."""
    both(func, bob)


def test_uninitialised_memory_comes_as_zeros(bob: obhut.VirtualWorker) -> None:
    """What ``empty`` would show of a worker's memory is never shown."""
    remote = obhut.send(ROWS, bob)
    with bob:
        made = [
            torch.empty_like(remote),
            torch.empty(3, 4),
            remote.new_empty(2),
            torch.empty_strided((2, 3), (1, 2)),
        ]
    assert all(not x.get().any() for x in made)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x[0].mul_(3),
        lambda x: x.view(-1)[::2].zero_(),
        lambda x: x.t_(),
        lambda x: x.squeeze_().unsqueeze_(0),
        lambda x: x.resize_(2, 3),
        lambda x: x.resize_(6, 6).fill_(1),
        lambda x: x.copy_(torch.ones(4, 3)),
        lambda x: x.masked_fill_(x > 0, 7),
        lambda x: x.__setitem__((0, 1), 9),
        lambda x: x.__setitem__(x > 0, 0.5),
        lambda x: x.__setitem__([0, 1], x[2:] * 2),
        lambda x: x.index_add_(0, x[:2, 0].abs().long() % 4, x[:2] * 0 + 1),
        lambda x: x.set_(x[1:].clone()),
        lambda x: x.clamp_(min=0).sqrt_(),
        lambda x: torch.add(x, 1, out=x),
    ],
)
def test_writing_in_place_changes_what_aliases(
    change: Callable[[torch.Tensor], object], bob: obhut.VirtualWorker
) -> None:
    """Views and in-place writes work as in torch, sizes included."""
    local, remote = ROWS.clone(), obhut.send(ROWS, bob)
    local_row, remote_row = local[0], remote[0]
    change(local)
    change(remote)
    assert remote.shape == local.shape
    assert remote.stride() == local.stride()
    assert torch.equal(remote.copy().get(), local)
    assert torch.equal(remote_row.get(), local_row)


def test_tensors_at_two_places_are_refused_by_name(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """A mix of places names them, says what to write, and sends nothing."""
    here, there = obhut.send(ROWS, bob), obhut.send(ROWS, alice)
    with pytest.raises(LocationError, match=r"bob and alice; move them together"):
        here + there
    with pytest.raises(
        LocationError, match=r"this process; send .* obhut\.send\(x, bob\)"
    ):
        here + ROWS
    with pytest.raises(LocationError):
        torch.stack([here, ROWS])
    assert bob.objects_count() == alice.objects_count() == 1


def test_workers_of_one_name_are_two_places(bob: obhut.VirtualWorker) -> None:
    """A tensor of an earlier worker is not taken for one of its successor's."""
    old = obhut.send(ROWS, bob)
    again = obhut.VirtualWorker(id="bob")
    new = obhut.send(ROWS, again)
    with pytest.raises(LocationError, match="another bob"):
        old + new
    assert torch.equal(old.get(), new.get())
    again.close()


@pytest.mark.parametrize(
    "write",
    [
        lambda r: torch.tensor(1.0).add_(r.sum()),
        lambda r: torch.zeros(4, 3).copy_(r),
        lambda r: torch.add(r, r, out=torch.empty(4, 3)),
        lambda r: torch.zeros(4, dtype=torch.long).index_put_((r[:, 0] > 0,), r.sum()),
    ],
)
def test_a_local_tensor_is_not_written_from_afar(
    write: Callable[[torch.Tensor], object], bob: obhut.VirtualWorker
) -> None:
    """What would write into a worker's copy of a local tensor is refused."""
    with pytest.raises(LocationError):
        write(obhut.send(ROWS, bob))


def test_a_local_leaf_that_requires_a_gradient_does_not_join(
    bob: obhut.VirtualWorker,
) -> None:
    """No gradient is lost unseen: the worker could not give it one."""
    scale = torch.tensor(2.0, requires_grad=True)
    remote = obhut.send(ROWS, bob)
    with pytest.raises(LocationError, match="requires a gradient"):
        remote * scale
    with torch.no_grad():
        assert torch.equal((remote * scale).get(), ROWS * 2)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.numpy(),
        lambda x: x.__array__(),
        torch.from_dlpack,
        lambda x: x.data_ptr(),
        lambda x: x.untyped_storage(),
        lambda x: x.share_memory_(),
        lambda x: x.register_hook(print),
        lambda x: x.register_post_accumulate_grad_hook(print),
        lambda x: x.to("meta"),
    ],
)
def test_what_needs_memory_or_hooks_here_is_refused_by_name(
    use: Callable[[torch.Tensor], object], bob: obhut.VirtualWorker
) -> None:
    """There is never a silent local copy, nor a hook that is never called."""
    remote = obhut.send(ROWS, bob).requires_grad_()
    with pytest.raises(UnsupportedError):
        use(remote)


@pytest.mark.parametrize("save", [pickle.dumps, lambda x: torch.save(x, io.BytesIO())])
def test_a_remote_tensor_is_not_saved(
    save: Callable[[torch.Tensor], object], bob: obhut.VirtualWorker
) -> None:
    """Saving names the way out."""
    with pytest.raises(UnsupportedError, match=r"x\.get\(\)"):
        save(obhut.send(ROWS, bob))


def test_an_operator_that_workers_do_not_run_is_named(
    bob: obhut.VirtualWorker,
) -> None:
    """The refusal says which operator, and why."""
    with pytest.raises(OpNotAdmittedError, match=r"aten\._to_sparse.*layout"):
        obhut.send(ROWS, bob).to_sparse()


def test_a_custom_function_is_refused(bob: obhut.VirtualWorker) -> None:
    """Its backward would never be called, so it does not run."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            """Double."""
            return x * 2

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            """Double."""
            return grad * 2

    with pytest.raises(UnsupportedError, match=r"custom autograd\.Function"):
        Double.apply(obhut.send(ROWS, bob).requires_grad_())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(
    "transformed",
    [
        torch.func.vmap(lambda row: (row**2).sum()),
        torch.func.grad(lambda x: (x**2).sum()),
        torch.func.jacrev(lambda x: (x**2).sum(0)),
        torch.func.hessian(lambda x: (x**3).sum()),
        torch.func.grad(lambda x: torch.softmax(x, 1).prod()),
        torch.func.jacfwd(lambda x: x.sin()),
        lambda x: torch.func.vjp(torch.cos, x)[1](x)[0],
        lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1],
        torch.func.vmap(lambda row: torch.nn.functional.relu(row).cumsum(0)),
    ],
)
def test_a_functional_transform_is_right_or_refused(
    transformed: Callable[[torch.Tensor], torch.Tensor], bob: obhut.VirtualWorker
) -> None:
    """``torch.func`` gives the local result or a named error, nothing else."""
    local = transformed(ROWS)
    try:
        remote = transformed(obhut.send(ROWS, bob))
    except obhut.ObhutError:
        return
    assert isinstance(remote, obhut.RemoteTensor)
    torch.testing.assert_close(remote.get(), local)


def test_shape_errors_are_torchs_and_send_nothing(bob: obhut.VirtualWorker) -> None:
    """A mistake in shapes is found at its line, in PyTorch's words."""
    remote = obhut.send(ROWS, bob)
    with pytest.raises(RuntimeError, match=r"[Bb]roadcast"):
        remote + remote.T
    with pytest.raises(IndexError, match="out of range"):
        remote.sum(5)
    assert bob.objects_count() == 1


def test_a_failure_of_values_is_raised_with_its_line(bob: obhut.VirtualWorker) -> None:
    """An index out of range shows where a value is asked for, naming its line."""
    remote = obhut.send(ROWS, bob)
    picked = remote[torch.tensor([10])]  # the culprit
    total = picked.sum()
    with pytest.raises(RemoteIndexError, match="index 10 is out of bounds") as caught:
        total.item()
    assert caught.value.site.startswith(__file__)
    assert caught.value.op == "aten.index.Tensor"
    assert torch.equal(remote.get(), ROWS)


def test_a_pointer_is_spent_by_get(bob: obhut.VirtualWorker) -> None:
    """After ``get`` the object is gone, and the name says so."""
    remote = obhut.send(ROWS, bob)
    remote.get()
    for use in (remote.get, lambda: remote + 1, lambda: remote.location):
        with pytest.raises(ObjectNotFoundError, match=r"fetched with get\(\)"):
            use()
    assert "fetched" in repr(remote)
    assert bob.objects_count() == 0


def test_move_is_direct_and_in_place(
    bob: obhut.VirtualWorker, alice: obhut.VirtualWorker
) -> None:
    """The same Python object stands for the tensor at its new place."""
    remote = obhut.send(ROWS.T, bob)
    assert remote.move(alice) is remote
    assert remote.location is alice
    assert (bob.objects_count(), alice.objects_count()) == (0, 1)
    assert torch.equal((remote + 1).get(), ROWS.T + 1)
    assert obhut.move(remote, "bob").location is bob


def test_move_to_nobody_leaves_all_as_it_was(bob: obhut.VirtualWorker) -> None:
    """An unknown worker is named with those that are known."""
    remote = obhut.send(ROWS, bob)
    with pytest.raises(WorkerNotFoundError, match=r"known workers: .*bob"):
        remote.move("nobody")
    assert torch.equal(remote.get(), ROWS)


def test_copy_and_deepcopy_stay_at_the_worker(bob: obhut.VirtualWorker) -> None:
    """A copy shares nothing; deepcopy keeps what is tied together tied."""
    remote = obhut.send(ROWS, bob).requires_grad_()
    twin, tied = copy.deepcopy([remote, remote])
    assert twin is tied
    assert twin.requires_grad
    assert twin.is_leaf
    with torch.no_grad():
        twin.zero_()
    assert torch.equal(remote.get().detach(), ROWS)


def test_search_finds_by_all_tags(bob: obhut.VirtualWorker) -> None:
    """Tagged objects outlive their names until they are cleared."""
    obhut.send(ROWS, bob, tags=("#x", "#toy"), description="toy rows")
    obhut.send(ROWS + 1, bob).tag("#x")
    assert len(bob.search("#x")) == 2
    (found,) = bob.search("#x", "#toy")
    assert found.description == "toy rows"
    assert torch.equal(found.copy().get(), ROWS)
    assert bob.search("#none") == []
    found.get()
    assert len(bob.search("#x")) == 1
    bob.clear_objects()
    assert bob.objects_count() == 0


def test_futures_bring_the_same_value(bob: obhut.VirtualWorker) -> None:
    """``get(wait=False)`` asks at once and waits later."""
    future = (obhut.send(ROWS, bob) * 2).get(wait=False)
    assert torch.equal(future.result(timeout=5), ROWS * 2)
    assert future.done()


def test_the_worker_keeps_no_more_than_names_refer_to(
    bob: obhut.VirtualWorker,
) -> None:
    """Results go when their names go."""
    x = obhut.send(ROWS, bob)
    for _ in range(300):
        y = (x * 2).relu().sum()
    assert bob.objects_count() == 2
    del y
    assert bob.objects_count() == 1


def test_autocast_casts_as_it_does_locally(bob: obhut.VirtualWorker) -> None:
    """The client's autocast decides what is sent; the worker's has no part in it."""
    weight = torch.ones(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        local = torch.nn.functional.linear(ROWS, weight)
        remote = torch.nn.functional.linear(
            obhut.send(ROWS, bob), obhut.send(weight, bob)
        )
        assert remote.dtype == local.dtype == torch.bfloat16
        assert torch.equal(remote.get(), local)


def test_inference_mode_reaches_composites(bob: obhut.VirtualWorker) -> None:
    """In inference mode composites are taken apart and give the same values."""
    with torch.inference_mode():
        remote = obhut.send(ROWS, bob).reshape(-1).flatten().clone()
        assert torch.equal(remote.get(), ROWS.reshape(-1))


def test_a_found_tensor_brings_its_gradient(bob: obhut.VirtualWorker) -> None:
    """Another name for a leaf knows its gradient as the first one does."""
    leaf = obhut.send(torch.ones(2, requires_grad=True), bob).tag("#w")
    obhut.send(torch.ones(2, requires_grad=True), bob).tag("#none")
    (leaf * 3).sum().backward()
    (found,), (bare,) = bob.search("#w"), bob.search("#none")
    assert bare.grad is None
    assert torch.equal(found.get().grad, torch.full((2,), 3.0))
    assert bob.search("#w") == []


def test_values_come_here_whatever_mode_is_entered(bob: obhut.VirtualWorker) -> None:
    """``with worker:`` and device modes do not decide where a fetched value goes."""
    with bob:
        assert torch.equal(obhut.send(ROWS, bob).get(), ROWS)
        assert obhut.send(ROWS, bob).tolist() == ROWS.tolist()
    with torch.device("meta"):
        fetched = obhut.send(ROWS, bob).get()
    assert torch.equal(fetched, ROWS)


def test_whole_and_broken_numbers_are_told_apart(bob: obhut.VirtualWorker) -> None:
    """1 and 1.0 are equal, and give other dtypes."""
    with bob:
        for start in (1, 1.0):
            made = torch.arange(start, 4)
            assert made.dtype == made.copy().get().dtype == torch.arange(start, 4).dtype


def test_the_default_dtype_is_the_clients(bob: obhut.VirtualWorker) -> None:
    """What it decides is decided alike at both sides, also when it changes."""
    whole = obhut.send(torch.tensor([1, 2]), bob)
    before = whole / 2
    torch.set_default_dtype(torch.float64)
    try:
        after = whole / 2
        assert after.dtype == after.get().dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert before.dtype == before.get().dtype == torch.float32


def test_failures_hold_on_to_no_tensors(bob: obhut.VirtualWorker) -> None:
    """An error that was caught lets go of what its frames held."""

    def fail() -> None:
        kept = [obhut.send(ROWS, bob) for _ in range(3)]
        kept[0][torch.tensor([99])].sum().item()

    for _ in range(3):
        with contextlib.suppress(RemoteIndexError):
            fail()
    gc.collect()
    assert bob.objects_count() == 0
