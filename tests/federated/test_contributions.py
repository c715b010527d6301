"""What comes back from owners: exact in every dtype, or an error before anything."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from msgspec import structs
from torch import nn

import obhut
from obhut.errors import CallError, NonFiniteError, ReleaseRefusedError
from obhut.federated import (
    LocalTraining,
    RemoteDataset,
    Round,
    evaluate,
    mean_and_std,
    train_round,
    train_rounds,
)
from obhut.guard.policy import Policy

NAMES = ("bob", "alice", "carol")
POLICY = obhut.Quorum(aggregators=["aggregator"], contributors=NAMES)
CLIPPING = obhut.Quorum(aggregators=["aggregator"], contributors=NAMES, clip_norm=0.001)
SGD = functools.partial(torch.optim.SGD, lr=0.1)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WEIGHTS = (None, [0.1, 0.2, 0.7], [3, 5, 9], [math.pi, math.e, 0.0])

Rows = list[tuple[torch.Tensor, torch.Tensor]]


def serve(
    rows: Rows, policy: Policy | None
) -> tuple[list[RemoteDataset], obhut.VirtualWorker]:
    """Return each owner's rows at a worker, and an aggregator."""
    owners = []
    for name, (x, y) in zip(NAMES, rows, strict=True):
        data = {"rows": {"features": x, "target": y}}
        worker = obhut.VirtualWorker(name, policy=policy, datasets=data)
        owners.append(RemoteDataset(worker["rows"], worker["rows", "target"]))
    return owners, obhut.VirtualWorker("aggregator", policy=policy)


def letting(policy: Policy | None, weights: object) -> Policy | None:
    """Return a policy that lets owners be multiplied by unequal weights, if need be.

    Each is another computation then, which ``programs = "same"`` refuses.
    """
    if weights is None or not isinstance(policy, obhut.Quorum):
        return policy
    return structs.replace(policy, programs="any")


