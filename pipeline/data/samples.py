"""What a user's data set may give as image and label: pictures, arrays and tensors become float32, labels int.

| given | becomes |
| --- | --- |
| uint8 (arrays and tensors), pictures | values scaled to [0, 1], by 65535 where the picture has 16 bits |
| bool | 0 and 1 |
| floating point of any width | the same values in float32, which must be finite there |
| other integers | refused: nobody can tell whether they are pixels, and of how many bits, or ids of tokens |

PIL images and arrays [H, W, C] become [C, H, W]; strides, byte order and read-only memory do not matter.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.images import reason_of, shown
from pipeline.data.pictures import pixels
from pipeline.errors import DataError

__all__ = [
    "check_classes",
    "check_dense",
    "check_finite",
    "check_image",
    "to_float",
    "to_image",
    "to_label",
    "to_labels",
]

_MOST_CLASSES = 1_000_000  # unless there are as many samples: an output layer of 1024 inputs then has 4 GB


def to_image(image: Any, where: str) -> Tensor:
    """float32, on the device that a tensor is on. Raises DataError that begins with `where`."""
    try:
        tensor = image.detach() if isinstance(image, Tensor) else _tensor_of(image, where)
    except DataError:
        raise
    except Exception as error:  # a broken file makes PIL raise nearly anything, and numpy knows many types
        raise DataError(
            f"{where} holds an image of {type(image).__name__} that cannot be read ({reason_of(error)}); mend or "
            "remove it"
        ) from error
    check_image(tensor, where)
    return to_float(tensor)


def _tensor_of(image: Any, where: str) -> Tensor:
    """[N] as it is, [H, W] and [H, W, C] as [C, H, W]."""
    array = image if isinstance(image, np.ndarray) else _pixels_of(image, where)
    if array is None or array.ndim > 3:
        raise DataError(
            f"{where} holds an image of {type(image).__name__}{_dimensions(image)}; give a tensor, a PIL image or an "
            "array [H, W, C]"
        )
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise DataError(f"{where} holds an array with masked values; fill them")
    tensor = torch.from_numpy(_as_torch_takes(array))
    if tensor.ndim < 2:
        return tensor
    return (tensor if tensor.ndim == 3 else tensor.unsqueeze(2)).permute(2, 0, 1).contiguous()


def _pixels_of(image: Any, where: str) -> np.ndarray[Any, Any] | None:
    pil = importlib.import_module("PIL.Image")
    return pixels(image, where) if isinstance(image, pil.Image) else None


def _as_torch_takes(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same values with strides, byte order and width that torch knows, in memory that may be written."""
    dtype = array.dtype
    if dtype.kind == "f" and dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # what overflows is found with all that is not finite
            return array.astype(np.float64)
    if dtype.isnative and array.flags.c_contiguous and array.flags.writeable:
        return array
    return np.array(array, dtype.newbyteorder("="), order="C")


def _dimensions(image: Any) -> str:
    return f" of {image.ndim} dimensions" if isinstance(image, np.ndarray) else ""


def check_image(image: Tensor, where: str) -> None:
    """Raise DataError if a sample's image is no dense tensor of numbers that a network takes."""
    check_dense(image, f"{where} holds an image whose tensor is")
    what = f"{where} holds an image of {_kind(image)} and shape {list(image.shape)}"
    if image.ndim == 0 or image.numel() == 0:
        raise DataError(f"{what}; give at least one dimension and one value")
    if not (image.is_floating_point() or image.dtype in (torch.uint8, torch.bool)):
        raise DataError(
            f"{what}; give uint8 (pixels from 0 to 255), bool or floating point. Embeddings of token ids are not "
            "supported: embed them in the data set"
        )


def check_dense(tensor: Tensor, what: str) -> None:
    """Raise DataError that begins with `what` for a tensor whose values do not simply lie in memory."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        kind = "nested" if tensor.is_nested else "on the meta device" if tensor.is_meta else tensor.layout
        raise DataError(f"{what} {kind}; give a dense one with values")


def to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images.to(torch.float32)


def check_finite(images: Tensor, indices: Tensor, name: str) -> None:
    """Raise DataError that names the first of these samples, float32 [N, ...], with a value that is not finite."""
    # The sum of anything that is not finite is not finite either; isfinite takes 30 times longer.
    if math.isfinite(float(images.sum())) or bool(images.isfinite().all()):
        return
    bad = int((~images.isfinite()).flatten(1).any(1).nonzero()[0])
    raise DataError(
        f"{name}[{int(indices[bad])}] is an image with values that are not finite in float32; mend or remove it"
    )


def to_label(label: Any, where: str) -> int:
    """The class. Raises DataError that begins with `where` unless it is one integer, counted from 0."""
    if isinstance(label, Tensor):
        check_dense(label, f"{where} has a label whose tensor is")
    if isinstance(label, Tensor | np.ndarray):
        if (label.numel() if isinstance(label, Tensor) else label.size) != 1:
            raise DataError(f"{where} has a label of shape {list(label.shape)}; give one integer, {_CLASS}")
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise DataError(f"{where} has label {shown(' '.join(repr(label).split()))[:80]}; give one integer, {_CLASS}")
    if label < 0:
        raise DataError(f"{where} has label {label}; number the classes from 0")
    return int(label)


_CLASS = "the class counted from 0 (of one-hot labels their argmax)"


def to_labels(labels: Tensor, name: str) -> Tensor:
    """int64 [N] on the CPU, of labels of any integer type, [N] or [N, 1]. Raises DataError as `to_label`."""
    check_dense(labels, f"labels of {name} are a tensor that is")
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not integers or labels.numel() != len(labels):
        raise DataError(
            f"labels of {name} are {_kind(labels)} of shape {list(labels.shape)}; give one integer per sample, "
            f"{_CLASS}"
        )
    labels = labels.reshape(-1).to("cpu", torch.int64)  # first: torch does little with unsigned ones
    if int(labels.min()) < 0:
        raise DataError(f"labels of {name} begin at {int(labels.min())}; number the classes from 0")
    return labels


def check_classes(classes: int, samples: int, name: str) -> None:
    """Raise DataError if labels go so high that they are no classes counted from 0 but, say, numbers of products."""
    if classes > max(_MOST_CLASSES, samples):
        raise DataError(
            f"labels of {name} go up to {classes - 1}, so that the network would tell {classes} classes apart; number "
            "the classes from 0 without gaps"
        )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
