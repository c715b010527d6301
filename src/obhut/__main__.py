"""``python -m obhut``: the same as the command ``obhut``."""

from obhut.cli.main import app

if __name__ == "__main__":
    app()
