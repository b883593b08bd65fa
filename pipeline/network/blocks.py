"""Blocks: one trainable layer each, with normalisation, nonlinearity, dropout and pooling. No loss, no optimizer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Block",
    "ConvBlock",
    "Dropout",
    "LinearBlock",
    "MaxPool",
    "OutputBlock",
    "SequentialBlock",
    "canonical",
    "nonlinearity_named",
    "normalized_convolution",
    "window_maxima",
]


_HARDLY_KEEPS = 0.99  # momentum of a batch norm beyond which what is left of its mean is mostly rounding in float32


def canonical(x: Tensor, channels_last: bool = True) -> Tensor:
    """`x` with the one memory layout that blocks hand on: NHWC for [B, C, H, W], row-major else. Copies if needed.

    Dimensions of size 1 leave strides open, and kernels are chosen by strides: they are fixed here too, so that a
    block sees the same strides whether its input came from a queue or from the block before.
    """
    if x.ndim == 4 and channels_last:
        rows = x.permute(0, 2, 3, 1).contiguous()
        return rows.view(-1).view(rows.shape).permute(0, 3, 1, 2)
    return x.contiguous().view(-1).view(x.shape)


class Block(nn.Module, ABC):
    """A layer that a local loss can train.

    `features` computes h, which the local loss sees; `hand_on` turns h into what the next block receives.
    """

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Activation that the local loss sees."""

    def hand_on(self, h: Tensor) -> Tensor:
        """Activation for the next block: dropout and pooling of h."""
        return h

    def forward(self, x: Tensor) -> Tensor:
        """One after the other, as in inference."""
        return self.hand_on(self.features(x))


def nonlinearity_named(name: str) -> nn.Module:
    """`relu`, `gelu`, or `leaky_relu` with slope 0.01."""
    if name == "gelu":
        return nn.GELU()
    return nn.LeakyReLU(0.01, inplace=True) if name == "leaky_relu" else nn.ReLU(inplace=True)


