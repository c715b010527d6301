"""What is called after each round: early ends, and logs.

::

    def stop_when_good(report):
        if report.metrics["accuracy"] > 0.97:
            raise StopTraining

    callbacks = [stop_when_good, CSVLogger("run.csv")]
    federation.fit(model, training, rounds=99, callbacks=callbacks)

Rule: a callback is a callable of a ``Round``. Libraries are imported when used.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from obhut.extras import import_extra

from .history import Round


class StopTraining(Exception):  # noqa: N818 # a wish, and no error
    """Raised by a callback: the training ends after this round."""


class CSVLogger:
    """Writes a line for each round into a file.

    A round that was run again after an interruption has a line for each time. A number
    that was not there before is a new column; what earlier rounds have there is empty.

    Args:
        path: the file; lines are added to it.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)

    def __call__(self, report: Round) -> None:
        """Add a line."""
        row: dict[str, object] = {"round": report.number, **report.numbers}
        row["seconds"] = report.seconds
        names, before = self._read()
        if row.keys() <= {*names}:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, names).writerow(row)
            return
        both = dict.fromkeys([*row, *names])
        del both["seconds"]
        columns = [*both, "seconds"]
        made = self._path.with_name(f".{self._path.name}")
        with made.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([*before, row])
        made.replace(self._path)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Return the columns that are there, and the lines."""
        if not self._path.exists():
            return [], []
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or []), list(reader)


class TensorBoardLogger:
    """Writes each round's numbers for TensorBoard.

    Args:
        folder: where the logs are.

    Raises:
        MissingExtraError: if tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        import_extra("tensorboard", "TensorBoardLogger", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 # it needs that

        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, report: Round) -> None:
        """Write its numbers."""
        for name, value in report.numbers.items():
            self._writer.add_scalar(name, value, report.number)
        self._writer.flush()


class MLflowLogger:
    """Logs each round's numbers to the MLflow run that is active, or a new one.

    Raises:
        MissingExtraError: if mlflow is not installed.
    """

    def __init__(self) -> None:
        self._mlflow = import_extra("mlflow", "MLflowLogger", "mlflow")

    def __call__(self, report: Round) -> None:
        """Log its numbers."""
        self._mlflow.log_metrics(report.numbers, step=report.number)
