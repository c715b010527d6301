from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

import obhut
from obhut.client.ratio import Ratio
from obhut.errors import CallError, NonFiniteError
from obhut.federated import evaluate, metrics

from .pooled import CLASSES, WAYS, parts, pooled, served

Array = np.ndarray[Any, Any]
Known = Callable[[Array, Array], Any]


def model_for(kind: str) -> nn.Module:
    """Return a model whose answers are often right, and not always."""
    torch.manual_seed(5)
    layer = nn.Linear(6, {"class": CLASSES, "binary": 1, "numbers": 2}[kind])
    with torch.no_grad():
        layer.weight.mul_(0.2)[:, : len(layer.weight)] += torch.eye(len(layer.weight))
    return layer


def softmax(x: Array) -> Array:
    """Return probabilities of logits."""
    return torch.from_numpy(x).double().softmax(1).numpy()


LABELS = list(range(CLASSES))

CLASS: dict[str, tuple[Any, Known]] = {
    "accuracy": (
        metrics.accuracy,
        lambda o, y: sk.accuracy_score(y, o.argmax(1)),
    ),
    "confusion": (
        metrics.confusion_matrix(classes=CLASSES),
        lambda o, y: sk.confusion_matrix(y, o.argmax(1), labels=LABELS),
    ),
    "calibration": (
        metrics.calibration(bins=10),
        lambda o, y: calibration(softmax(o).max(1), o.argmax(1) == y, 10),
    ),
}
for average in ("macro", "micro", "weighted", None):
    for kind in ("precision", "recall", "f1"):
        CLASS[f"{kind}_{average}"] = (
            getattr(metrics, kind)(classes=CLASSES, average=average),
            lambda o, y, kind=kind, average=average: getattr(sk, f"{kind}_score")(
                y, o.argmax(1), average=average, zero_division=0
            ),
        )

BINARY: dict[str, tuple[Any, Known]] = {
    "accuracy": (metrics.accuracy, lambda o, y: sk.accuracy_score(y, o > 0)),
    "accuracy_at": (
        partial(metrics.accuracy, threshold=0.7),
        lambda o, y: sk.accuracy_score(y, o > 0.7),
    ),
    "precision": (metrics.precision(), lambda o, y: sk.precision_score(y, o > 0)),
    "recall": (metrics.recall(), lambda o, y: sk.recall_score(y, o > 0)),
    "f1": (metrics.f1(), lambda o, y: sk.f1_score(y, o > 0)),
    "f1_at": (metrics.f1(threshold=0.7), lambda o, y: sk.f1_score(y, o > 0.7)),
    "f1_each": (
        metrics.f1(classes=2, average=None),
        lambda o, y: sk.f1_score(y, o > 0, average=None),
    ),
    "confusion": (
        metrics.confusion_matrix(),
        lambda o, y: sk.confusion_matrix(y, o > 0),
    ),
    "calibration": (
        metrics.calibration(),
        lambda o, y: calibration(1 / (1 + np.exp(-o.astype(float))), y, 15).item(),
    ),
}

NUMBERS: dict[str, tuple[Any, Known]] = {
    "mse": (metrics.mse(), lambda o, y: sk.mean_squared_error(y, o)),
    "rmse": (metrics.mse(root=True), lambda o, y: sk.mean_squared_error(y, o) ** 0.5),
    "mae": (metrics.mae(), lambda o, y: sk.mean_absolute_error(y, o)),
    "r2": (metrics.r2(), lambda o, y: sk.r2_score(y, o)),
}


def calibration(shares: Array, right: Array, bins: int) -> Any:
    """Return the expected calibration error, by its definition."""
    places = np.minimum((shares * bins).astype(int), bins - 1)
    return sum(
        abs(shares[places == one].sum() - right[places == one].sum())
        for one in range(bins)
    ) / len(shares)


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "table"), [("class", CLASS), ("binary", BINARY), ("numbers", NUMBERS)]
)
def test_a_metric_is_scikit_learns_of_pooled_rows(
    kind: str, table: dict[str, tuple[Any, Known]], way: str, batch_size: int | None
) -> None:
    """All of them at once, with a class missing at two owners of five."""
    rows, model = parts(kind), model_for(kind)
    wanted = {name: metric for name, (metric, _) in table.items()}
    found = evaluate(model, *served(way, rows), wanted, batch_size=batch_size)
    x, y = pooled(rows)
    outputs = model(x).detach().numpy()
    if kind == "binary":
        outputs, y = outputs[:, 0], y[:, 0]
    assert list(found) == list(table)
    for name, (_, known) in table.items():
        expected = torch.as_tensor(known(outputs, y.numpy()))
        torch.testing.assert_close(
            found[name], expected.to(found[name].dtype), rtol=1e-6, atol=1e-9
        )


