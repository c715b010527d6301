"""The command's subcommands and options; each loads what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import obhut

from . import data, keys, policy, state
from .telling import told

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

_PICTURES = (".png", ".pdf", ".svg")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"obhut {obhut.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Train PyTorch models on data that stays with its owners."""


def _check_plot(path: Path | None) -> Path | None:
    """Refuse, before anything is trained, what could not be drawn into."""
    if path is not None and path.suffix not in _PICTURES:
        raise typer.BadParameter(
            f"expected a name that ends in {' or '.join(_PICTURES)}, got {path}"
        )
    return _check_folder(path)


def _check_folder(path: Path | None) -> Path | None:
    """Refuse, before anything is run, what could not be written."""
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


@app.command()
def demo(
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the curves of the second part into this file, such as out.png.",
            dir_okay=False,
            callback=_check_plot,
        ),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of federated averaging.")
    ] = 20,
    seed: Annotated[
        int, typer.Option(min=0, help="What all random numbers come from.")
    ] = 0,
    processes: Annotated[
        bool,
        typer.Option(
            "--processes",
            help="Run only the hospitals, but each as a process of its own.",
        ),
    ] = False,
) -> None:
    """Show federated training: two toy owners, then five hospitals with real data."""
    if processes and plot is not None:
        raise typer.BadParameter("the curves are those of the demo without --processes")
    from rich.console import Console

    from .demo import show, show_processes

    console = Console(highlight=False)
    with told("obhut demo"):
        if processes:
            show_processes(console, rounds=rounds, seed=seed)
        else:
            show(console, rounds=rounds, seed=seed, plot=plot)


@app.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True}
)
def run(
    file: Annotated[
        Path,
        typer.Argument(
            help="A Python script or a notebook (.ipynb).", exists=True, dir_okay=False
        ),
    ],
    args: Annotated[
        list[str] | None, typer.Argument(help="What the file finds in sys.argv.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.ipynb",
            help="Write the notebook with what its cells put out into this file.",
            dir_okay=False,
            callback=_check_folder,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the notebook's pictures into this folder.",
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Run a script or notebook whose `import syft` means obhut.

    Options of its own stand before the file. Of a notebook the code cells are run in
    order, in its folder, and show what they show in Jupyter.
    """
    if file.suffix != ".ipynb" and (save is not None or plots is not None):
        raise typer.BadParameter("--save and --plots are for notebooks (.ipynb)")
    from .run import run_file

    raise typer.Exit(run_file(file, args or [], save=save, plots=plots))


_Config = Annotated[
    Path, typer.Option(help="The configuration.", exists=True, dir_okay=False)
]
_Check = Annotated[
    bool, typer.Option("--check", help="Only say what the configuration lets happen.")
]
_Stop = Annotated[
    bool, typer.Option("--stop", help="Stop the one that serves this configuration.")
]

_Reload = Annotated[
    bool,
    typer.Option(
        "--reload",
        help="Let the one that serves this configuration read it, and the data, again.",
    ),
]


@app.command()
def worker(
    config: _Config, check: _Check = False, stop: _Stop = False, reload: _Reload = False
) -> None:
    """Serve beside the data, until SIGTERM or Ctrl-C."""
    from .serve import serve

    serve(config, check=check, stop=stop, reload=reload)


@app.command()
def aggregator(
    config: _Config,
    check: _Check = False,
    stop: _Stop = False,
    reload: _Reload = False,
    begin_anew: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="Begin another record of releases in the place of one that was lost "
            "or changed, once the owners have agreed. The reason is kept in it.",
        ),
    ] = "",
) -> None:
    """Serve as the worker that everybody delivers to, until SIGTERM or Ctrl-C."""
    from .serve import serve

    serve(config, check=check, stop=stop, reload=reload, begin_anew=begin_anew)


data.register(app)
keys.register(app)
policy.register(app)
state.register(app)

if __name__ == "__main__":
    app()