places = pytest.mark.parametrize("policy", [None, POLICY], ids=["open", "guarded"])


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of squares."""
    return ((outputs - targets) ** 2).mean()


class Everything(nn.Module):
    """A model with a tensor of each kind that a model may have."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, dtype=dtype))
        self.tied = self.weight
        self.frozen = nn.Parameter(torch.randn(3, dtype=dtype), requires_grad=False)
        whole = torch.tensor([2**62 + 12345, -7, 2**53 + 1, -(2**63)])
        self.register_buffer("seed", whole)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("octets", torch.tensor([255, 0], dtype=torch.uint8))
        self.register_buffer("short", torch.tensor([65504.0, 6e-8]).half())
        self.register_buffer(
            "long", torch.tensor([1.7e308, 1 / 3], dtype=torch.float64)
        )
        self.register_buffer("pairs", torch.randn(2, dtype=torch.complex64))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("nothing", None)
        self.shared = self.pairs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (rows, 1), and count."""
        with torch.no_grad():
            self.seen.add_(len(x))
        out = x @ self.weight
        return out.abs() if out.is_complex() else out

    def get_extra_state(self) -> dict[str, int]:
        """Return what is no tensor."""
        return {"scale": 3}

    def set_extra_state(self, state: object) -> None:
        """Take what is no tensor."""
        raise AssertionError("a round has nothing to do with extra state")


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@places
@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64, torch.complex128])
def test_owners_who_agree_are_averaged_to_what_they_agree_on(
    policy: Policy | None, dtype: torch.dtype
) -> None:
    """With equal rows a round is local training to the last bit, whatever they weigh.

    Parameters and buffers of every dtype, tied, shared, frozen and not persistent ones,
    keep their identity.
    """
    x, y = torch.randn(4, 4, dtype=dtype), torch.randn(4, 1, dtype=dtype)
    y = y.abs() if dtype.is_complex else y
    for weights in WEIGHTS:
        owners, aggregator = serve([(x, y)] * 3, letting(policy, weights))
        model = Everything(dtype)
        before = tensors_of(model)
        expected = obhut.copy(model)
        opt = SGD(expected.parameters())
        for _ in range(2):
            opt.zero_grad()
            loss = squared(expected(x), y)
            loss.backward()
            opt.step()
        training = LocalTraining(SGD, squared, epochs=2)
        found = train_round(model, owners, aggregator, training, weights)
        assert found == pytest.approx(loss.item(), rel=1e-15, abs=0)  # of two sums
        for name, value in tensors_of(model).items():
            assert value is before[name]
            assert torch.equal(value, tensors_of(expected)[name]), name


@places
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_loss_of_one_is_one(policy: Policy | None, dtype: torch.dtype) -> None:
    """Means over a thousand batches are as exact as those over one."""
    x, y = torch.ones(1000, 2, dtype=dtype), torch.zeros(1000, 1, dtype=dtype)
    owners, aggregator = serve([(x, y)] * 3, policy)
    model = nn.Linear(2, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, 0.5)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    training = LocalTraining(still, F.mse_loss, batch_size=4)
    assert train_round(model, owners, aggregator, training) == 1.0
    assert model.weight.tolist() == [[0.5, 0.5]]
    metric = evaluate(model, owners, aggregator, F.mse_loss, batch_size=4)
    assert metric.dtype is dtype
    assert metric.item() == 1.0


@places
def test_half_precision_does_not_overflow(policy: Policy | None) -> None:
    """Large numbers whose sum no half-precision number is have a mean."""
    rows = torch.full((4, 1), 60_000.0, dtype=torch.float16)
    owners, aggregator = serve([(rows, rows)] * 3, policy)

    def first(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return targets[0].mean()

    model = nn.Linear(1, 1).half()
    found = evaluate(model, owners, aggregator, first, batch_size=1)
    assert found.item() == 60_000
    mean, std = mean_and_std([owner.features for owner in owners], aggregator)
    assert (mean.item(), std.item()) == (60_000, 0)


@places
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_thousand_ones_are_one(policy: Policy | None, dtype: torch.dtype) -> None:
    """At an open worker and at an aggregator, as a mean, a sum and a stack's mean."""
    names = [f"owner-{number}" for number in range(3)]
    policy = policy and obhut.Quorum(aggregators=["hub"], contributors=names)
    hub = obhut.VirtualWorker("hub", policy=policy)
    owners = [obhut.VirtualWorker(name, policy=policy) for name in names]

    def ones() -> list[torch.Tensor]:
        sent = [obhut.send(torch.ones(1, dtype=dtype), o) for o in owners]
        parts = [one * 1 for _ in range(333) for one in sent]
        return [obhut.move(part, hub) for part in parts]

    assert obhut.average(ones()).get().item() == 1.0
    assert torch.stack(ones()).mean(0).get().item() == 1.0


def make_spoilt(bad: int) -> Rows:
    """Return rows of which as many owners as told have a NaN."""
    rows = [(torch.ones(4, 4), torch.full((4, 1), 4.0)) for _ in NAMES]
    for x, _ in rows[:bad]:
        x[2, 1] = math.nan
    return rows


@places
@pytest.mark.parametrize("bad", [1, 2, 3])
def test_what_is_not_finite_is_raised_before_anything_changes(
    policy: Policy | None, bad: int
) -> None:
    """The error says how many owners, and the model is as it was."""
    owners, aggregator = serve(make_spoilt(bad), policy)
    model = nn.Linear(4, 1)
    before = obhut.copy(model).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NonFiniteError, match=f"{bad} of 3 owners") as raised:
            train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss))
        assert raised.value.owners == bad
        with pytest.raises(NonFiniteError, match=f"{bad} of 3 owners"):
            evaluate(model, owners, aggregator, F.mse_loss)
        with pytest.raises(NonFiniteError, match=f"{bad} of 3 owners"):
            mean_and_std([owner.features for owner in owners], aggregator)
    assert all(torch.equal(before[n], x) for n, x in model.state_dict().items())


