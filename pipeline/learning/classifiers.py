"""Local classifiers that are more than a layer: small networks on what a segment hands on.

Shapes: B batch, C channels, H height, W width, F features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pipeline.learning.heads import classifier_layer
from pipeline.network.fastnet import FastBlock, FastOutput

__all__ = [
    "CLASSIFIERS",
    "AdaptiveMeans",
    "GlobalMax",
    "copy_classifier",
    "fast_copy_classifier",
    "mlp_sr_classifier",
]

ClassifierBuilder = Callable[[tuple[int, ...], int, bool], nn.Module]
"""From the shape of what one sample's block hands on, the number of classes, and whether the last weights are zero."""

_FEWEST = 32  # units or channels of a hidden layer
_SIDE = 7  # larger maps are halved before they are copied on


class AdaptiveMeans(nn.Module):
    """Means over as equal windows as can be, [B, C, H, W] -> [B, C, rows, columns], as adaptive average pooling.

    Two matrix products: on a GPU the backward of torch's own adds up in no fixed order.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("rows", _means(height, rows))
        self.register_buffer("columns", _means(width, columns))

    def forward(self, h: Tensor) -> Tensor:
        return self.rows.to(h.dtype) @ h @ self.columns.to(h.dtype).T


def _means(size: int, windows: int) -> Tensor:
    """[windows, size]: what each place adds to the mean of each window."""
    weights = torch.zeros(windows, size, device="cpu")
    for index in range(windows):
        start, end = index * size // windows, -(-(index + 1) * size // windows)
        weights[index, start:end] = 1 / (end - start)
    return weights.to(torch.get_default_device())


class GlobalMax(nn.Module):
    """The largest value of every map, [B, C, H, W] -> [B, C]; equal ones share the gradient, in a fixed order."""

    def forward(self, h: Tensor) -> Tensor:
        return h.amax(dim=(2, 3))


def mlp_sr_classifier(shape: tuple[int, ...], classes: int, zero: bool) -> nn.Module:
    """Belilovsky et al. 2020 (DGL), "MLP-SR": the map reduced to a quarter of its side, three 1x1 convolutions, means
    over 2x2 windows, three hidden layers. On flat features one hidden layer of a sixteenth.
    """
    if len(shape) != 3:
        features = math.prod(shape)
        hidden = max(_FEWEST, features // 16)
        return nn.Sequential(
            nn.Flatten(), *_dense(features, hidden, nn.ReLU), classifier_layer(hidden, classes, zero=zero)
        )
    channels, height, width = shape
    rows, columns = -(-height // 4), -(-width // 4)
    maps = [layer for _ in range(3) for layer in _convolution(channels, channels, 1, nn.ReLU)]
    features = 4 * channels
    hidden_layers = [layer for _ in range(3) for layer in _dense(features, features, nn.ReLU)]
    return nn.Sequential(
        AdaptiveMeans(height, width, rows, columns),
        *maps,
        AdaptiveMeans(rows, columns, 2, 2),
        nn.Flatten(),
        *hidden_layers,
        classifier_layer(features, classes, zero=zero),
    )


def copy_classifier(shape: tuple[int, ...], classes: int, zero: bool) -> nn.Module:
    """A small network like what follows, after AugLocal (Ma et al. 2024): three 3x3 convolutions with half of the
    channels, a max pooling after the first, global maxima, a layer. On flat features two layers of half the width.
    """
    if len(shape) != 3:
        features = math.prod(shape)
        hidden = max(_FEWEST, features // 2)
        layers = [*_dense(features, hidden, nn.GELU), *_dense(hidden, hidden, nn.GELU)]
        return nn.Sequential(nn.Flatten(), *layers, classifier_layer(hidden, classes, zero=zero))
    hidden, reduced, side = _copied(shape)
    return nn.Sequential(
        *reduced,
        *_convolution(shape[0], hidden, 3, nn.GELU),
        *([nn.MaxPool2d(2)] if side > 1 else []),
        *_convolution(hidden, hidden, 3, nn.GELU),
        *_convolution(hidden, hidden, 3, nn.GELU),
        GlobalMax(),
        classifier_layer(hidden, classes, zero=zero),
    )


def fast_copy_classifier(shape: tuple[int, ...], classes: int, zero: bool) -> nn.Module:
    """`copy_classifier` of fastnet's blocks: pooled before the norm, norms without a scale, a start as the identity.

    Its scores are a ninth of their layer's, which stands rates that the copy does not. Flat features get a copy.
    """
    if len(shape) != 3:
        return copy_classifier(shape, classes, zero)
    hidden, reduced, side = _copied(shape)
    block, last = partial(FastBlock, channels=hidden, nonlinearity="gelu", dropout=0.0), FastOutput(hidden, classes)
    if zero:
        nn.init.zeros_(last.encoder.weight)
    return nn.Sequential(
        *reduced,
        block(shape[0], pool=side > 1),
        block(hidden, pool=False),
        block(hidden, pool=False, last=True),
        last,
    )


def _copied(shape: tuple[int, ...]) -> tuple[int, list[nn.Module], int]:
    """Channels of a copy, what makes large maps smaller, and the side of what that leaves."""
    channels, height, width = shape
    side = min(height, width)
    hidden = max(_FEWEST, channels // 2)
    return (hidden, [nn.AvgPool2d(2)], side // 2) if side > _SIDE else (hidden, [], side)


def _convolution(
    channels_in: int, channels: int, kernel: int, nonlinearity: Callable[[], nn.Module]
) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nonlinearity()]


def _dense(features_in: int, features: int, nonlinearity: Callable[[], nn.Module]) -> list[nn.Module]:
    return [nn.Linear(features_in, features, bias=False), nn.BatchNorm1d(features), nonlinearity()]


CLASSIFIERS: Mapping[str, ClassifierBuilder] = MappingProxyType(
    {"mlp-sr": mlp_sr_classifier, "copy": copy_classifier, "fast-copy": fast_copy_classifier}
)
"""By their names for `--classifier`; the paper's, `linear`, is a layer on the map before the pooling."""
