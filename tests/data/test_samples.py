"""One sample: every array, tensor and picture that is an image, every integer that is a label, and what is neither."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import functional

from pipeline.data.samples import check_classes, check_finite, to_image, to_label, to_labels
from tests.support.data import message

RAMP = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)  # rows, columns, channels


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array",
    [
        RAMP,
        RAMP[:, :, ::-1],
        RAMP[::-1],
        RAMP[:, ::2],
        RAMP.transpose(1, 0, 2),
        np.asfortranarray(RAMP),
        read_only(RAMP),
        np.broadcast_to(RAMP[:1], (2, 4, 3)),
        RAMP[:, :, 0],
    ],
    ids=["plain", "BGR", "upside down", "sliced", "transposed", "by columns", "read-only", "broadcast", "grey"],
)
def test_array_of_any_layout_is_what_torchvision_makes_of_a_plain_copy(array: np.ndarray[Any, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = to_image(array, "it")
    assert torch.equal(image, functional.to_tensor(array.copy())) and image.is_contiguous()
    assert image.dtype is torch.float32


@pytest.mark.parametrize("kind", [">f4", "<f4", ">f8", "f2", "longdouble", "?"])
@pytest.mark.parametrize("turned", [False, True])
def test_numbers_of_any_width_and_byte_order_keep_their_values(kind: str, turned: bool) -> None:
    values = np.array([0, 1, 0, 1, 1], np.float64) if kind == "?" else np.array([0.5, -2, 1e-3, 7, 0], kind)
    signal = values.astype(kind)[::-1] if turned else values.astype(kind)
    assert torch.equal(to_image(signal, "it"), torch.from_numpy(signal.astype(np.float32)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.bool])
def test_tensor_of_another_floating_type_becomes_float32(dtype: torch.dtype) -> None:
    image = to_image(torch.tensor([0.0, 1.0]).to(dtype), "it")
    assert image.dtype is torch.float32 and image.tolist() == [0.0, 1.0]


def test_tensor_with_a_graph_or_of_a_subclass_is_read() -> None:
    assert not to_image(torch.ones(3, requires_grad=True), "it").requires_grad
    wrapped = tv_tensors.Image(torch.full((3, 2, 2), 51, dtype=torch.uint8))
    torch.testing.assert_close(torch.stack([to_image(wrapped, "it")]), torch.full((1, 3, 2, 2), 0.2))


def test_pictures_are_what_torchvision_makes_of_them_where_it_is_right() -> None:
    for mode in ("L", "RGB", "RGBA", "LA", "1", "HSV", "YCbCr"):
        picture = (
            Image.fromarray(RAMP).convert(mode) if mode != "LA" else Image.fromarray(RAMP).convert("L").convert(mode)
        )
        assert torch.equal(to_image(picture, "it"), functional.to_tensor(picture)), mode


def test_picture_of_16_bits_is_scaled_to_1() -> None:
    grey = Image.fromarray(np.array([[0, 13107, 65535]], np.uint16))
    torch.testing.assert_close(to_image(grey, "it"), torch.tensor([[[0.0, 0.2, 1.0]]]))


INTEGERS = ["int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_other_integers_are_refused_with_one_word_on_token_ids(kind: str, as_tensor: bool) -> None:
    ids = torch.zeros(12, dtype=getattr(torch, kind)) if as_tensor else np.zeros(12, kind)
    assert message(lambda: to_image(ids, "train_data[0]")) == (
        f"train_data[0] holds an image of {kind} and shape [12]; give uint8 (pixels from 0 to 255), bool or floating "
        "point. Embeddings of token ids are not supported: embed them in the data set"
    )


def nested() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype, says torch
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((2, 3, 4, 1)), "it holds an image of ndarray of 4 dimensions; give a tensor"),
        (np.float32(1), "it holds an image of float32; give a tensor"),
        (np.array(1.0), "it holds an image of float64 and shape []"),
        (np.zeros((0, 3)), "shape [1, 0, 3]; give at least one dimension and one value"),
        (torch.zeros(3, 0), "shape [3, 0]; give at least one dimension and one value"),
        (torch.zeros(3, dtype=torch.complex64), "it holds an image of complex64"),
        (torch.eye(3).to_sparse(), "it holds an image whose tensor is torch.sparse_coo; give a dense one"),
        (torch.zeros(3, device="meta"), "it holds an image whose tensor is on the meta device; give"),
        (nested(), "it holds an image whose tensor is nested; give"),
        (np.array(["a", "b"]), "it holds an image of ndarray that cannot be read (TypeError: "),
        (np.array([{}, None]), "it holds an image of ndarray that cannot be read (TypeError: "),
        (np.ma.masked_array([1.0, 2.0], [False, True]), "it holds an array with masked values; fill them"),
        ([0.0, 1.0], "it holds an image of list; give a tensor, a PIL image or an array [H, W, C]"),
        (None, "it holds an image of NoneType"),
        (Image.new("I", (2, 2)), "it is a picture of 32-bit or signed integers"),
    ],
)
def test_what_is_no_image_is_told(image: Any, words: str) -> None:
    assert words in message(lambda: to_image(image, "it"))


def test_picture_that_breaks_off_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:1000])
    with Image.open(file) as picture:
        text = message(lambda: to_image(picture, "it"))
    assert text.startswith("it holds an image of PngImageFile that cannot be read (OSError: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_first_sample_that_is_not_finite_is_named(value: float) -> None:
    images = torch.zeros(4, 3, 2)
    check_finite(images, torch.arange(4), "train_data")
    images[2:, 1, 1] = value
    text = message(lambda: check_finite(images, torch.tensor([9, 8, 17, 5]), "train_data"))
    assert text == "train_data[17] is an image with values that are not finite in float32; mend or remove it"


def test_finite_values_whose_sum_is_not_are_taken() -> None:
    check_finite(torch.full((4, 3), 3e38), torch.arange(4), "train_data")


@pytest.mark.parametrize(
    "label",
    [
        3,
        *(np.dtype(kind).type(3) for kind in [*INTEGERS, "uint8"]),
        *(torch.tensor(3, dtype=getattr(torch, kind)) for kind in [*INTEGERS, "uint8"]),
        np.array(3),
        torch.tensor([3]),
        np.array([[3]], ">i2"),
    ],
    ids=str,
)
def test_every_integer_is_a_label(label: Any) -> None:
    assert to_label(label, "it") == 3 and type(to_label(label, "it")) is int


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (2.0, "it has label 2.0; give one integer, the class counted from 0"),
        (np.float32(2), "it has label np.float32(2.0); give one integer"),
        (torch.tensor(2.0), "it has label 2.0; give one integer"),
        (True, "it has label True; give one integer"),
        (np.bool_(True), "it has label np.True_; give one integer"),
        (torch.tensor(True), "it has label True; give one integer"),
        ("cat", "it has label 'cat'; give one integer"),
        (None, "it has label None; give one integer"),
        (
            [0, 1, 0],
            "it has label [0, 1, 0]; give one integer, the class counted from 0 (of one-hot labels their argmax)",
        ),
        (torch.eye(9)[2], "it has a label of shape [9]; give one integer, the class counted from 0 (of one-hot"),
        (np.zeros((64, 64)), "it has a label of shape [64, 64]"),
        ("\n" * 99, "it has label '"),
        (-1, "it has label -1; number the classes from 0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_label_is_told(label: Any, words: str) -> None:
    assert words in message(lambda: to_label(label, "it"))


@pytest.mark.parametrize("kind", [*INTEGERS, "uint8"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_labels_of_every_integer_type_are_read_together(kind: str, shape: tuple[int, ...]) -> None:
    labels = to_labels(torch.tensor([0, 2, 1]).to(getattr(torch, kind)).reshape(shape), "train_data")
    assert labels.dtype is torch.int64 and labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize("labels", [torch.eye(3), torch.eye(3).long(), torch.zeros(3), torch.zeros(3).bool()])
def test_labels_that_are_no_classes_are_told_with_the_remedy(labels: Tensor) -> None:
    text = message(lambda: to_labels(labels, "train_data"))
    assert text.startswith(f"labels of train_data are {str(labels.dtype)[6:]} of shape {list(labels.shape)}; give one")
    assert "argmax" in text


def labels_without_values() -> list[Tensor]:
    labels = torch.tensor([0, 2, 1])
    return [labels.to_sparse(), labels.to("meta"), nested().long()]


@pytest.mark.parametrize("labels", labels_without_values(), ids=["sparse", "meta", "nested"])
def test_labels_in_a_tensor_that_is_not_dense_are_told(labels: Tensor) -> None:
    text = message(lambda: to_labels(labels, "train_data"))
    assert text.startswith("labels of train_data are a tensor that is ") and text.endswith(
        "; give a dense one with values"
    )
    text = message(lambda: to_label(labels, "it"))
    assert text.startswith("it has a label whose tensor is ") and text.endswith("; give a dense one with values")


def test_labels_that_are_no_numbers_of_classes_are_told() -> None:
    check_classes(1_000_000, 5, "train_data")
    check_classes(3_000_000, 4_000_000, "train_data")
    text = message(lambda: check_classes(10**9 + 1, 40, "train_data"))
    assert text.startswith("labels of train_data go up to 1000000000") and "from 0 without gaps" in text