@places
def test_a_spoilt_round_can_be_skipped(policy: Policy | None) -> None:
    """The model stays, the report says how many, and the next round takes place."""
    owners, aggregator = serve(make_spoilt(1), policy)
    model = nn.Linear(4, 1)
    before = obhut.copy(model).state_dict()
    training = LocalTraining(SGD, F.mse_loss)
    reports = train_rounds(model, owners, aggregator, training, 2, on_non_finite="skip")
    for report in reports:
        assert math.isnan(report.loss)
        assert report.non_finite == 1
        assert all(torch.equal(before[n], x) for n, x in model.state_dict().items())
    assert report.number == 2
    loss = train_round(model, owners, aggregator, training, on_non_finite="skip")
    assert math.isnan(loss)
    metric = evaluate(model, owners, aggregator, F.mse_loss, on_non_finite="skip")
    assert metric.shape == ()
    assert metric.isnan()
    sound, aggregator = serve(make_spoilt(0), policy)
    (report,) = train_rounds(
        model, sound, aggregator, training, 1, on_non_finite="skip"
    )
    assert isinstance(report, Round)
    assert report.non_finite == 0
    assert not math.isnan(report.loss)


@places
@pytest.mark.parametrize("where", ["parameter", "buffer", "loss", "double", "complex"])
def test_a_spoilt_tensor_anywhere_counts_its_owner_once(
    policy: Policy | None, where: str
) -> None:
    """In which tensor it is does not matter, nor in how many."""

    class Spoiling(Everything):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = super().forward(x)
            bad = x.sum()  # NaN at one owner
            with torch.no_grad():
                if where == "buffer":
                    self.short.add_(bad * 0)
                elif where == "double":
                    self.long.add_(bad * 0)
                elif where == "complex":
                    self.pairs.mul_(bad)
                elif where == "parameter":
                    self.weight.mul_(bad)
            return out * 0 if where != "loss" else out

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.nan_to_num().mean() if where != "loss" else outputs.mean()

    owners, aggregator = serve(make_spoilt(1), policy)
    with pytest.raises(NonFiniteError, match="1 of 3 owners"):
        train_round(
            Spoiling(torch.float32), owners, aggregator, LocalTraining(SGD, loss)
        )


class Masked(nn.Module):
    """A model with constants that are not finite, as masks of attention have."""

    def __init__(self, step: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.step = step
        mask = torch.tensor([0.0, -math.inf, math.inf, math.nan])
        self.register_buffer("mask", mask)
        self.register_buffer("long", mask.double(), persistent=False)
        self.register_buffer("pairs", torch.tensor([complex(math.inf, 1.0), 1j]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (rows, 1), and change what is finite."""
        with torch.no_grad():
            self.mask[0] += 1.0
            self.mask[1] += x.sum() * self.step
        return self.layer(x)


@places
@pytest.mark.parametrize("weights", [None, [1, 2, 3]])
def test_constants_that_are_not_finite_stay(
    policy: Policy | None, weights: list[float] | None
) -> None:
    """A mask of -inf is no spoilt contribution, and the rest of it is averaged."""
    owners, aggregator = serve(make_spoilt(0), letting(policy, weights))
    model = Masked()
    train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss), weights)
    expected = torch.tensor([1.0, -math.inf, math.inf, math.nan])
    assert torch.equal(model.mask.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert model.mask.isnan().tolist() == [False, False, False, True]
    assert model.long.isinf().tolist() == [False, True, True, False]
    assert model.pairs.tolist() == [complex(math.inf, 1.0), 1j]


def test_constants_of_8_bits_stay() -> None:
    """NaN in a buffer of a dtype that PyTorch doesn't compare is a constant, too."""
    owners, aggregator = serve(make_spoilt(0), None)
    model = Masked()
    model.register_buffer("short", torch.tensor([math.nan, 2.0]).to(torch.float8_e5m2))
    train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss))
    assert model.short.float().nan_to_num(7.0).tolist() == [7.0, 2.0]


@places
def test_constants_that_change_are_spoilt(policy: Policy | None) -> None:
    """Where -inf became NaN at an owner, the round is not what it seems."""
    owners, aggregator = serve(make_spoilt(0), policy)
    model = Masked(step=math.inf)
    with pytest.raises(NonFiniteError, match="3 of 3 owners"):
        train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss))
    assert model.mask[0].item() == 0.0


