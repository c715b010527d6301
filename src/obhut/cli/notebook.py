"""A notebook's file: its code cells, and itself with new outputs.

Rules:

- What a cell had put out is not read, and not kept.
- A cell's number is that of ``In [N]`` after all were run once: blank ones and those
  tagged ``skip-execution`` are not counted.

Source: https://nbformat.readthedocs.io, notebook format 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Any below: JSON, as the notebook format has it.


class NotebookError(Exception):
    """The file is no notebook of a known format."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A code cell that is to be run.

    Attributes:
        source: its text.
        may_fail: whether the cells after it are run if it raises: it has the tag
            ``raises-exception``.
        number: counted from 1.
        record: what the notebook says of it, with its new outputs.
    """

    source: str
    may_fail: bool
    number: int
    record: dict[str, Any]

    def put_out(self, outputs: Sequence[dict[str, Any]]) -> None:
        """Take over what it put out."""
        self.record.update(execution_count=self.number, outputs=outputs)


class Notebook:
    """A notebook that was read.

    Args:
        file: where it is.

    Raises:
        NotebookError: if that is no notebook of format 4.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._document: Any = json.loads(file.read_text(encoding="utf-8"))
            self.cells = list(_code_cells(self._document["cells"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotebookError(
                f"{file} is not a notebook of format 4; open it in Jupyter and save it"
            ) from error

    def save(self, file: Path) -> None:
        """Write it with what its cells put out."""
        document = {"metadata": {}, "nbformat": 4, "nbformat_minor": 4}
        text = json.dumps(document | self._document, indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


def _code_cells(cells: list[dict[str, Any]]) -> Iterator[Cell]:
    """Yield the cells that are to be run, and take the old outputs from all."""
    number = 0
    for record in cells:
        if record["cell_type"] != "code":
            continue
        record.setdefault("metadata", {})
        record.update(execution_count=None, outputs=[])
        # A source is a string or a list of lines that keep their ends.
        source = "".join(record["source"])
        tags = record["metadata"].get("tags", ())
        if source.strip() and "skip-execution" not in tags:
            number += 1
            yield Cell(source, "raises-exception" in tags, number, record)
