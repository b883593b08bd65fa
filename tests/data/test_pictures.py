"""Pictures of every mode: their pixels as an image folder and as a user's data set see them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from torchvision.datasets.folder import IMG_EXTENSIONS

from pipeline.data.pictures import opened, picture_suffixes, pixels, to_rgb
from tests.support.data import message

SIZE = (3, 2)  # columns, rows
ORANGE = (200, 100, 50)


def colour(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, SIZE, value)


def saved(image: Image.Image, path: Path, **how: Any) -> Path:
    image.save(path, **how)
    return path


def seen(path: Path) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 3], as an image folder sees a file."""
    with opened(path) as image:
        return np.asarray(to_rgb(image, "it"))


def palette() -> Image.Image:
    """One colour, the third of a palette, so that its index is another number than any channel."""
    image = colour("P", 2)
    image.putpalette([0, 0, 0, 255, 255, 255, *ORANGE])
    return image


WIDE = np.array([[0, 257, 65535], [32896, 12850, 51400]], np.uint16)  # multiples of 257, which are whole in 8 bits


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (colour("RGB", ORANGE), ORANGE),
        (colour("L", 70), (70, 70, 70)),
        (colour("1", 1), (255, 255, 255)),
        (palette(), ORANGE),
        (colour("RGBA", (*ORANGE, 255)), ORANGE),
        (colour("RGBA", (*ORANGE, 0)), (255, 255, 255)),
        (colour("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
        (colour("LA", (9, 0)), (255, 255, 255)),
        (colour("LA", (9, 255)), (9, 9, 9)),
        (colour("PA", (0, 0)), (255, 255, 255)),
        (colour("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (colour("I;16", 257 * 80), (80, 80, 80)),
        (colour("I;16B", 257 * 80), (80, 80, 80)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_mode_is_the_colour_that_a_viewer_shows(image: Image.Image, rgb: tuple[int, int, int]) -> None:
    assert np.asarray(to_rgb(image, "it")).tolist() == [[list(rgb)] * 3] * 2


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_grey_files_of_16_bits_are_scaled_by_their_whole_range(kind: str, tmp_path: Path) -> None:
    file = saved(Image.fromarray(WIDE), tmp_path / f"x.{kind}")
    assert seen(file)[..., 0].tolist() == (WIDE // 257).tolist()
    with opened(file) as image:
        np.testing.assert_allclose(pixels(image, "it"), WIDE / 65535, rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "kind"), [(colour("I", 70000), "32-bit or signed integers"), (colour("F", 0.5), "floating point values")]
)
def test_values_without_a_known_range_are_refused(image: Image.Image, kind: str) -> None:
    assert f"it is a picture of {kind} (Pillow's mode {image.mode})" in message(lambda: to_rgb(image, "it"))


def test_transparent_colour_of_a_palette_or_a_grey_file_lies_on_white(tmp_path: Path) -> None:
    for name, image, clear in (("p.png", palette(), 2), ("l.png", colour("L", 40), 40), ("p.gif", palette(), 2)):
        assert (seen(saved(image, tmp_path / name, transparency=clear)) == 255).all()
        assert (seen(saved(image, tmp_path / f"solid-{name}")) != 255).all()


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_opaque_colours_are_those_that_pillow_decodes(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    file = saved(Image.fromarray(noise), tmp_path / f"x.{kind}")
    assert np.array_equal(seen(file), np.asarray(Image.open(file).convert("RGB")))
    opaque = saved(Image.fromarray(noise).convert("RGBA"), tmp_path / "opaque.png")
    assert np.array_equal(seen(opaque), noise)


def turned(image: Image.Image, orientation: int, path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, path, exif=exif)


CORNERS = np.arange(6, dtype=np.uint8).reshape(2, 3)
UPRIGHT = {  # as EXIF's table says where the 0th row and column lie
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.T,
    6: CORNERS[::-1].T,
    7: CORNERS[::-1, ::-1].T,
    8: CORNERS[:, ::-1].T,
}


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("orientation", [0, *UPRIGHT, 9])
def test_picture_is_turned_upright_as_its_exif_data_ask(orientation: int, kind: str, tmp_path: Path) -> None:
    file = turned(Image.fromarray(CORNERS), orientation, tmp_path / f"x.{kind}")
    expected = UPRIGHT.get(orientation, CORNERS)
    assert seen(file)[..., 0].tolist() == expected.tolist()
    with opened(file) as image:
        assert pixels(image, "it").tolist() == expected.tolist()


def test_picture_that_a_data_set_has_worked_on_is_taken_as_it_is(tmp_path: Path) -> None:
    file = turned(Image.fromarray(CORNERS), 6, tmp_path / "x.png")
    by_hand = Image.open(file).rotate(-90, expand=True)  # keeps the tag
    assert pixels(by_hand, "it").tolist() == UPRIGHT[6].tolist()


def test_exif_data_that_cannot_be_read_turn_nothing(tmp_path: Path) -> None:
    file = saved(colour("RGB", ORANGE), tmp_path / "x.png", exif=b"Exif\x00\x00garbage")
    assert seen(file).tolist() == [[list(ORANGE)] * 3] * 2


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_first_frame_of_an_animation_counts(kind: str, tmp_path: Path) -> None:
    frames = [colour("RGB", rgb) for rgb in ("black", "white")]
    how = {"lossless": True} if kind == "webp" else {}
    file = saved(frames[0], tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:], **how)
    assert (seen(file) == 0).all()


def test_pages_of_a_tiff_file_are_not_left_out_in_silence(tmp_path: Path) -> None:
    pages = [colour("L", value) for value in (1, 2, 3)]
    file = saved(pages[0], tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert f"{file} holds 3 pages" in message(lambda: seen(file))


def test_sixteen_bit_tiff_in_the_other_byte_order_is_read(tmp_path: Path) -> None:
    big = Image.frombytes("I;16B", SIZE, WIDE.astype(">u2").tobytes())
    file = saved(big, tmp_path / "x.tif", tiffinfo=ImageFileDirectory_v2(prefix=b"MM"))
    assert seen(file)[..., 0].tolist() == (WIDE // 257).tolist()


def bare_tiff(path: Path, bits: int, white: int, values: bytes) -> Path:
    """A grey TIFF of 3x2 pixels, as cameras and scanners write them; at `white` 0 the smallest value is white."""
    entries = {256: 3, 257: 2, 258: bits, 259: 1, 262: white, 273: 122, 277: 1, 278: 2, 279: len(values)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + bytes(4) + values)
    return path


def test_tiff_of_12_bits_is_scaled_by_them(tmp_path: Path) -> None:
    rows = b"\xff\xf0\x00\x80\x80" * 2  # 4095, 0, 2056 and 4 bits to fill a byte
    file = bare_tiff(tmp_path / "x.tif", 12, 1, rows)
    assert seen(file)[..., 0].tolist() == [[255, 0, 128]] * 2
    with opened(file) as image:
        np.testing.assert_allclose(pixels(image, "it"), [[1, 0, 2056 / 4095]] * 2, rtol=1e-6)


def test_tiff_of_16_bits_whose_smallest_value_is_white_is_no_negative(tmp_path: Path) -> None:
    file = bare_tiff(tmp_path / "x.tif", 16, 0, WIDE.astype("<u2").tobytes())
    assert seen(file)[..., 0].tolist() == (255 - WIDE // 257).tolist()
    with opened(file) as image:
        np.testing.assert_allclose(pixels(image, "it"), 1 - WIDE / 65535, rtol=1e-6, atol=1e-7)


def test_transparent_value_of_16_bits_lies_on_white(tmp_path: Path) -> None:
    file = saved(Image.fromarray(WIDE), tmp_path / "x.png", transparency=257)
    assert seen(file)[..., 0].tolist() == [[0, 255, 255], [128, 50, 200]]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_picture_larger_than_pillow_takes_for_safe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(colour("L", 0), tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    assert f"{file} has 3x2 pixels, more than the 5" in message(lambda: seen(file))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)  # twice as many are an error of Pillow's own
    assert f"{file} cannot be read as an image (DecompressionBombError" in message(lambda: seen(file))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert seen(file).shape == (2, 3, 3)


def test_name_of_a_broken_file_is_shown_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a\nb\udcff\N{CAT FACE}.png"
    file.write_bytes(b"")
    text = message(lambda: seen(file))
    assert text.startswith(f"{tmp_path}/a\\nb\\udcff\N{CAT FACE}.png cannot be read as an image")
    text.encode()


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (colour("RGB", ORANGE), [200, 100, 50]),
        (colour("RGBA", (*ORANGE, 7)), [200, 100, 50, 7]),
        (colour("LA", (9, 7)), [9, 7]),
        (palette(), [200, 100, 50]),
        (colour("CMYK", (0, 255, 255, 0)), [255, 0, 0]),
        (colour("HSV", (1, 2, 3)), [1, 2, 3]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_picture_in_a_data_set_keeps_its_channels(image: Image.Image, channels: list[int]) -> None:
    assert pixels(image, "it")[0, 0].tolist() == channels


@pytest.mark.parametrize(("image", "value"), [(colour("L", 9), 9), (colour("1", 1), 255), (colour("F", 0.25), 0.25)])
def test_picture_of_one_channel_has_no_dimension_of_channels(image: Image.Image, value: float) -> None:
    assert pixels(image, "it").tolist() == [[value] * 3] * 2


def test_integers_of_32_bits_in_a_data_set_are_refused() -> None:
    assert "it is a picture of 32-bit or signed integers" in message(lambda: pixels(colour("I", 7), "it"))


def test_all_that_torchvision_takes_for_images_is_read() -> None:
    assert {*IMG_EXTENSIONS, ".gif"} <= picture_suffixes()
    assert ".pdf" not in picture_suffixes(), "Pillow writes it only"
    assert picture_suffixes() == {suffix.lower() for suffix in picture_suffixes()}
