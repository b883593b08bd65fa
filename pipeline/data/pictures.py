"""Pictures as pixels, whatever their mode: what a viewer shows of them, or an error that says why it cannot be told.

A picture of 12 or 16 bits is scaled by its whole range, a palette is looked up, CMYK becomes RGB, transparent pixels
lie on white, and of an animation the first frame counts.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.images import import_reader, reason_of, shown
from pipeline.errors import DataError

__all__ = ["opened", "picture_suffixes", "pixels", "to_rgb"]

Array = np.ndarray[Any, Any]

_BY_SIGHT = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})  # which Pillow opens, but cannot read
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF's tags
_SMALLEST_IS_WHITE = 0  # a value of the latter
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {  # its values, to names in PIL.Image.Transpose
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def picture_suffixes() -> frozenset[str]:
    """Endings, in small letters, of the files that Pillow reads."""
    pil = import_reader("PIL.Image", "image_folder")
    kinds = pil.registered_extensions().items()
    return frozenset(suffix for suffix, kind in kinds if kind in pil.OPEN and kind not in _BY_SIGHT) | {".mpo"}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The picture in a file. Raises DataError that names the file, also for what goes wrong while it is open."""
    pil = import_reader("PIL.Image", "image_folder")
    try:
        # Not by its name: Pillow would map an uncompressed TIFF file into memory, and mix up rows of a turned one.
        with path.open("rb") as file, pil.open(file) as image:
            _check_file(image, path, pil.MAX_IMAGE_PIXELS)
            yield image
    except DataError:
        raise
    except Exception as error:  # a broken file makes PIL raise nearly anything
        known = not isinstance(error, pil.UnidentifiedImageError)
        reason = reason_of(error) if known else "what is in it is of no kind that Pillow knows"
        raise DataError(f"{shown(path)} cannot be read as an image ({reason}); mend or remove it") from error


def _check_file(image: Any, path: Path, limit: int | None) -> None:
    if limit is not None and image.width * image.height > limit:
        raise DataError(
            f"{shown(path)} has {image.width}x{image.height} pixels, more than the {limit:,} that Pillow takes for "
            "safe; make it smaller or remove it"
        )
    if image.format == "TIFF" and image.n_frames > 1:
        raise DataError(
            f"{shown(path)} holds {image.n_frames} pages, any of which may be the image; save each that counts as a "
            "file of its own"
        )


def to_rgb(image: Any, where: str) -> Any:
    """The picture as opened, turned upright, in PIL's mode RGB. Raises DataError if its values have no known range."""
    return _in_rgb(_upright(image), image, where)


def pixels(image: Any, where: str) -> Array:
    """A PIL image as uint8, or float32 where it has more bits: [H, W] or [H, W, C].

    It is turned upright as its EXIF data ask if it is just as opened; one that was worked on is taken as it is. The
    channels are those of its mode (alpha too), RGB for palettes and CMYK. Raises DataError as `to_rgb`.
    """
    source = image
    if image.format is not None:
        image = _upright(image)
    wide = _wide_grey(image, source)
    if wide is not None:
        return wide
    if image.mode in ("CMYK", "P", "PA"):
        image = _in_rgb(image, source, where)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "I":
        raise _no_range(image, where)
    return np.asarray(image)


def _in_rgb(image: Any, source: Any, where: str) -> Any:
    pil = importlib.import_module("PIL.Image")
    wide = _wide_grey(image, source)
    if wide is not None:
        grey, clear = (wide * 255).round().astype(np.uint8), image.info.get("transparency")
        if isinstance(clear, int):
            grey[np.asarray(image) == clear] = 255
        return pil.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise _no_range(image, where)
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = pil.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _no_range(image: Any, where: str) -> DataError:
    kind = {"I": "32-bit or signed integers", "F": "floating point values"}[image.mode]
    return DataError(
        f"{where} is a picture of {kind} (Pillow's mode {image.mode}), whose range nobody can tell; save it with 8 or "
        "16 bits a channel"
    )


def _wide_grey(image: Any, source: Any) -> Array | None:
    """Grey values of 12 or 16 bits scaled to [0, 1], float32 [H, W]; None for any other picture.

    `source` is the picture as opened, which alone knows of what its file says.
    """
    # Both formats end at 16 bits, which some versions of Pillow open in the wider mode.
    if not (image.mode.startswith("I;16") or (image.mode == "I" and source.format in ("PNG", "PPM"))):
        return None
    tags = getattr(source, "tag_v2", {})  # of TIFF; Pillow heeds neither of these two in this mode
    (bits,) = tags.get(_BITS_PER_SAMPLE, (16,))
    values = np.asarray(image).astype(np.float32) / np.float32(2**bits - 1)
    return 1 - values if tags.get(_PHOTOMETRIC) == _SMALLEST_IS_WHITE else values


def _upright(image: Any) -> Any:
    image.load()  # first: some formats turn themselves while loading
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # EXIF data that cannot be read leave the picture as it is
        return image
    return image if turn is None else image.transpose(getattr(importlib.import_module("PIL.Image").Transpose, turn))
