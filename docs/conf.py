"""How Sphinx builds these pages. Builds need no network: intersphinx is off."""

import inspect
import os
from importlib.metadata import version as installed_version

from jupyter_cache import get_cache
from sphinx.application import Sphinx

# Several kernels' threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "obhut"
author = "the obhut authors"
release = installed_version("obhut")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]

source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}

# A cell that fails or warns is a warning of the build's, which fails it. What has the
# same code, as a translation has, is run once.
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_execution_timeout = 100
nb_output_stderr = "warn"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "obhut"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,
    "member-order": "bysource",
    "show-inheritance": True,
}
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes as a list of fields; else those of a named tuple are described twice.
napoleon_use_ivar = True
# "(parameters,) float32: the mean" is for readers, not a type to link.
napoleon_use_rtype = False

doctest_global_setup = "import torch"

# Two modules have a class `VirtualWorker`; a link that is ambiguous goes to the first.
# One that leads nowhere still fails the build.
suppress_warnings = ["ref.python"]

nitpicky = True
# Other people's names: without intersphinx there is nothing to link them to.
nitpick_ignore_regex = [
    (r"py:.*", rf"{package}(\..*)?")
    for package in (
        "abc",
        "collections",
        "concurrent",
        "contextlib",
        "dataclasses",
        "datetime",
        "enum",
        "fractions",
        "functools",
        "msgspec",
        "np",
        "numpy",
        "pathlib",
        "random",
        "rich",
        "threading",
        "torch",
        "types",
        "typer",
        "typing",
        "typing_extensions",
    )
]
# Type variables have no page, and these names stand unqualified in annotations.
nitpick_ignore_regex += [
    (r"py:.*", r"(obhut\..*\.)?(Module|Remote|Result)"),
    (
        r"py:class",
        r"Gate|ModuleType|nn\.Parameter|Optimizer|Path|Policy|Role|weakref\..*",
    ),
    (r"py:.*", r"(obhut\..*\.)?(Held|Guarded|_T|_T_co)"),
    (
        r"py:class",
        r"obhut\.host\.(closing\.Closing|printing\.Table|strict_toml\.Document)",
    ),
]


def skip_named_tuple_fields(
    app: object, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out "Alias for field number 0": the class's own text describes fields."""
    said = inspect.getdoc(obj) or ""
    return True if said.startswith("Alias for field number") else None


def make_cache(app: Sphinx) -> None:
    """Make the notebooks' cache, which several processes would make at once."""
    get_cache(app.env.mystnb_config.execution_cache_path).list_cache_records()


def setup(app: Sphinx) -> None:
    """Register what is defined here."""
    app.connect("builder-inited", make_cache, priority=900)  # when its place is known
    app.connect("autodoc-skip-member", skip_named_tuple_fields)
