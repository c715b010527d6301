"""The loops of ``transformers`` and ``lightning`` run with a model at a worker.

The worker has no policy: both log the loss of single steps. They are the recipes under
"Libraries" in ``docs/works.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import transformers
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, TensorDataset

import obhut

from .architectures import bert

pytestmark = pytest.mark.slow


@pytest.fixture
def bob() -> Iterator[obhut.VirtualWorker]:
    """A worker without a policy."""
    worker = obhut.VirtualWorker("bob")
    yield worker
    worker.close()


class RowByRow(Dataset):
    """Columns whose rows are taken where they are."""

    def __init__(self, columns: Mapping[str, torch.Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one row."""
        return {name: column[index] for name, column in self.columns.items()}


class OpenTrainer(transformers.Trainer):
    """A trainer whose losses and predictions come here, where it adds them up."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return a step's loss, here."""
        return super().training_step(*args, **kwargs).get()

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return loss, logits and labels, here."""
        step = super().prediction_step(*args, **kwargs)
        return pytree.tree_map_only(obhut.RemoteTensor, obhut.get, step)


def with_trainer(
    kind: type[transformers.Trainer], worker: obhut.VirtualWorker | None, folder: Path
) -> tuple[list[dict[str, float]], nn.Module]:
    """Train and evaluate; return what was logged, less times, and the model."""
    torch.manual_seed(0)
    model, _ = bert()
    columns = {
        "input_ids": torch.randint(3, 50, (8, 6)),
        "attention_mask": (torch.arange(6) < torch.arange(8)[:, None] + 2).long(),
        "labels": torch.arange(8) % 2,
    }
    if worker is not None:
        obhut.send(model, worker)
        columns = {name: obhut.send(x, worker) for name, x in columns.items()}
    arguments = transformers.TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = kind(
        model,
        arguments,
        train_dataset=RowByRow(columns),
        eval_dataset=RowByRow(columns),
    )
    trainer.train()
    trainer.evaluate()
    if worker is not None:
        obhut.get(model)
    logged = [
        {
            name: value
            for name, value in one.items()
            if not name.endswith(("runtime", "per_second"))
        }
        for one in trainer.state.log_history
    ]
    return logged, model


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_trainer_of_transformers(bob: obhut.VirtualWorker, tmp_path: Path) -> None:
    """What it logs is the same: losses, norms of gradients, the evaluation."""
    here, local = with_trainer(transformers.Trainer, None, tmp_path)
    there, fetched = with_trainer(OpenTrainer, bob, tmp_path)
    assert there == here
    assert {"loss", "grad_norm", "eval_loss"} <= {name for one in here for name in one}
    for one, other in zip(fetched.parameters(), local.parameters(), strict=True):
        assert torch.equal(one, other)


class Classifier(lightning.LightningModule):
    """A module as Lightning's users write one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.inner(x)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        """Return a step's loss."""
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        """Log what is right of a batch."""
        x, y = batch
        self.log("right", (self(x).argmax(-1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        """Return an optimizer and its schedule."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def with_lightning(
    worker: obhut.VirtualWorker | None, folder: Path
) -> tuple[dict[str, float], nn.Module]:
    """Train and validate; return what was logged, and the module."""
    torch.manual_seed(0)
    module, x, y = Classifier(), torch.randn(16, 4), torch.arange(16) % 3
    if worker is not None:
        obhut.send(module, worker)
        x, y = obhut.send(x, worker), obhut.send(y, worker)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        gradient_clip_val=0.5,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    rows = TensorDataset(x, y)
    trainer.fit(
        module,
        DataLoader(rows, batch_size=4, shuffle=True),
        DataLoader(rows, batch_size=8),
    )
    if worker is not None:
        obhut.get(module)
    return {k: float(v) for k, v in trainer.callback_metrics.items()}, module


@pytest.mark.filterwarnings(
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "ignore:The '\\w+_dataloader' does not have many workers",
    "ignore:The number of training batches",
)
def test_lightnings_trainer(bob: obhut.VirtualWorker, tmp_path: Path) -> None:
    """It needs nothing but what is sent; what it logs is the same."""
    here, local = with_lightning(None, tmp_path)
    there, fetched = with_lightning(bob, tmp_path)
    assert there == here
    assert {"loss_step", "loss_epoch", "right"} <= here.keys()
    for one, other in zip(fetched.parameters(), local.parameters(), strict=True):
        assert torch.equal(one, other)
