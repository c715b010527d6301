"""Folders of images as features, and their classes as target.

Rules:

- They are decoded in a walled process: an image may have been made to harm.
- Features are (images, channels, height, width): 0 to 255 as ``uint8``; as a float
  type that is asked for, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from obhut.host import files

from . import image_folders, own_loader
from .declaration import DatasetDeclaration
from .image_decoding import Decoding
from .loader_messages import Request
from .own_loader import Run
from .selection import Loaded


def read(declaration: DatasetDeclaration, run: Run) -> Loaded:
    """Read all images of a folder.

    Args:
        declaration: the data set.
        run: starts the process in which they are decoded.

    Raises:
        DatasetError: naming the image.
        UnsafeFileError: if others could change one.
        OSError: if the folder can not be read.
    """
    folder = declaration.path
    files.check(folder)
    listing = image_folders.find(folder, tuple(map(str, declaration.classes)))
    for image, _ in listing.images:
        files.check(image)
    dtype = str(declaration.dtype_of("features"))
    decoding = Decoding(
        listing.classes,
        declaration.size,
        declaration.color,
        ("float64" if dtype == "float64" else "float32") if "float" in dtype else None,
    )
    asked = Request(
        data=str(declaration.name),
        module=f"{__package__}.image_decoding",
        function="load",
        folder="",
        path=str(folder),
        arguments=(msgspec.json.encode(decoding).decode(),),
    )
    chosen = msgspec.structs.replace(
        declaration, features="features", target="target" if listing.classes else None
    )
    loaded = own_loader.read(chosen, asked, run)
    if not isinstance(loaded, Loaded):
        raise TypeError("expected arrays, which is what images are decoded to")
    return _with_classes(loaded, listing.classes)


def _with_classes(loaded: Loaded, classes: Sequence[str]) -> Loaded:
    """Let the report count the images of each class."""
    if not classes:
        return loaded
    _, target = loaded.tensors[1]
    numbers = np.frombuffer(target.data, target.dtype)
    counts = np.bincount(numbers.astype(np.intp), minlength=len(classes)).tolist()
    columns = loaded.report.columns
    named = replace(columns[1], classes=tuple(zip(classes, counts, strict=True)))
    return Loaded(loaded.tensors, replace(loaded.report, columns=(columns[0], named)))
