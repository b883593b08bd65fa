"""Residual networks as blocks: a residual block is one block, with its local loss at its end."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from pipeline.network.blocks import Block, Dropout, nonlinearity_named

__all__ = ["EXPANSION", "ResidualBlock", "WideBlock"]

EXPANSION = {"basic": 1, "bottleneck": 4, "wide": 1}
"""What a block hands on in channels of its inner convolutions."""


def _convolution(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class _Every(nn.Module):
    """Every `stride`-th row and column of a map.

    Before a 1x1 convolution it is that with a stride, whose backward of few channels corrupts memory on a CPU in
    torch 2.14 (4 to 8 channels, 28x28).
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride]


def _matching(channels_in: int, channels: int, stride: int) -> list[nn.Module]:
    return [_Every(stride), _convolution(channels_in, channels, 1)]


class _Summing(Block):
    """What both kinds hand on: dropout of maps, and the mean over the map where the network's convolutions end."""

    def __init__(self, dropout: float, last: bool) -> None:
        super().__init__()
        self.dropout, self.last = Dropout(dropout, maps=True), last

    def hand_on(self, h: Tensor) -> Tensor:
        h = self.dropout(h)
        return h.mean((2, 3)) if self.last else h


class ResidualBlock(_Summing):
    """Convolutions and a shortcut, added, then a nonlinearity (He et al. 2016). [B, C, H, W] -> [B, C', H', W'].

    Args:
        kind: `basic`, two 3x3 convolutions, or `bottleneck`, 1x1, 3x3 and 1x1 to four times the channels.
        stride: of the first 3x3 convolution, and of the shortcut.
        last: hands on the mean over the map, [B, C'].
    """

    def __init__(
        self, kind: str, channels_in: int, channels: int, *, stride: int, nonlinearity: str, dropout: float, last: bool
    ) -> None:
        super().__init__(dropout, last)
        out = channels * EXPANSION[kind]
        plan = {
            "basic": ((3, stride, channels), (3, 1, channels)),
            "bottleneck": ((1, 1, channels), (3, stride, channels), (1, 1, out)),
        }[kind]
        layers: list[nn.Module] = []
        before = channels_in
        for kernel, step, after in plan:
            layers += [nonlinearity_named(nonlinearity)] if layers else []
            layers += [_convolution(before, after, kernel, step), nn.BatchNorm2d(after)]
            before = after
        self.body = nn.Sequential(*layers)
        same = stride == 1 and channels_in == out
        layers = [] if same else [*_matching(channels_in, out, stride), nn.BatchNorm2d(out)]
        self.shortcut = nn.Sequential(*layers)
        self.nonlinearity = nonlinearity_named(nonlinearity)

    def features(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.nonlinearity(self.body(x) + self.shortcut(x)))


class WideBlock(_Summing):
    """Norm and nonlinearity before each of two 3x3 convolutions (Zagoruyko & Komodakis 2016).

    Arguments as for `ResidualBlock`; the `last` one has the norm and nonlinearity that end the network, too.
    """

    def __init__(
        self, channels_in: int, channels: int, *, stride: int, nonlinearity: str, dropout: float, last: bool
    ) -> None:
        super().__init__(dropout, last)
        self.before = nn.Sequential(nn.BatchNorm2d(channels_in), nonlinearity_named(nonlinearity))
        self.body = nn.Sequential(
            _convolution(channels_in, channels, 3, stride),
            nn.BatchNorm2d(channels),
            nonlinearity_named(nonlinearity),
            _convolution(channels, channels, 3),
        )
        same = stride == 1 and channels_in == channels
        self.shortcut = None if same else nn.Sequential(*_matching(channels_in, channels, stride))
        self.end = nn.Sequential(nn.BatchNorm2d(channels), nonlinearity_named(nonlinearity)) if last else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        ready = self.before(x)
        beside = x if self.shortcut is None else self.shortcut(ready)
        return cast(Tensor, self.end(self.body(ready) + beside))
