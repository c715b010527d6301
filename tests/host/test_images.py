"""Folders of images: which there are, and what their pixels become."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from obhut.errors import ConfigurationError, DatasetError
from obhut.host.data import image_decoding
from obhut.host.data.datasets import load_one
from obhut.host.data.declaration import DatasetDeclaration
from obhut.transports.pipe.loading import Loading

NOISE = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)

GRAY = NOISE[..., 0]


def encoded(pixels=NOISE, kind="PNG", mode=None, **options):
    """Return an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def images(tmp_path):
    """Return what writes a folder of images, and loads it as declared."""
    folder = tmp_path / "images"

    def images(files, **declared):
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        table = {"name": "d", "path": folder, "format": "images", **declared}
        return load_one(DatasetDeclaration(**table), run=Loading())

    return images


def pixels(dataset, name="features"):
    """Return a tensor as an array."""
    array = dataset.tensors[name]
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


def test_each_folder_is_a_class(images):
    """Sorted by class, then by path; hidden and left files are passed over."""
    files = {
        "dog/b.png": encoded(NOISE // 2),
        "dog/a.PNG": encoded(),
        "cat/deep/1.bmp": encoded(NOISE // 3, "BMP"),
        "cat/.hidden": b"",
        "dog/Thumbs.db": b"",
    }
    found = images(files)
    assert pixels(found, "target").tolist() == [0, 1, 1]
    assert found.tensors["target"].dtype == "int64"
    expected = np.stack([NOISE // 3, NOISE, NOISE // 2]).transpose(0, 3, 1, 2)
    assert np.array_equal(pixels(found), expected)
    assert found.report.columns[1].classes == (("cat", 1), ("dog", 2))
    assert "network" in found.report.notes[0]


def test_classes_in_the_order_that_owners_share(images):
    """A class of which an owner has no image keeps its number."""
    files = {"dog/a.png": encoded(), "cat/a.png": encoded()}
    found = images(files, classes=("fox", "dog", "cat"), target_dtype="int8")
    assert pixels(found, "target").tolist() == [1, 2]
    assert found.tensors["target"].dtype == "int8"
    assert found.report.columns[1].classes == (("fox", 0), ("dog", 1), ("cat", 1))
    with pytest.raises(DatasetError, match='"dog" is not among classes'):
        images({}, classes=("cat",))


def test_a_folder_without_classes_has_no_target(images):
    """It is features alone."""
    found = images({"2.png": encoded(), "1.png": encoded(NOISE // 2)})
    assert list(found.tensors) == ["features"]
    assert np.array_equal(pixels(found)[1], NOISE.transpose(2, 0, 1))
    with pytest.raises(DatasetError, match="has no folder for each class"):
        images({}, classes=("a", "b"))


@pytest.mark.parametrize(
    ("kind", "mode", "exact"),
    [
        ("PNG", None, True),
        ("BMP", None, True),
        ("TIFF", None, True),
        ("WEBP", None, False),
        ("JPEG", None, False),
        ("GIF", None, False),
        ("PNG", "P", False),
        ("PNG", "RGBA", True),
    ],
)
def test_every_kind_is_read(images, kind, mode, exact):
    """As Pillow reads it, as 8 bits of red, green and blue."""
    data = encoded(NOISE, kind, mode)
    found = pixels(images({f"a.{kind.lower()}": data}))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(found[0], expected.transpose(2, 0, 1))
    assert np.array_equal(expected, NOISE) or not exact


def test_gray_images_have_one_channel(images):
    """Unless one of them is colored, or the declaration says it."""
    gray = encoded(NOISE[..., 0])
    assert images({"1.png": gray}).tensors["features"].shape == (1, 1, 6, 4)
    assert images({"1.png": gray}, color="rgb").tensors["features"].shape[1] == 3
    found = pixels(images({"2.png": encoded()}))
    assert np.array_equal(found[0], np.stack([NOISE[..., 0]] * 3))
    found = pixels(images({}, color="gray"))
    assert np.array_equal(found[1, 0], np.asarray(Image.fromarray(NOISE).convert("L")))


def test_images_are_scaled_as_torchvision_scales_them(images):
    """Bilinear and smoothed, to just that size."""
    large = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    found = pixels(images({"a.png": encoded(large), "b.png": encoded()}, size=(8, 6)))
    assert found.shape == (2, 3, 8, 6)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(large.transpose(2, 0, 1))[None].float(),
        (8, 6),
        mode="bilinear",
        antialias=True,
    )
    assert abs(found[0] - expected[0].numpy()).max() <= 1


def test_images_of_several_sizes_ask_for_one(images):
    """The two are named."""
    files = {"a.png": encoded(), "b.png": encoded(NOISE[:5])}
    with pytest.raises(
        DatasetError, match=r"b.png: has 5 x 4 pixels, and a.png has 6 x 4; add size"
    ):
        images(files)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_floats_go_from_0_to_1(images, dtype):
    """As ``torchvision.transforms.ToTensor`` has it."""
    found = images({"a.png": encoded()}, dtype=dtype).tensors["features"]
    assert found.dtype == dtype
    made = torch.frombuffer(bytearray(found.data), dtype=getattr(torch, dtype))
    bytes_ = torch.from_numpy(NOISE.transpose(2, 0, 1).copy())
    wide = torch.float64 if dtype == "float64" else torch.float32
    expected = (bytes_.to(wide) / 255).to(made.dtype)
    assert torch.equal(made.reshape(expected.shape), expected)


def test_what_a_camera_noted_is_applied(images):
    """An image that lies on its side is turned, and its size with it."""
    exif = Image.Exif()
    exif[274] = 6
    found = images({"a.png": encoded(exif=exif)})
    assert found.tensors["features"].shape == (1, 3, 4, 6)
    expected = np.rot90(NOISE, -1).transpose(2, 0, 1)
    assert np.array_equal(pixels(found)[0], expected)


def test_several_frames_are_refused_and_not_lost(images):
    """Of a moving GIF, or a stack of slices."""
    frames = [Image.fromarray(NOISE[..., i]) for i in range(3)]
    for kind in ("GIF", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(DatasetError, match="has 3 images, one after the other"):
            images({f"a.{kind.lower()}": data}, color="gray")


def bomb():
    """Return a small file of very many pixels."""
    return encoded(Image.new("1", (20_000, 20_000)))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.png", lambda: encoded()[:60], "a.png: is damaged, or no image"),
        ("a.jpg", lambda: encoded(kind="JPEG")[:-300], "a.jpg: is damaged"),
        ("a.png", lambda: b"text", "a.png: is damaged, or no image"),
        ("a.png", lambda: encoded(kind="PPM"), "a.png: is damaged, or no image"),
        ("a.png", lambda: encoded(GRAY.astype("u2")), "pixels of mode I;16"),
        ("a.tif", lambda: encoded(GRAY.astype("f4"), "TIFF"), "pixels of mode F"),
        ("a.png", lambda: encoded(np.dstack([NOISE, GRAY // 2])), "transparent"),
        ("a.png", bomb, "has more pixels than is safe to unpack"),
        ("notes.csv", lambda: b"a,b", "is no image by its name"),
        ("a/b.png", encoded, "lies beside the classes' folders"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(images, name, data, words):
    """And nothing is lost in silence: not bits, nor what is transparent."""
    with pytest.raises(DatasetError, match=words) as caught:
        images({"z.png": encoded(), name: data()}, size=(6, 4))
    assert "obhut/" not in str(caught.value)


def test_an_empty_folder_is_refused(images, tmp_path):
    """It has no rows."""
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match="has no images"):
        images({})


def test_images_that_others_can_change_are_not_read(images, tmp_path):
    """Each file counts."""
    images({"a.png": encoded()})
    (tmp_path / "images" / "a.png").chmod(0o666)
    with pytest.raises(Exception, match="others may change it"):
        images({})


def test_without_pillow_it_says_what_to_install(monkeypatch, tmp_path):
    """Pillow is an extra."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DatasetError, match=r'pip install "obhut\[images\]"'):
        next(image_decoding.load(tmp_path, "{}"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('format = "images"\nfeatures = "a"', "features .*no meaning for images"),
        ('format = "images"\nmissing = "nan"', "missing .*no meaning for images"),
        ('format = "images"\nsize = [0, 4]', "size .*expected height and width"),
        ('format = "images"\nclasses = ["a", "a"]', '"a" is listed twice'),
        ('format = "images"\nwhere = "a > 1"', "where .*which have no columns"),
        ('loader = "clinic"', "expected a module and a function of it"),
        ('loader = "a b:load"', "expected a module and a function of it"),
        ('loader = "clinic:load.it"', "expected a module and a function of it"),
        ('loader = "clinic:load"\nformat = "csv"', "format .*the loader does that"),
        ('loader = "clinic:load"\nheader = true', "header .*the loader does that"),
        ('loader_network = true\nformat = "npy"', "loader_network .*no loader"),
        ('format = "npy"\nsize = [4, 4]', 'without format = "images"'),
        ('format = "npy"\nmissing_values = [-1]', "missing_values .*no columns"),
        ('format = "npz"\nmissing = "drop"', "in tables only"),
        ('format = "npz"\nmissing = { fill = 0 }', "in tables only"),
    ],
)
def test_keys_that_mean_nothing_are_refused(configure, keys, words):
    """With the key's name."""
    from .conftest import HEAD

    with pytest.raises(ConfigurationError, match=words):
        configure(f'{HEAD}[[dataset]]\nname = "d"\npath = "d"\n{keys}\n')
