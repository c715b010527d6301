"""What a notebook's cells put out: shown as it comes, and kept as a notebook has it.

Of what has several looks the plain text is shown, as IPython does in a terminal.

Source: https://nbformat.readthedocs.io, notebook format 4.8, "Code cell outputs".
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

# Any below: JSON, as the notebook format has it, and a stream's other methods.

_PICTURES = {"image/png": ".png", "image/jpeg": ".jpg", "image/svg+xml": ".svg"}


class Outputs:
    """The outputs of one cell after another.

    Args:
        out: where the outputs are shown.
        err: where errors are.
        plots: the folder for pictures, which is made when there is one; None if they
            are not to be files.

    Attributes:
        stdout: stands for the standard output while cells run.
        stderr: likewise.
    """

    def __init__(self, out: TextIO, err: TextIO, plots: Path | None = None) -> None:
        self._out, self._err, self._plots = out, err, plots
        self.stdout = _Echo(self._out, lambda text: self._stream("stdout", text))
        self.stderr = _Echo(self._err, lambda text: self._stream("stderr", text))
        self._displays: dict[str, list[dict[str, Any]]] = {}
        self.begin(0)

    def begin(self, number: int) -> None:
        """Let what follows be the outputs of a cell of this number."""
        self._number = number
        self._pictures = 0
        self._kept: list[dict[str, Any]] = []
        self._clear = False

    def take(self) -> list[dict[str, Any]]:
        """Return what the cell put out."""
        for output in self._kept:
            if output["output_type"] == "stream":
                output["text"] = "".join(output["text"]).splitlines(keepends=True)
        return self._kept

    def result(self, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Show the value of a cell's last expression.

        Args:
            data: its looks, by MIME type.
            metadata: what is said of them.
        """
        output = _looks("execute_result", data, metadata)
        output["execution_count"] = self._number
        self._show(output)

    def display(
        self,
        data: Mapping[str, Any],
        metadata: Mapping[str, Any],
        id: str | None = None,
        update: bool = False,
    ) -> None:
        """Show what ``display`` was called with, or a figure.

        Args:
            data: its looks, by MIME type.
            metadata: what is said of them.
            id: by which it can be changed later.
            update: whether to change what has the id.
        """
        output = _looks("display_data", data, metadata)
        same = [] if id is None else self._displays.setdefault(id, [])
        for older in same if update else ():
            older.update(data=output["data"], metadata=output["metadata"])
        if not update:
            same.append(output)
        self._show(output, keep=not update)

    def error(self, error: BaseException, traceback: str) -> None:
        """Show what a cell raised."""
        self._err.write(traceback)
        self._keep(
            {
                "output_type": "error",
                "ename": type(error).__name__,
                "evalue": str(error),
                "traceback": traceback.splitlines(),
            }
        )

    def clear(self, wait: bool) -> None:
        """Drop what the cell put out; with ``wait``, when there is something new."""
        self._clear = wait
        if not wait:
            self._kept.clear()

    def _stream(self, name: str, text: str) -> None:
        if not text:
            return
        last = self._kept[-1] if self._kept and not self._clear else {}
        if last.get("name") == name:
            last["text"].append(text)
        else:
            self._keep({"output_type": "stream", "name": name, "text": [text]})

    def _show(self, output: dict[str, Any], keep: bool = True) -> None:
        data = output["data"]
        if "text/plain" in data:
            self._out.write(data["text/plain"] + "\n")
            self._out.flush()
        for kind in data if self._plots is not None else ():
            if kind in _PICTURES:
                self._draw(data[kind], _PICTURES[kind])
        if keep:
            self._keep(output)

    def _keep(self, output: dict[str, Any]) -> None:
        if self._clear:
            self.clear(wait=False)
        self._kept.append(output)

    def _draw(self, picture: str, suffix: str) -> None:
        assert self._plots is not None  # noqa: S101 # for mypy
        self._pictures += 1
        self._plots.mkdir(parents=True, exist_ok=True)
        file = self._plots / f"cell-{self._number}-{self._pictures}{suffix}"
        is_text = suffix == ".svg"
        file.write_bytes(picture.encode() if is_text else base64.b64decode(picture))
        self._err.write(f"obhut run: wrote {file}\n")


class _Echo:
    """A stream whose text is kept as well."""

    def __init__(self, stream: Any, keep: Callable[[str], None]) -> None:
        self._stream = stream
        self._keep = keep

    def write(self, text: str) -> int:
        """Write and keep it."""
        written: int = self._stream.write(text)
        self._keep(text)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write and keep them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _looks(
    kind: str, data: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an output; bytes, such as a picture's, as base64."""
    text = {
        mime: base64.b64encode(look).decode() if isinstance(look, bytes) else look
        for mime, look in data.items()
    }
    return {"output_type": kind, "data": text, "metadata": dict(metadata)}
