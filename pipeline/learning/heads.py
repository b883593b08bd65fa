"""Local heads: what stands between an activation and its local loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.learning.ops import AveragePoolFunction, FeedbackAlignment

__all__ = [
    "AveragePool",
    "FeedbackLinear",
    "Pooling",
    "decoder_pooling",
    "similarity_head_for",
    "similarity_macs",
    "zero_weight",
]


class FeedbackLinear(nn.Module):
    """Linear layer trained by feedback alignment, [B, F] -> [B, P]. Weights and bias start at zero."""

    feedback: Tensor

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, features))
        self.bias = nn.Parameter(torch.zeros(outputs))
        bound = 1 / math.sqrt(features)
        self.register_buffer("feedback", torch.empty(outputs, features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # the backward knows the weights' own number format only
            x = x.to(self.weight.dtype)
            return cast(Tensor, FeedbackAlignment.apply(x, self.weight, self.bias, self.feedback))


class AveragePool(nn.Module):
    """Average pooling without overlap, [B, C, H, W] -> [B, C, H', W']. Padded zeros count, as in the reference."""

    def __init__(self, kernel: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.kernel, self.padding = kernel, padding

    def forward(self, h: Tensor) -> Tensor:
        return cast(Tensor, AveragePoolFunction.apply(h, self.kernel, self.padding))

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, padding={self.padding}"


@dataclass(frozen=True)
class Pooling:
    """Average pooling before a local classifier; a kernel of (1, 1) is none."""

    kernel: tuple[int, int]
    padding: tuple[int, int]

    def module(self) -> nn.Module:
        """The pooling layer."""
        return nn.Identity() if self.kernel == (1, 1) else AveragePool(self.kernel, self.padding)

    def outputs(self, channels: int, height: int, width: int) -> int:
        """Features after pooling and flattening."""
        sides = zip((height, width), self.kernel, self.padding, strict=True)
        return channels * math.prod((side + 2 * pad - k) // k + 1 for side, k, pad in sides)


def decoder_pooling(channels: int, height: int, width: int, limit: int) -> Pooling:
    """Pooling that brings feature maps down to `limit` features: height and width halve in turn until it fits."""
    kh = kw = 1
    rows, columns = height, width
    while channels * rows * columns > limit and (kh < height or kw < width):
        if kh < height:
            kh *= 2
            rows = math.ceil(height / kh)
        if channels * rows * columns > limit and kw < width:
            kw *= 2
            columns = math.ceil(width / kw)
    pad = (kh * (rows - height // kh) // 2, kw * (columns - width // kw) // 2)
    return Pooling((kh, kw), pad)


@dataclass(frozen=True)
class _Saving:
    """How a similarity head on feature maps is made cheaper than the paper's: less space, or fewer connections."""

    pool: int = 1
    stride: int = 1
    groups: int = 1

    @classmethod
    def named(cls, name: str, channels: int, side: int) -> _Saving:
        """Of a name in `config.SIMILARITY_HEADS` other than `none`, on maps whose shorter side is `side`."""
        kind, _, size = name.partition("-")
        factor, _, least = size.partition("x")
        if kind == "grouped":
            return cls(groups=math.gcd(channels, int(factor)))
        return cls() if kind == "conv" else cls(**{kind: _step(side, int(factor), int(least or 2))})


def similarity_head_for(shape: tuple[int, ...], name: str) -> nn.Module:
    """The layer before the similarity matrix, by its name in `config.SIMILARITY_HEADS`.

    The paper's is a 3x3 convolution with as many maps as the block, or a square matrix for flat activations. The
    cheap ones save on space, and leave flat activations the square matrix: `pool-4` averages 4x4 windows at most and
    leaves two rows at least, `pool-4x4` leaves four, `stride-4` skips likewise. `none` has no weights at all.
    """
    if len(shape) != 3:
        features = math.prod(shape)
        matrix = nn.Linear(features, features, bias=False)
        return nn.Flatten() if name == "none" else nn.Sequential(nn.Flatten(), matrix)
    if name == "none":
        return nn.Identity()
    channels, saving = shape[0], _Saving.named(name, shape[0], min(shape[1:]))
    convolution = nn.Conv2d(channels, channels, 3, stride=saving.stride, padding=1, groups=saving.groups, bias=False)
    return convolution if saving.pool == 1 else nn.Sequential(AveragePool((saving.pool, saving.pool)), convolution)


def similarity_macs(shape: tuple[int, ...], name: str) -> int:
    """Multiply-accumulates of one sample in the similarity head `name` on activations of `shape`."""
    features = math.prod(shape)
    if name == "none":
        return 0
    if len(shape) != 3:
        return features * features
    channels, height, width = shape
    saving = _Saving.named(name, channels, min(height, width))
    rows, columns = (-(-(side // saving.pool) // saving.stride) for side in (height, width))
    return 9 * channels * (channels // saving.groups) * rows * columns


def _step(side: int, wanted: int, least: int) -> int:
    """The largest of wanted, wanted / 2, ... 1 that leaves at least `least` of `side` rows; a deviation needs two."""
    return wanted if wanted == 1 or side // wanted >= least else _step(side, wanted // 2, least)


def zero_weight(layer: nn.Linear) -> nn.Linear:
    """Zero the weights, keep the bias's random start: the reference's initialisation of every classifier."""
    nn.init.zeros_(layer.weight)
    return layer
