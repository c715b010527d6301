"""Metrics of torchmetrics, whose states owners sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics as tm
from torch import nn
from torchmetrics import classification as tc
from torchmetrics import regression as tr

from obhut.errors import CallError
from obhut.federated import evaluate, metrics

from .pooled import CLASSES, WAYS, parts, pooled, served
from .test_metrics import model_for

OF_CLASS: dict[str, Any] = {"num_classes": CLASSES}
KNOWN: dict[str, dict[str, tm.Metric]] = {
    "class": {
        "auroc": tc.MulticlassAUROC(thresholds=200, **OF_CLASS),
        "each": tc.MulticlassAUROC(thresholds=50, average=None, **OF_CLASS),
        "ap": tc.MulticlassAveragePrecision(thresholds=50, **OF_CLASS),
        "accuracy": tc.MulticlassAccuracy(average="micro", **OF_CLASS),
        "f1": tc.MulticlassF1Score(**OF_CLASS),
        "confusion": tc.MulticlassConfusionMatrix(**OF_CLASS),
        "kappa": tc.MulticlassCohenKappa(**OF_CLASS),
        "matthews": tc.MulticlassMatthewsCorrCoef(**OF_CLASS),
        "top 2": tc.MulticlassAccuracy(top_k=2, **OF_CLASS),
    },
    "binary": {
        "auroc": tc.BinaryAUROC(thresholds=100),
        "f1": tc.BinaryF1Score(),
        "curve": tc.BinaryPrecisionRecallCurve(thresholds=5),
    },
    "numbers": {
        "mse": tr.MeanSquaredError(),
        "rmse": tr.MeanSquaredError(squared=False),
        "mae": tr.MeanAbsoluteError(),
        "r2": tr.R2Score(),
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KNOWN)
def test_values_are_its_own_of_pooled_rows(kind: str, way: str) -> None:
    """All as one program; what is passed stays as it was."""
    rows, model = parts(kind), model_for(kind)
    if kind == "binary":
        rows = [one._replace(targets=one.targets.long()) for one in rows]
    batch_size = None if kind == "class" else 16
    found = evaluate(model, *served(way, rows), KNOWN[kind], batch_size=batch_size)
    x, y = pooled(rows)
    outputs = model(x).detach()
    if kind != "numbers":
        outputs = outputs.softmax(1) if kind == "class" else outputs.sigmoid()
    for name, metric in KNOWN[kind].items():
        assert metric._update_count == 0
        known = metric.clone()
        known.update(outputs, y)
        torch.testing.assert_close(
            found[name], known.compute(), rtol=1e-5, atol=1e-6, equal_nan=True
        )


def test_no_batch_is_left_out_unnoticed() -> None:
    """Of hidden rows one that is too small for the program would be."""
    owners, hub = served("hidden", parts())
    metric = KNOWN["class"]["auroc"]
    with pytest.raises(CallError, match="leave out batch_size="):
        evaluate(model_for("class"), owners, hub, metric, batch_size=16)


def test_a_collection_is_several_metrics() -> None:
    """By its own names, beside it one metric alone."""
    owners, hub = served("same", parts())
    collection = tm.MetricCollection([KNOWN["class"]["f1"], KNOWN["class"]["kappa"]])
    found = evaluate(model_for("class"), owners, hub, collection)
    assert list(found) == ["MulticlassF1Score", "MulticlassCohenKappa"]
    alone = evaluate(model_for("class"), owners, hub, KNOWN["class"]["f1"])
    assert torch.equal(alone, found["MulticlassF1Score"])


def test_logits_below_1_are_logits() -> None:
    """It is said what outputs are, and not guessed by each batch's values."""
    rows, small = parts(), model_for("class")
    with torch.no_grad():
        small.weight.zero_()
        small.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))  # one would do for shares
    metric = tc.MulticlassPrecisionRecallCurve(thresholds=11, **OF_CLASS)
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    y = pooled(rows).targets
    for logits in (True, False):
        wanted: Any = metrics.summed_states(metric, logits=logits)
        found: Any = evaluate(small, *served("same", rows), wanted)
        known = metric.clone()
        known.update((shares.softmax(0) if logits else shares).expand(len(y), -1), y)
        for one, other in zip(found, known.compute(), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)


def test_line_by_line_it_comes_to_the_same() -> None:
    """At an open worker, where something else can't be recorded."""

    def branching(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        return loss * 2 if len(targets) == 31 else loss

    wanted = KNOWN["class"]
    rows, model = parts(), model_for("class")
    known = evaluate(model, *served("open", rows), wanted)
    owners, hub = served("open", rows)
    with pytest.warns(UserWarning, match="line by line"):
        found = evaluate(model, owners, hub, {**wanted, "odd": branching})
    for name in wanted:
        assert torch.equal(found[name], known[name])


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        (tc.MulticlassAUROC(**OF_CLASS), r"write MulticlassAUROC\(..., thresholds=200"),
        (tc.BinaryCalibrationError(), "obhut.federated.metrics"),
        (tr.PearsonCorrCoef(), "no sum"),
        (tm.MaxMetric(), "no sum"),
        (tc.BinaryF1Score() + 1, "no states of its own"),
        (tm.wrappers.ClasswiseWrapper(tc.BinaryF1Score()), "no states of its own"),
        (tc.BinaryF1Score, "make one"),
    ],
)
def test_what_is_no_sum_is_refused_before_anything_is_sent(
    metric: Any, line: str
) -> None:
    """With the argument to write, where there is one."""
    owners, hub = served("open", parts())
    sessions = [one.session for one in (*(owner.location for owner in owners), hub)]
    before = [one.new_id() for one in sessions]
    with pytest.raises(CallError, match=line):
        evaluate(model_for("class"), owners, hub, {"a": metric})
    assert [one.new_id() for one in sessions] == [id + 1 for id in before]


def test_only_metrics_of_torchmetrics_have_states() -> None:
    """Another is passed as it is."""
    with pytest.raises(CallError, match="of torchmetrics, got a function"):
        metrics.summed_states(metrics.accuracy)


def test_it_is_recorded_once() -> None:
    """Evaluated again, nothing is recorded anew, whatever was evaluated before."""
    from obhut.federated.measuring import _measuring

    owners, hub = served("same", parts())
    metric = tc.MulticlassAUROC(thresholds=200, **OF_CLASS)  # no other test's
    for _ in range(2):
        evaluate(model_for("class"), owners, hub, {"once": metric})
    assert len(_measuring((("once", None),))._program._recorded) == 1