class Observing(nn.Module):
    """A model with the range of what it saw, infinite before it saw anything."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("least", torch.tensor(math.inf))
        self.register_buffer("most", torch.tensor([-math.inf, -math.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (rows, 1), and observe: of large rows only what is the most."""
        with torch.no_grad():
            self.least.copy_(torch.minimum(x.min(), self.least))
            most = torch.maximum(x.max(), self.most)
            self.most.copy_(torch.where(x.max() > 3.5, most, self.most))
            self.most[0] = x.max()
        return self.layer(x)


@pytest.mark.parametrize("policy", [None, POLICY, CLIPPING])
@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_what_becomes_finite_at_all_owners_is_averaged(
    policy: Policy | None, weights: list[float] | None
) -> None:
    """An observer's range is the owners' mean, and infinite if it is so at an owner."""
    bounds = [(-1.0, 3.0), (-2.0, 3.25), (-4.0, 4.0)]
    rows = [(torch.tensor([[a, b, a, b]]), torch.ones(1, 1)) for a, b in bounds]
    owners, aggregator = serve(rows, letting(policy, weights))
    model = Observing()
    train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss), weights)
    assert model.least.isfinite()
    assert model.most.isfinite().tolist() == [True, False]
    if policy is not CLIPPING:
        shares = weights or [1, 1, 1]
        ranges = [
            sum(w * x for w, x in zip(shares, column, strict=True)) / sum(shares)
            for column in zip(*bounds, strict=True)
        ]
        found = [model.least.item(), model.most[0].item()]
        assert found == pytest.approx(ranges)


@places
@pytest.mark.parametrize("largest", [10**9, 2**30 - 2, 2**30 - 1, 2**31 - 3])
def test_long_weights_are_released(policy: Policy | None, largest: int) -> None:
    """No weight at the owners is too long for an aggregator's coefficients."""
    rows = [(torch.ones(1, 4), torch.ones(1, 1))] * 3
    owners, aggregator = serve(rows, letting(policy, largest))
    for weights in ([1, largest, 1], [1, largest, largest]):
        model = nn.Linear(4, 1)
        once = obhut.copy(model)
        squared(once(torch.ones(1, 4)), torch.ones(1, 1)).backward()
        SGD(once.parameters()).step()
        train_round(model, owners, aggregator, LocalTraining(SGD, squared), weights)
        assert torch.equal(model.weight, once.weight)


def test_a_failure_behind_the_guard_is_a_spoilt_contribution() -> None:
    """An index out of range at one owner spoils the round, and names nobody."""
    rows = [(torch.tensor([[0], [1]]), torch.ones(2, 2)) for _ in NAMES]
    rows[2][0][0, 0] = 7
    owners, aggregator = serve(rows, structs.replace(POLICY, programs="any"))
    model = nn.Sequential(nn.Embedding(2, 2), nn.Flatten())
    with pytest.raises(NonFiniteError, match="1 of 3 owners"):
        train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss))
    owners, aggregator = serve(rows, POLICY)  # who does not deliver does not count
    with pytest.raises(ReleaseRefusedError, match="of too few owners") as refused:
        train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss))
    assert refused.value.rule == "program"