class Dropout(nn.Module):
    """Dropout of single values, or of whole feature maps with `maps`, drawing from the default generator.

    On a CPU the mask takes 16 bits of randomness a value instead of a 53-bit number, at a quarter of the time; the
    rate is rounded to 1/65536.
    """

    def __init__(self, rate: float, *, maps: bool = False) -> None:
        super().__init__()
        self.rate, self.maps = rate, maps

    def forward(self, x: Tensor) -> Tensor:
        """Scaled by 1 / (1 - rate) in training, the identity in evaluation."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout2d(x, self.rate) if self.maps else F.dropout(x, self.rate)
        shape = (*x.shape[:2], 1, 1) if self.maps else x.shape
        threshold = round(self.rate * 2**16)
        words = torch.empty((math.prod(shape) + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.int16)[: math.prod(shape)] >= threshold - 2**15
        return x * (keep.to(x.dtype) * (2**16 / (2**16 - threshold))).view(shape)

    def extra_repr(self) -> str:
        return f"{self.rate}, maps={self.maps}"


def window_maxima(x: Tensor) -> Tensor:
    """2x2 max pooling by a reduction over reshaped axes: [B, C, H, W] -> [B, C, H/2, W/2], channels_last.

    H and W must be even. Values are those of max_pool2d, with its NaN, but for the sign of a zero.
    """
    b, c, height, width = x.shape
    windows = x.permute(0, 2, 3, 1).view(b, height // 2, 2, width // 2, 2, c)
    return windows.amax(dim=(2, 4)).permute(0, 3, 1, 2)


class MaxPool(nn.MaxPool2d):
    """2x2 max pooling, [B, C, H, W] -> [B, C, H // 2, W // 2].

    On a GPU it writes no int64 index beside every value where no gradient is wanted: with them an H200 takes 98 us for
    128x256x32x32 in fp32, half as much again as for copying that. A CPU reduces over axes many times slower.
    """

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same values with and without a gradient."""
        even = x.shape[2] % 2 == x.shape[3] % 2 == 0
        if x.is_cuda and even and not torch.is_grad_enabled() and x.is_contiguous(memory_format=torch.channels_last):
            return window_maxima(x)
        return cast(Tensor, super().forward(x))


class _WithoutEffect(torch.autograd.Function):
    """An activation, and a parameter that does not change the loss: its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor) -> Tensor:
        ctx.save_for_backward(parameter)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.zeros_like(ctx.saved_tensors[0])


def normalized_convolution(x: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Convolution and batch norm of a training batch, whose mean takes the bias out again: it is never added.

    The running mean gets its share of the bias. On a GPU adding it, and summing up its gradient, which is zero but for
    rounding, are passes over the map of their own: 0.6 ms of the 5.4 of a vgg8b step on an H200. It is added where
    the norm keeps too little of its running mean to bring the share in by that.
    """
    bias, mean, momentum = convolution.bias, norm.running_mean, norm.momentum
    assert bias is not None and mean is not None and momentum is not None
    added = bias.detach() if momentum > _HARDLY_KEEPS else None
    maps = F.conv2d(x, convolution.weight, added, convolution.stride, cast(Any, convolution.padding))
    if added is None:
        with torch.no_grad():  # before the norm, which keeps it for its backward: (1 - momentum) of it will remain
            mean.add_(bias, alpha=momentum / (1 - momentum))
    return cast(Tensor, norm(_WithoutEffect.apply(maps, bias)))


class ConvBlock(Block):
    """Convolution, batch norm, nonlinearity | dropout of maps, 2x2 max pooling. [B, C, H, W] -> [B, C', H', W']."""

    def __init__(
        self, channels_in: int, channels: int, *, nonlinearity: str, dropout: float, pool: bool, stem_stride: int = 1
    ) -> None:
        super().__init__()
        kernel, padding = (7, 3) if stem_stride == 2 else (3, 1)
        self.encoder = nn.Conv2d(channels_in, channels, kernel, stride=stem_stride, padding=padding)
        self.bn = nn.BatchNorm2d(channels)
        self.nonlinearity = nonlinearity_named(nonlinearity)
        self.dropout = Dropout(dropout, maps=True)
        self.pool = MaxPool() if pool else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        if x.is_cuda and self.training:
            return cast(Tensor, self.nonlinearity(normalized_convolution(x, self.encoder, self.bn)))
        return cast(Tensor, self.nonlinearity(self.bn(self.encoder(x))))

    def hand_on(self, h: Tensor) -> Tensor:
        return cast(Tensor, self.pool(self.dropout(h)))


class LinearBlock(Block):
    """Fully connected layer, batch norm, nonlinearity | dropout. [B, ...] -> [B, F]; input is flattened as NCHW."""

    def __init__(self, features_in: int, features: int, *, nonlinearity: str, dropout: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(features_in, features)
        self.bn = nn.BatchNorm1d(features)
        self.nonlinearity = nonlinearity_named(nonlinearity)
        self.dropout = Dropout(dropout)

    def features(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.nonlinearity(self.bn(self.encoder(x.flatten(1)))))

    def hand_on(self, h: Tensor) -> Tensor:
        return cast(Tensor, self.dropout(h))


class OutputBlock(Block):
    """The output layer: class scores [B, K]. With `zero` its weights start at zero, as every local classifier's."""

    def __init__(self, features_in: int, classes: int, *, zero: bool) -> None:
        super().__init__()
        self.encoder = nn.Linear(features_in, classes)
        if zero:
            nn.init.zeros_(self.encoder.weight)

    def features(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(x.flatten(1)))


class SequentialBlock(Block):
    """Children of a user's `nn.Sequential`: the first `tap` of them give h, the others hand it on."""

    def __init__(self, children: Sequence[tuple[str, nn.Module]], tap: int) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(children[:tap]))
        self.tail = nn.Sequential(OrderedDict(children[tap:]))

    def features(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.body(x))

    def hand_on(self, h: Tensor) -> Tensor:
        return cast(Tensor, self.tail(h))
