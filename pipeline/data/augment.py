"""Flip, crop, normalisation and cutout of whole batches, on the batch's device: uint8 in, float32 out.

Suffixes: N images, H rows, W columns, C channels. Images are stored N, H, W, C, so that the result, viewed as
N, C, H, W, already lies in memory the way convolutions like it (channels_last).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation", "augment", "normalize"]


@dataclass(frozen=True)
class Augmentation:
    """How training images are altered; every draw is per image."""

    crop_padding: int = 0
    """Black pixels added on each side before a window of the original size is cut out at random."""
    flip: bool = False
    """Mirror left to right with probability one half."""
    cutout: int = 0
    """Side in pixels of a square hole whose centre lies anywhere in the image, 0 is off (DeVries & Taylor 2017)."""
    crop_to: int | None = None
    """Side of the square window where the stored images are larger than what the network sees."""


def augment(
    images_NHWC: Tensor,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: torch.Generator,
) -> Tensor:
    """A training batch, float32 [N, C, H, W], channels_last: random flip, random crop, normalisation, cutout.

    Args:
        images_NHWC: uint8.
        mean, std: per channel, of values scaled to [0, 1].
        generator: on the CPU, so that every kind of device gets the same draws.
    """
    count, rows, columns, _ = images_NHWC.shape
    padding, device = augmentation.crop_padding, images_NHWC.device
    height = augmentation.crop_to or rows
    width = augmentation.crop_to or columns
    places = (rows + 2 * padding - height + 1, columns + 2 * padding - width + 1)
    # One number per image, int64 [N]; all are drawn whatever is used, so that cutout leaves the crops as they are.
    top, left, mirrored, hole_row, hole_column = (
        torch.randint(high, (count,), generator=generator) for high in (*places, 2, height, width)
    )
    if augmentation.flip:
        images_NHWC = _mirror(images_NHWC, mirrored)
    if places != (1, 1):
        frame = (0, 0, padding, padding, padding, padding)
        images_NHWC = F.pad(images_NHWC, frame) if padding else images_NHWC
        images_NHWC = _windows(images_NHWC.contiguous(), top.to(device), left.to(device), height, width)
    values_NHWC = _scale(images_NHWC, mean, std)
    if augmentation.cutout:
        _cut_holes(values_NHWC, hole_row.to(device), hole_column.to(device), augmentation.cutout)
    return values_NHWC.permute(0, 3, 1, 2)


def normalize(
    images_NHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...], crop_to: int | None = None
) -> Tensor:
    """An evaluation batch, float32 [N, C, H, W], channels_last: the centre window, normalised; nothing random."""
    if crop_to is not None:
        top, left = (images_NHWC.shape[1] - crop_to) // 2, (images_NHWC.shape[2] - crop_to) // 2
        images_NHWC = images_NHWC[:, top : top + crop_to, left : left + crop_to]
    return _scale(images_NHWC, mean, std).permute(0, 3, 1, 2)


def _mirror(images_NHWC: Tensor, mirrored: Tensor) -> Tensor:
    chosen = mirrored.nonzero().squeeze(1).to(images_NHWC.device)
    return images_NHWC.index_copy(0, chosen, images_NHWC.index_select(0, chosen).flip(2))


def _windows(images_NHWC: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cut one window out of each image.

    A window's row is a run of width * C bytes, so all rows are fetched by one selection from the (overlapping) view of
    every such run. Selecting pixel by pixel is 20 times slower on a CPU.
    """
    count, rows, columns, channels = images_NHWC.shape
    run = width * channels
    device = images_NHWC.device
    image = torch.arange(count, device=device).unsqueeze(1)
    row = image * rows + top.unsqueeze(1) + torch.arange(height, device=device)  # [N, height]
    start = (row * columns + left.unsqueeze(1)) * channels
    runs = images_NHWC.as_strided((images_NHWC.numel() - run + 1, run), (1, 1))
    return runs.index_select(0, start.flatten()).view(count, height, width, channels)


def _scale(images_NHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """((x / 255) - mean) / std, in this order: torchvision's ToTensor and Normalize to the bit."""
    count, rows, columns, channels = images_NHWC.shape
    pixels, device = rows * columns, images_NHWC.device
    # Whole images as rows: a trailing dimension of 3 would leave vector units idle (10 times slower).
    values = images_NHWC.reshape(count, pixels * channels).to(torch.float32)
    # By a tensor: CUDA divides by a Python number through its reciprocal, which rounds otherwise than the CPU.
    values.div_(_tiled((255.0,), 1, device))
    values.sub_(_tiled(mean, pixels, device)).div_(_tiled(std, pixels, device))
    return values.view(count, rows, columns, channels)


@functools.lru_cache(maxsize=16)
def _tiled(values: tuple[float, ...], pixels: int, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).repeat(pixels)


def _cut_holes(values_NHWC: Tensor, row: Tensor, column: Tensor, side: int) -> None:
    """Set one square per image to 0, the mean, in place; what lies outside the image is clipped.

    Clipped positions are moved to the nearest edge: the hole holds that edge already, since its centre is inside.
    """
    count, rows, columns, channels = values_NHWC.shape
    device = values_NHWC.device
    offsets = torch.arange(side, device=device) - side // 2
    hole_rows = (row.unsqueeze(1) + offsets).clamp_(0, rows - 1).unsqueeze(2)  # [N, side, 1]
    hole_columns = (column.unsqueeze(1) + offsets).clamp_(0, columns - 1).unsqueeze(1)  # [N, 1, side]
    image = torch.arange(count, device=device).view(-1, 1, 1)
    pixels = (image * rows + hole_rows) * columns + hole_columns
    values_NHWC.view(-1, channels).index_fill_(0, pixels.flatten(), 0.0)