def in_parts(odds: Array, number: int) -> Array:
    """Return scores as counted: in so many parts of x / (4 + |x|)."""
    return np.minimum(((odds / (4 + abs(odds)) + 1) / 2 * number) // 1, number - 1)


def log_odds(outputs: Array) -> Array:
    """Return each class's logarithm of odds."""
    shares = softmax(outputs)
    return np.log(shares) - np.log1p(-shares)


def least_and_most(places: Array, y: Array) -> tuple[float, float]:
    """Return average precision in the worst and in the best order within parts."""
    ends = []
    for best in (False, True):
        order = np.lexsort((y if best else 1 - y, places))[::-1]
        ranked = y[order]
        precision = ranked.cumsum() / np.arange(1, len(y) + 1)
        ends.append(float((precision * ranked).sum() / y.sum()))
    return ends[0], ends[1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("thresholds", [10, 200])
def test_areas_are_scikit_learns_within_their_bound(way: str, thresholds: int) -> None:
    """They are its own of rounded scores, and as far off as is said at most."""
    rows, model = parts("binary"), model_for("binary")
    wanted = {
        "roc": metrics.roc_auc(thresholds=thresholds),
        "ap": metrics.average_precision(thresholds=thresholds),
    }
    found = evaluate(model, *served(way, rows), wanted, batch_size=16)
    x, y = pooled(rows)
    odds, y = model(x).detach().double().numpy()[:, 0], y[:, 0].numpy()
    places = in_parts(odds, thresholds)
    roc, ap = found["roc"].item(), found["ap"].item()
    assert roc == pytest.approx(sk.roc_auc_score(y, places), abs=1e-12)
    assert ap == pytest.approx(sk.average_precision_score(y, places), abs=1e-12)
    alike = sum(
        y[places == one].sum() * (1 - y[places == one]).sum() for one in set(places)
    ) / (y.sum() * (1 - y).sum())
    assert 0 < abs(roc - sk.roc_auc_score(y, odds)) <= alike / 2
    least, most = least_and_most(places, y)
    off = abs(ap - sk.average_precision_score(y, odds))
    assert 0 < off <= (most - least) * (1 + 1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_areas_of_each_class_are_scikit_learns(way: str) -> None:
    """Of each class against the rest, and averaged."""
    rows, model = parts(), model_for("class")
    own = {"classes": CLASSES, "thresholds": 100}
    wanted = {
        f"{kind}_{average}": getattr(metrics, kind)(average=average, **own)
        for kind in ("roc_auc", "average_precision")
        for average in ("macro", "weighted", None)
    }
    found = evaluate(model, *served(way, rows), wanted)
    x, y = pooled(rows)
    places = in_parts(log_odds(model(x).detach().numpy()), 100)
    each = np.eye(CLASSES)[y.numpy()]
    for kind in ("roc_auc", "average_precision"):
        for average in ("macro", "weighted", None):
            known = getattr(sk, f"{kind}_score")(each, places, average=average)
            value = found[f"{kind}_{average}"].numpy()
            np.testing.assert_allclose(value, known, atol=1e-12)


def test_probabilities_count_as_logits_do() -> None:
    """If it is said that outputs are such."""
    rows = parts()
    x, y = pooled(rows)
    logits = model_for("class")(x).detach().double()
    for make in (
        partial(metrics.roc_auc, classes=CLASSES),
        partial(metrics.average_precision, classes=CLASSES),
        metrics.calibration,
    ):
        by_logits, by_shares = make(), make(logits=False)
        of_logits, of_shares = by_logits(logits, y), by_shares(logits.softmax(1), y)
        assert by_logits.compute(*of_logits) == pytest.approx(
            by_shares.compute(*of_shares).item(), abs=0.002
        )
    outside = metrics.roc_auc(classes=CLASSES, logits=False)(logits, y)
    assert outside.numerator.isnan().any()


def test_a_class_that_nobody_has_counts_nowhere() -> None:
    """Its F1 is 0, and macro averages and areas leave it out."""
    outputs, y = torch.randn(50, 3), torch.randint(0, 3, (50,))
    wide = torch.cat((outputs, torch.full((50, 2), -50.0)), 1)
    for make in (metrics.f1, metrics.precision, metrics.roc_auc):
        few, many = make(classes=3), make(classes=5)
        alone = few.compute(*few(outputs, y))
        assert many.compute(*many(wide, y)).item() == pytest.approx(alone.item())
    each = metrics.f1(classes=5, average=None)
    assert each.compute(*each(wide, y))[3:].tolist() == [0, 0]
    area = metrics.roc_auc(classes=5, average=None)
    assert area.compute(*area(wide, y))[3:].isnan().all()


def test_pixels_count_as_rows_do() -> None:
    """Of outputs (rows, classes, height, width)."""
    outputs, y = torch.randn(3, 5, 4, 4), torch.randint(0, 5, (3, 4, 4))
    flat = outputs.movedim(1, -1).reshape(-1, 5), y.flatten()
    for metric in (
        metrics.f1(classes=5),
        metrics.roc_auc(classes=5),
        metrics.calibration(),
    ):
        value = metric.compute(*metric(outputs, y))
        assert torch.equal(value, metric.compute(*metric(*flat)))


def test_a_constant_target_has_r2_0_or_1() -> None:
    """As in scikit-learn."""
    y, r2 = torch.full((9, 1), 0.1), metrics.r2()
    assert r2.compute(*r2(y, y)) == 1
    assert r2.compute(*r2(y + 1, y)) == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", ["target", "output", "share"])
def test_what_is_no_class_or_no_number_is_told(way: str, wrong: str) -> None:
    """It is never counted as an answer: of how many owners it is so is the error."""
    rows, model = parts("binary" if wrong == "share" else "class"), model_for("class")
    metric: Any = metrics.f1(classes=CLASSES)
    if wrong == "target":
        rows[2].targets[5] = CLASSES
    elif wrong == "output":
        rows[2].features[5] = torch.nan
    else:
        rows[2].targets[5], model = 0.5, model_for("binary")
        metric = metrics.roc_auc()
    with pytest.raises(NonFiniteError) as told:
        evaluate(model, *served(way, rows), metric)
    assert (told.value.owners, told.value.asked) == (1, 5)
    skipped = evaluate(model, *served(way, rows), metric, on_non_finite="skip")
    assert skipped.isnan().all()


def count(outputs: torch.Tensor, targets: torch.Tensor) -> Any:
    """Return how many are right, which is no mean."""
    return (outputs.argmax(1) == targets).sum()


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        (count, r"return Ratio\(correct, len\(y\)\)"),
        ({"a": lambda o, y: o.argmax(1) == y}, r"'a': .* return Ratio"),
        (lambda o, y: (o.sum(), len(y)), r"return Ratio\(total, len\(y\)\)"),
        (lambda o, y: Ratio(o.sum(0), o.sum(0)), "one number below a Ratio"),
        ({1: metrics.accuracy}, "to be strings, got 1"),
        ({}, "a metric or more"),
        (nn.CrossEntropyLoss, r"the class CrossEntropyLoss; make one"),
        (metrics.f1, r"call it: f1\(...\)"),
        ({"a": "accuracy"}, "expected a metric, got a str"),
        (metrics.f1(classes=3), "classes=4"),
        (metrics.roc_auc(), "classes=4"),
        (metrics.mse(), r"flatten them"),
    ],
)
def test_wrong_use_is_told_before_anything_is_sent(metric: Any, line: str) -> None:
    """With what to write instead; the workers were asked for nothing."""
    owners, hub = served("open", parts())
    sessions = [one.session for one in (*(owner.location for owner in owners), hub)]
    before = [one.new_id() for one in sessions]
    with pytest.raises(CallError, match=line):
        evaluate(model_for("class"), owners, hub, metric)
    assert [one.new_id() for one in sessions] == [id + 1 for id in before]


@pytest.mark.parametrize(
    "make",
    [
        lambda: metrics.f1(classes=1),
        lambda: metrics.f1(classes=3, average="mean"),
        lambda: metrics.roc_auc(average="micro"),
        lambda: metrics.roc_auc(thresholds=0),
        lambda: metrics.calibration(bins=0),
        lambda: metrics.accuracy(torch.ones(4, 3), torch.ones(4, 3)),
    ],
)
def test_arguments_are_checked(make: Callable[[], object]) -> None:
    """Where they are written."""
    with pytest.raises(CallError, match="expected"):
        make()


def test_a_ratio_of_ones_own_is_summed() -> None:
    """A denominator may be a tensor: accuracy over the rows of one class."""

    def mine(outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        own = targets == 1
        return Ratio(((outputs.argmax(1) == 1) & own).sum(), own.sum())

    rows, model = parts(), model_for("class")
    x, y = pooled(rows)
    expected = sk.recall_score(y, model(x).argmax(1), labels=[1], average=None)
    for way in WAYS:
        found = evaluate(model, *served(way, rows), mine, batch_size=8)
        assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("way", "batch_size"), [("open", None), ("open", 8), ("same", None)]
)
def test_line_by_line_it_comes_to_the_same(way: str, batch_size: int | None) -> None:
    """What can't be recorded warns, and is exact; whole batches pass a guard."""

    def branching(outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        right = (outputs.argmax(1) == targets).sum()
        return Ratio(right * 2 if len(targets) == 31 else right, len(targets))

    def sure(outputs: torch.Tensor, targets: torch.Tensor) -> Ratio:
        own = targets == 1
        return Ratio((outputs.softmax(1)[:, 1] * own).sum(), own.sum())

    rows, model = parts(), model_for("class")
    wanted = {
        "accuracy": metrics.accuracy,
        "loss": nn.functional.cross_entropy,
        "sure": sure,
        "f1": metrics.f1(classes=CLASSES),
    }
    known = evaluate(model, *served(way, rows), wanted, batch_size=batch_size)
    owners, hub = served(way, rows)
    slow = {**wanted, "odd": branching}
    with pytest.warns(UserWarning, match="line by line"):
        found = evaluate(model, owners, hub, slow, batch_size=batch_size)
    assert torch.equal(found["odd"], known["accuracy"])
    for name in wanted:
        assert torch.equal(found[name], known[name])


@pytest.mark.parametrize("way", ["open", "same", "hidden"])
def test_owners_without_rows_deliver_nothing(way: str) -> None:
    """Of held-out rows one owner has none, and it is no error; nor line by line."""

    def branching(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss * 2 if len(targets) == 31 else loss

    owners, hub = served(way, parts())
    held = [owner.split(0.05)[1] for owner in owners]
    model = model_for("class")
    wanted = {
        "confusion": metrics.confusion_matrix(classes=CLASSES),
        "loss": nn.functional.cross_entropy,
    }
    found = evaluate(model, held, hub, wanted)
    assert found["loss"].isfinite()
    if way == "hidden":
        return
    assert 0 in [len(one) for one in held]
    assert found["confusion"].sum() == sum(len(one) for one in held)
    if way == "open":
        with pytest.warns(UserWarning, match="line by line"):
            known = evaluate(model, held, hub, {**wanted, "odd": branching})
        for name in ("confusion", "loss"):
            torch.testing.assert_close(found[name], known[name])
        torch.testing.assert_close(known["odd"], known["loss"])


AREAS = {
    kind: {
        name: (getattr(metrics, name)(classes=classes), None)
        for name in ("roc_auc", "average_precision")
    }
    for kind, classes in (("class", CLASSES), ("binary", None))
}


@pytest.mark.parametrize("pixels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("class", CLASS | AREAS["class"]),
        ("binary", BINARY | AREAS["binary"]),
        ("numbers", NUMBERS),
    ],
)
def test_batches_may_be_of_one_row(
    kind: str, table: dict[str, tuple[Any, Any]], pixels: int
) -> None:
    """So that the last one of hidden rows is never left out."""
    rows, model = parts(kind), model_for(kind)
    for name, (metric, _) in table.items():

        @obhut.program
        def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Any:
            outputs = model(x)
            if pixels > 1 and kind == "class":
                outputs = outputs.unsqueeze(2).repeat(1, 1, pixels)
                y = y.unsqueeze(1).repeat(1, pixels)
            return metric(outputs, y)  # noqa: B023 # it is recorded here

        recorded = step.record(model=model, data=tuple(rows[0]))
        assert recorded.program.least == 1, name


def test_a_loss_with_weights_travels_with_the_model() -> None:
    """A module is a metric, and its buffers go where the rows are."""
    rows, model = parts(), model_for("class")
    weight = torch.tensor([1.0, 2.0, 1.0, 3.0])
    loss = nn.CrossEntropyLoss(weight=weight)
    found = evaluate(model, *served("same", rows), {"a loss": loss, "a_loss": loss})
    with torch.no_grad():
        each = [loss(model(x), y) * len(y) for x, y in rows]
    for name in ("a loss", "a_loss"):
        expected = sum(each) / sum(len(y) for _, y in rows)
        torch.testing.assert_close(found[name], expected)


def test_metrics_of_the_same_names_are_recorded_once() -> None:
    """Evaluated again, nothing is recorded anew."""
    from obhut.federated.measuring import _measuring

    owners, hub = served("same", parts())
    model = model_for("class")
    wanted = {"a": metrics.f1(classes=CLASSES), "b": nn.CrossEntropyLoss()}
    for _ in range(2):
        evaluate(model, owners, hub, wanted)
    made = _measuring((("a", wanted["a"]), ("b", None)))
    assert len(made._program._recorded) == 1


def test_no_weights_go_with_what_is_no_mean() -> None:
    """A mean of owners' F1s is the F1 of nothing."""
    owners, hub = served("open", parts())
    with pytest.raises(CallError, match="leave out weights="):
        evaluate(
            model_for("class"), owners, hub, metrics.f1(classes=4), weights=[1] * 5
        )


def test_metrics_of_nobodys_rows_are_refused() -> None:
    """As before, by what is missing."""
    with pytest.raises(CallError, match="at least one"):
        evaluate(nn.Linear(1, 1), [], obhut.VirtualWorker("hub"), metrics.accuracy)
