"""A run's `model.safetensors` and `exits.safetensors`, whatever may have become of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.errors import DataError, first_line
from pipeline.text import brief, shown

__all__ = ["Weights", "read_weights"]

_LONGEST_HEADER = 100_000_000  # bytes, as in the library
_ODD = (ValueError, TypeError, LookupError, AttributeError)  # of a header that is JSON, but of another form


@dataclass(frozen=True)
class Weights:
    """What the file holds: tensors by `<block index>.<name>`, and what is known of the network."""

    tensors: Mapping[str, Tensor]
    known: Mapping[str, str]

    def sizes(self, where: str, axes: int | None = 3) -> tuple[tuple[int, ...], int]:
        """Shape of a sample, of so many `axes` or of any number, and number of classes.

        Raises DataError where the file does not say them.
        """
        try:
            shape = tuple(int(side) for side in self.known["input_shape"].split(","))
            classes = int(self.known["classes"])
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{where} does not say what it is the network for ({brief(str(error))}); give a run's own"
            ) from error
        fits = axes is None or len(shape) == axes
        if not fits or not all(0 < number < 1 << 31 for number in (*shape, classes)):
            raise DataError(
                f"{where} is for images of {shown(list(shape))} and {shown(classes)} classes, which cannot be"
            )
        return shape, classes


def read_weights(path: Path) -> Weights:
    """Read a file. Raises DataError if it is missing, damaged, or holds what is no number."""
    try:
        if not path.is_file():  # a pipe would wait
            raise OSError("it is missing" if not path.exists() else "it is no ordinary file")
        _check_length(path)
        data = path.read_bytes()  # the library opens no path that is not UTF-8
        tensors = load(data)
        known = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (OSError, SafetensorError, MemoryError, RecursionError, *_ODD) as error:
        raise DataError(
            f"{path.parent} holds no finished run ({path.name}: {brief(first_line(error))}); give the folder of a run "
            "that has ended"
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):  # infinities may be a mask
            raise DataError(
                f"{path} holds what is no number, in {brief(name)}; give the weights of a run that has not diverged"
            )
    return Weights(tensors, known)


def _check_length(path: Path) -> None:
    """Raise ValueError unless the file is as long as its header says, before it takes memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > min(size, _LONGEST_HEADER):
            raise ValueError("the header is cut off")
        header = json.loads(file.read(length))
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if size != 8 + length + end:
        raise ValueError(f"it has {size} bytes, not the {brief(str(8 + length + end))} of its header")
