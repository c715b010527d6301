"""Refuses to tell of columns what would tell names that are private.

::

    check_public(declaration, check)             # ConfigurationError, or nothing

Rules:

- Units and categories are told by column, so that they need public names of columns.
  The target's classes need none: there is one target.
- Columns of 0 and 1 that a category became are called after it, so that their names are
  told only with the categories.
"""

from __future__ import annotations

from collections.abc import Iterator

from obhut.host.strict_toml import Check
from obhut.host.wording import nearest, quote

from .declaration import DatasetDeclaration, Encode


def check_public(one: DatasetDeclaration, check: Check) -> None:
    """Refuse metadata that can not be told as declared.

    Raises:
        ConfigurationError: naming the key.
    """
    public, hot = one.public, [*_one_hot(one)]
    coded = [name for name, how in one.encode.items() if isinstance(how, tuple)]
    check(
        public.names or not public.units,
        ("public", "units"),
        "units are told by column, and the names of columns are private",
        "write names = true, or leave units out",
    )
    check(
        public.names or not (public.classes and coded),
        ("public", "classes"),
        f"the categories of {', '.join(map(quote, coded))} are told by column, and "
        "the names of columns are private",
        "write names = true, or leave classes out",
    )
    check(
        public.classes or not (public.names and hot),
        ("public", "names"),
        f"the columns that {', '.join(map(quote, hot))} becomes are called after "
        "its categories, and these are private",
        "write classes = true, or a list of categories in place of one_hot",
    )
    used = {*one.feature_columns, *one.target_columns}
    for name in one.units:
        like = nearest(name, used)
        check(
            not used or "*" in used or name in used,
            ("units", name),
            "no column of this name is used",
            f"did you mean {quote(like)}?" if like else "leave it out",
        )


def _one_hot(one: DatasetDeclaration) -> Iterator[str]:
    for name, how in one.encode.items():
        if isinstance(how, Encode) and how.one_hot is not None:
            yield name
