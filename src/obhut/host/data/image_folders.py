"""Which images a folder has, and what they are images of.

Rules:

- A folder of folders has images by class: the folders' names are the classes, in the
  order of ``classes``, or sorted. Deeper folders are the class's, too. A folder of
  images has no classes.
- Images are in the order of classes, then of their paths. Hidden files, and what file
  managers leave behind, are passed over; any other file is refused: it may be data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from obhut.errors import DatasetError
from obhut.host.wording import quote

ENDS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Ends of the names of images."""

_LEFT_BEHIND = frozenset({"thumbs.db", "desktop.ini"})


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
        classes: the names of the classes, in order; none if there is no target.
        images: files, each with the number of its class.
    """

    classes: tuple[str, ...]
    images: tuple[tuple[Path, int], ...]


def find(folder: Path, classes: Sequence[str] = ()) -> Listing:
    """List a folder's images.

    Args:
        folder: where they are.
        classes: the names of the classes, in order, if they are declared.

    Raises:
        DatasetError: if there are none, or what else is there has no meaning.
        OSError: if the folder can not be read.
    """
    entries = _visible(folder)
    folders = [one for one in entries if one.is_dir()]
    if not folders:
        if classes:
            raise DatasetError(
                str(folder),
                "has no folder for each class",
                "put each class's images into a folder of its name, or leave classes "
                "out",
            )
        found = Listing((), tuple((one, 0) for one in _images(entries)))
    else:
        for one in entries:
            if not one.is_dir():
                raise DatasetError(
                    str(one), "lies beside the classes' folders", "move it elsewhere"
                )
        found = _by_class(folders, classes)
    if not found.images:
        ends = " ".join(ENDS)
        raise DatasetError(str(folder), "has no images", f"name files as one of {ends}")
    return found


def _by_class(folders: Sequence[Path], classes: Sequence[str]) -> Listing:
    names = tuple(classes) or tuple(one.name for one in folders)
    for one in folders:
        if one.name not in names:
            raise DatasetError(
                str(one),
                f"{quote(one.name)} is not among classes",
                "add it there, or move the folder elsewhere",
            )
    there = {one.name: one for one in folders}
    images = [
        (image, number)
        for number, name in enumerate(names)
        if name in there
        for image in _images(_visible(there[name]))
    ]
    return Listing(names, tuple(images))


def _visible(folder: Path) -> list[Path]:
    return sorted(
        one
        for one in folder.iterdir()
        if not one.name.startswith(".") and one.name.lower() not in _LEFT_BEHIND
    )


def _images(entries: Sequence[Path]) -> Iterator[Path]:
    for one in entries:
        if one.is_dir():
            yield from _images(_visible(one))
        elif one.name.lower().endswith(ENDS):
            yield one
        else:
            raise DatasetError(
                str(one), "is no image by its name", "move it elsewhere, or rename it"
            )
