"""A run's `model.safetensors`, whatever may have become of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.errors import DataError, first_line

__all__ = ["Weights", "read_weights"]


@dataclass(frozen=True)
class Weights:
    """What the file holds: tensors by `<block index>.<name>`, and what is known of the network."""

    tensors: Mapping[str, Tensor]
    known: Mapping[str, str]

    def sizes(self, where: str) -> tuple[tuple[int, ...], int]:
        """Shape of an image, and number of classes. Raises DataError where the file does not say them."""
        try:
            shape = tuple(int(side) for side in self.known["input_shape"].split(","))
            classes = int(self.known["classes"])
        except (KeyError, ValueError) as error:
            raise DataError(f"{where} does not say what it is the network for ({error}); give a run's own") from error
        if len(shape) != 3 or not all(0 < number < 1 << 31 for number in (*shape, classes)):
            raise DataError(f"{where} is for images of {list(shape)} and {classes} classes, which cannot be")
        return shape, classes


def read_weights(path: Path) -> Weights:
    """Read a file. Raises DataError if it is missing, damaged, or holds what is no number."""
    try:
        if not path.is_file():  # a pipe would wait
            raise OSError("it is missing" if not path.exists() else "it is no ordinary file")
        data = path.read_bytes()  # the library opens no path that is not UTF-8
        tensors = load(data)
        known = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (OSError, SafetensorError, ValueError, KeyError, RecursionError, AttributeError) as error:
        raise DataError(
            f"{path.parent} holds no finished run ({path.name}: {first_line(error)}); give the folder of a run that "
            "has ended"
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):  # infinities may be a mask
            raise DataError(
                f"{path} holds what is no number, in {name}; give the weights of a run that has not diverged"
            )
    return Weights(tensors, known)
