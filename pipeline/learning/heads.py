"""Local heads: what stands between an activation and its local loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.learning.numerics import unmixed
from pipeline.learning.ops import AveragePoolFunction, FeedbackAlignment
from pipeline.network.spec import HeadBuilder

__all__ = [
    "SIMILARITY_HEADS",
    "AveragePool",
    "FeedbackLinear",
    "classifier_layer",
    "conv_head",
    "decoder_pool",
    "pooled_features",
    "pooled_head",
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
        with unmixed(x):  # the backward knows the weights' own number format only
            x = x.to(self.weight.dtype)
            return cast(Tensor, FeedbackAlignment.apply(x, self.weight, self.bias, self.feedback))


class AveragePool(nn.Module):
    """Average pooling without overlap, [B, C, H, W] -> [B, C, H', W']. Padded zeros count, as in the reference."""

    def __init__(self, kernel: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.kernel, self.padding = kernel, padding

    def forward(self, h: Tensor) -> Tensor:
        return cast(Tensor, AveragePoolFunction.apply(h, self.kernel, self.padding))


def decoder_pool(shape: tuple[int, ...], limit: int) -> nn.Module:
    """Pooling before a local classifier, down to `limit` features: height and width halve alternately until they fit.

    One value a map is the least, and activations other than [B, C, H, W] stay as they are.
    """
    if len(shape) != 3:
        return nn.Identity()
    channels, height, width = shape
    kh = kw = 1
    rows, columns = height, width
    while channels * rows * columns > limit and (kh < height or kw < width):
        if kh < height:
            kh *= 2
            rows = math.ceil(height / kh)
        if channels * rows * columns > limit and kw < width:
            kw *= 2
            columns = math.ceil(width / kw)
    padding = (kh * (rows - height // kh) // 2, kw * (columns - width // kw) // 2)
    return nn.Identity() if (kh, kw) == (1, 1) else AveragePool((kh, kw), padding)


def pooled_features(pool: nn.Module, shape: tuple[int, ...]) -> int:
    """Features that a pooling leaves of one sample's activation of `shape`."""
    pooled: Tensor = pool(torch.empty(1, *shape, device="meta"))
    return pooled.numel()


def classifier_layer(features: int, classes: int, *, zero: bool) -> nn.Linear:
    """The last layer of a local classifier; with `zero`, as in the reference, its weights start at zero."""
    layer = nn.Linear(features, classes)
    if zero:
        nn.init.zeros_(layer.weight)
    return layer


def conv_head(shape: tuple[int, ...]) -> nn.Module:
    """The paper's similarity head: a 3x3 convolution with as many maps, or a square matrix for flat activations."""
    if len(shape) == 3:
        return nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False)
    features = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, features, bias=False))


def pooled_head(shape: tuple[int, ...], window: int = 4, rows: int = 4) -> nn.Module:
    """The paper's head on means of windows, halved until they leave so many rows; on flat activations that alone."""
    head, side = conv_head(shape), min(shape[1:]) if len(shape) == 3 else 0
    while window > 1 and side // window < rows:
        window //= 2
    return head if window == 1 else nn.Sequential(AveragePool((window, window)), head)


SIMILARITY_HEADS: Mapping[str, HeadBuilder] = MappingProxyType({"conv": conv_head, "pool-4x4": pooled_head})
"""The layer before the similarity matrix, by its name for `--similarity-head`."""