def test_a_clip_norm_does_not_hide_how_many() -> None:
    """However small contributions are made, the count is the count."""
    owners, aggregator = serve(make_spoilt(2), CLIPPING)
    with pytest.raises(NonFiniteError, match="2 of 3 owners"):
        evaluate(nn.Linear(4, 1), owners, aggregator, F.mse_loss)


def test_of_a_spoilt_round_only_the_count_leaves() -> None:
    """No sum that lacks an owner is released: one number, in one release."""
    owners, aggregator = serve(make_spoilt(1), None)
    asked: list[tuple[int, ...]] = []
    session = aggregator.session
    before = session.ask_all_later

    def listening(requests, leaving=0):  # type: ignore[no-untyped-def]
        asked.append(tuple(request.id for request in requests))
        return before(requests, leaving)

    session.ask_all_later = listening  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError):
        train_round(nn.Linear(4, 1), owners, aggregator, LocalTraining(SGD, F.mse_loss))
    assert [len(ids) for ids in asked] == [1]


def test_too_few_owners_are_refused_before_anything_changes() -> None:
    """Neither the count nor the model of two owners leaves."""
    owners, aggregator = serve(make_spoilt(1), POLICY)
    model = nn.Linear(4, 1)
    before = obhut.copy(model).state_dict()
    with pytest.raises(ReleaseRefusedError, match="3 owners are needed"):
        train_round(model, owners[:2], aggregator, LocalTraining(SGD, F.mse_loss))
    assert all(torch.equal(before[n], x) for n, x in model.state_dict().items())


@pytest.mark.parametrize("call", [train_round, evaluate])
def test_another_choice_is_refused(call: Callable[..., object]) -> None:
    """What to do with a spoilt round is raise or skip."""
    owners, aggregator = serve(make_spoilt(0), None)
    how = LocalTraining(SGD, F.mse_loss) if call is train_round else F.mse_loss
    with pytest.raises(CallError, match="one of raise, skip, got 'ignore'"):
        call(nn.Linear(4, 1), owners, aggregator, how, on_non_finite="ignore")
    rounds = train_rounds(
        nn.Linear(4, 1),
        owners,
        aggregator,
        LocalTraining(SGD, F.mse_loss),
        1,
        on_non_finite="ignore",  # type: ignore[arg-type]
    )
    with pytest.raises(CallError, match="got 'ignore'"):
        next(rounds)


def test_a_model_that_can_not_be_written_is_left_alone() -> None:
    """If one of its tensors takes no values, none has got any."""

    class Expanded(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 1)
            self.register_buffer("wide", torch.zeros(1).expand(3))

    owners, aggregator = serve(make_spoilt(0), None)
    model = Expanded()
    before = model.weight.clone()
    with pytest.raises(RuntimeError, match="single memory location"):
        train_round(model, owners, aggregator, LocalTraining(SGD, F.mse_loss))
    assert torch.equal(model.weight, before)


def test_a_training_that_adds_tensors_is_refused() -> None:
    """What a copy has and the model has not could not be written back."""

    class Caching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.register_buffer("cache", x.detach().sum(0))
            return super().forward(x)

    owners, aggregator = serve(make_spoilt(0), None)
    with (
        pytest.warns(UserWarning, match="line by line: .* other parameters or buffers"),
        pytest.raises(CallError, match="changed were cache"),
    ):
        train_round(Caching(4, 1), owners, aggregator, LocalTraining(SGD, F.mse_loss))


@places
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_statistics_of_whole_numbers_are_not_cut(
    policy: Policy | None, dtype: torch.dtype
) -> None:
    """Means and deviations of counts are numbers with a fraction."""
    parts = [torch.randint(0, 2, (n, 3)).to(dtype) for n in (5, 2, 40)]
    owners, aggregator = serve([(x, x) for x in parts], policy)
    mean, std = mean_and_std([owner.features for owner in owners], aggregator)
    pooled = torch.cat(parts).double()
    torch.testing.assert_close(mean, pooled.mean(0).float())
    torch.testing.assert_close(std, pooled.std(0).float())
