"""``obhut policy rehearse``: what a client's script would get, tried on twins."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from obhut.cli.telling import told
from obhut.errors import ConfigurationError


def rehearse(
    script: Annotated[
        Path,
        typer.Argument(
            help="A client's script or notebook.", exists=True, dir_okay=False
        ),
    ],
    args: Annotated[
        list[str] | None, typer.Argument(help="What it finds in sys.argv.")
    ] = None,
    config: Annotated[
        list[Path],
        typer.Option(
            help="A worker's configuration; may be given for several workers.",
            exists=True,
            dir_okay=False,
        ),
    ] = [],  # noqa: B006 # typer copies it
    without_walls: Annotated[
        bool,
        typer.Option(
            "--without-walls", help="Do not keep the script from files and network."
        ),
    ] = False,
) -> None:
    """Run a client's script on random data; say what would leave, and what would not.

    It is given twins of the workers: of those whose configurations are given, and of
    all whom their policies name. Whatever it connects to, it gets these.
    """
    import msgspec

    from obhut.host import configuration as configurations

    from .outlines import Plan, outline, with_others

    if not config:
        raise typer.BadParameter("give at least one worker: --config worker.toml")
    with told(config[0]):
        loaded = [(configurations.load(file), file) for file in config]
        if not without_walls:
            for one, file in loaded:
                _check_apart(script, Path(one.folder), file)
                for dataset in one.datasets:
                    _check_apart(script, dataset.path, file)
        outlines = with_others(outline(one, file) for one, file in loaded)
    plan = Plan(
        str(script.resolve()), tuple(args or ()), tuple(outlines), not without_walls
    )
    # A process of its own: what was read here is not in reach of the script.
    with tempfile.TemporaryDirectory(prefix="obhut-rehearsal-") as scratch:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "obhut.cli.rehearsal.walls"],
            input=msgspec.json.encode(plan),
            env={
                **os.environ,
                "TMPDIR": scratch,
                "HOME": scratch,
                "OPENBLAS_NUM_THREADS": "1",  # else NumPy's start before the walls
            },
            check=False,
        )
    raise typer.Exit(done.returncode)


def _check_apart(script: Path, private: Path, file: Path) -> None:
    """Refuse private files where the script could read them.

    Raises:
        ConfigurationError: naming them.
    """
    from .walls import installed

    place = private.resolve()
    if place.is_relative_to(script.resolve().parent):
        raise ConfigurationError(
            str(file),
            str(private),
            f"is below the folder of {script.name}, which the script can read",
            "put the script into a folder of its own",
        )
    for folder in installed():
        if place.is_relative_to(folder.resolve()):
            raise ConfigurationError(
                str(file),
                str(private),
                f"is below {folder}, which any program can read from, and so the "
                "script",
                "keep keys and data elsewhere, such as in /srv or /var/lib",
            )
