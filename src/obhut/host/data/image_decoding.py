"""Images as arrays, by Pillow: runs in a walled process, as an owner's loader does.

Rules:

- An image becomes channels, height and width, in 8 bits; what has more is refused, and
  so is what is transparent: nothing of either is lost in silence.
- The orientation that a camera noted is applied. Several frames are refused.
- Images are scaled to the declared size as ``torchvision.transforms.Resize((h, w))``
  does it: bilinear, smoothed, whatever that does to their shape.
- An image of more pixels than Pillow deems safe is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from obhut.errors import DatasetError

from . import image_folders

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")

_PIECE = 2**23
"""Bytes of the images that are handed on at a time."""

_GRAY = frozenset({"1", "L", "LA", "La"})
_COLORED = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_TURNED = range(5, 9)
"""Orientations that swap height and width (Exif 2.3, tag 274)."""


class Decoding(Struct, frozen=True):
    """How images are read.

    Attributes:
        classes: as in the declaration.
        size: height and width, likewise.
        color: likewise.
        scaled: the float type in which 0 to 255 become 0 to 1; None for 8 bits.
    """

    classes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    color: Literal["gray", "rgb"] | None = None
    scaled: Literal["float32", "float64"] | None = None


def load(folder: Path, decoding: str) -> Iterator[Any]:
    """Yield images, and the numbers of their classes if there are any.

    Args:
        folder: where they are.
        decoding: a ``Decoding``, in JSON.

    Yields:
        features: (images, channels, height, width), and target: (images,) int64; or
        features alone.

    Raises:
        DatasetError: naming the image.
    """
    try:
        from PIL import Image  # noqa: PLC0415 # an extra, of which this says so
    except ModuleNotFoundError as error:
        raise DatasetError(
            str(folder), "needs Pillow", 'run: pip install "obhut[images]"'
        ) from error
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    asked = msgspec.json.decode(decoding, type=Decoding)
    listing = image_folders.find(folder, asked.classes)
    asked = _settled(asked, listing)
    height, width = asked.size or (1, 1)
    channels = 1 if asked.color == "gray" else 3
    most = max(1, _PIECE // (channels * height * width))
    for begin in range(0, len(listing.images), most):
        piece = listing.images[begin : begin + most]
        features = np.empty((len(piece), channels, height, width), np.uint8)
        for place, (image, _) in zip(features, piece, strict=True):
            place[...] = _decoded(image, asked)
        given = features
        if asked.scaled is not None:
            given = features.astype(asked.scaled) / np.array(255, asked.scaled)
        if listing.classes:
            yield given, np.array([number for _, number in piece], np.int64)
        else:
            yield given


def _settled(asked: Decoding, listing: image_folders.Listing) -> Decoding:
    """Return size and color that all images have, where they are not declared.

    Raises:
        DatasetError: if there is no such size, or an image is none.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    color = asked.color or "gray"
    for path, _ in listing.images:
        with _Opened(path) as image:
            _check_mode(path, image.mode)
            if asked.color is None and image.mode in _COLORED:
                color = "rgb"
            width, height = image.size
            if image.getexif().get(274) in _TURNED:
                width, height = height, width
        first = first or (path, (height, width))
        if asked.size is None and (height, width) != first[1]:
            raise DatasetError(
                str(path),
                f"has {height} x {width} pixels, and {first[0].name} has "
                f"{first[1][0]} x {first[1][1]}",
                "add size = [height, width], to which all are scaled",
            )
    size = asked.size or (first[1] if first else None)
    return msgspec.structs.replace(asked, size=size, color=color)


class _Opened:
    """An image file, while it is open; Pillow's words for damage are translated."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:  # Any: an extra's class
        from PIL import Image  # noqa: PLC0415 # found to be there by load

        try:
            self._image = Image.open(self._path, formats=_FORMATS)
        except Exception as error:
            raise self._error(error) from error
        return self._image

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._image.close()
        if isinstance(error, Exception) and not isinstance(error, DatasetError):
            raise self._error(error) from error

    def _error(self, error: Exception) -> DatasetError:
        if "DecompressionBomb" in type(error).__name__:
            return DatasetError(
                str(self._path),
                "has more pixels than is safe to unpack",
                "store it smaller, or leave it out",
            )
        if isinstance(error, OSError) and error.errno is not None:
            problem = f"can not be read: {error.strerror}"
            return DatasetError(str(self._path), problem, "check who may read it")
        return DatasetError(
            str(self._path),
            "is damaged, or no image of a kind that is read",
            f"get it anew, as {', '.join(_FORMATS)}, or leave it out",
        )


def _check_mode(path: Path, mode: str) -> None:
    if mode not in _GRAY | _COLORED:
        raise DatasetError(
            str(path),
            f"has pixels of mode {mode}, which 8 bits do not hold",
            "store it with 8 bits for a channel, or write a loader for it",
        )


def _decoded(path: Path, asked: Decoding) -> npt.NDArray[np.uint8]:
    """Return an image's pixels: (channels, height, width)."""
    from PIL import Image, ImageOps  # noqa: PLC0415 # found to be there by load

    with _Opened(path) as opened:
        # Phones put a preview behind a photo, which is MPO then.
        if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
            raise DatasetError(
                str(path),
                f"has {opened.n_frames:,} images, one after the other",
                "store each in a file of its own, or write a loader for it",
            )
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if np.asarray(image.getchannel("A")).min() < 255:
                raise DatasetError(
                    str(path),
                    "has transparent pixels, whose color is a matter of the background",
                    "store it without transparency, or write a loader for it",
                )
        image = image.convert("L" if asked.color == "gray" else "RGB")
        if asked.size is not None and image.size != asked.size[::-1]:
            image = image.resize(asked.size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
