"""What it takes to read data sets, as ratios in one run.

Each file is read as an owner's worker reads it, into sealed memory, and by the library
that people know for it, with its default options: pyarrow for CSV and Parquet, NumPy
for ``.npz``. The two take turns, and a ratio is that of the medians. Memory is the most
that a process of its own had beyond what it had before: its own pages, and those of
the sealed memory, of which the data's size is said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from obhut.host.data.datasets import load_one
from obhut.host.data.declaration import DatasetDeclaration

COLUMNS = 20
WIDE = (200, 20_000)
MISSING = 0.01

BEYOND_AT_MOST = 200
"""MB of memory beside the data."""

Reader = Callable[[Path], object]


def numbers(rows: int, columns: int) -> np.ndarray:
    """Return normal numbers: (rows, columns) float32."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, columns), np.float32)


def as_table(values: np.ndarray, missing: float = 0.0) -> pa.Table:
    """Return an Arrow table of them, of whose cells a share is null."""
    rng = np.random.default_rng(1)
    columns = {}
    for place in range(values.shape[1]):
        mask = rng.random(len(values)) < missing if missing else None
        columns[f"c{place}"] = pa.array(values[:, place], mask=mask)
    return pa.table(columns)


def ours(path: Path) -> object:
    """Read a file as a worker does."""
    features = "*" if path.suffix in (".csv", ".parquet") else None
    missing = "nan" if "missing" in path.name else "refuse"
    declared = DatasetDeclaration(
        name="d", path=path, features=features, missing=missing
    )
    return load_one(declared)


def npz(path: Path) -> object:
    """Read an archive of arrays with NumPy."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def files(folder: Path, rows: int) -> list[tuple[str, Path, Reader, float]]:
    """Write the files; return what each is, its other reader, and the ratio's limit."""
    values = numbers(rows, COLUMNS)
    named = f"{rows:,} x {COLUMNS}"
    plain, holes = folder / "plain.csv", folder / "missing.csv"
    pa_csv.write_csv(as_table(values), plain)
    pa_csv.write_csv(as_table(values, MISSING), holes)
    parquet, wide, archive = (folder / n for n in ("p.parquet", "w.parquet", "a.npz"))
    pq.write_table(as_table(values), parquet)
    pq.write_table(as_table(numbers(*WIDE)), wide)
    np.savez(archive, x=values)
    return [
        (f"CSV, {named}", plain, pa_csv.read_csv, 1.5),
        (f"CSV, {named}, 1 % missing", holes, pa_csv.read_csv, 2.0),
        (f"Parquet, {named}", parquet, pq.read_table, 1.2),
        (f"Parquet, {WIDE[0]} x {WIDE[1]:,}", wide, pq.read_table, 2.0),
        (f"npz, {named}", archive, npz, 1.1),
    ]


def seconds(read: Reader, path: Path) -> float:
    """Return how long a reading takes."""
    begin = time.perf_counter()
    kept = read(path)
    taken = time.perf_counter() - begin
    del kept
    return taken


def present() -> int:
    """Return this process's bytes: pages of its own, and all of its sealed memory."""
    with open("/proc/self/status", encoding="ascii") as stream:
        fields = dict(line.split(":", 1) for line in stream)
    own = sum(int(fields[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile"))
    sealed: dict[int, int] = {}  # mmap holds a descriptor of its own
    for name in os.listdir("/proc/self/fd"):
        try:
            if "memfd:" in os.readlink(f"/proc/self/fd/{name}"):
                found = os.fstat(int(name))
                sealed[found.st_ino] = found.st_blocks * 512
        except OSError:  # it was closed meanwhile
            continue
    return own + sum(sealed.values())


def watched(path: Path) -> None:
    """Read a file and print the most memory that was there beyond the data, in MB."""
    before, most, done = present(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, present())
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    loaded = ours(path)
    done.set()
    thread.join()
    size = sum(len(array.data) for array in loaded.tensors.values())
    print(json.dumps({"data": size / 1e6, "beyond": (most - before - size) / 1e6}))


def memory(path: Path) -> dict[str, float]:
    """Return what ``watched`` prints, of a process of its own."""
    command = [sys.executable, __file__, "--watch", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the ratios, and end with 1 if one is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--watch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch is not None:
        watched(options.watch)
        return
    shown = Table("file", "time", "at most", "MB of data", "MB beyond", "at most")
    above = False
    with tempfile.TemporaryDirectory() as folder:
        for name, path, other, limit in files(Path(folder), options.rows):
            pairs = [
                (seconds(other, path), seconds(ours, path))
                for _ in range(options.times)
            ]
            theirs, mine = (statistics.median(one) for one in zip(*pairs, strict=True))
            used = memory(path)
            above |= mine > limit * theirs or used["beyond"] > BEYOND_AT_MOST
            shown.add_row(
                name,
                f"{mine / theirs:.2f}",
                f"{limit:.1f}",
                f"{used['data']:.0f}",
                f"{used['beyond']:.0f}",
                f"{BEYOND_AT_MOST}",
            )
    Console().print(shown)
    sys.exit(above)


if __name__ == "__main__":
    main()
