"""A small network that learns fast, after the public CIFAR-10 speed records (Jordan 2024, "airbench").

Pooling before the norm, GELU, a frozen whitening of 2x2 patches first, convolutions that begin as the identity.
Shapes: B batch, C channels, H height, W width, K classes, N images.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.network.blocks import Block, Dropout, MaxPool, nonlinearity_named

__all__ = ["WHITENING_IMAGES", "FastBlock", "FastOutput", "WhiteningBlock", "patch_whitening"]

WHITENING_IMAGES = 5000
"""Training images that the whitening is computed from."""

_PATCH = 2
_FLOOR = 5e-4  # added to the variances of patches
_LOGITS = 1 / 9
_CHUNK = 500  # images whose patches are in memory at once


class FastBlock(Block):
    """3x3 convolution, 2x2 max pooling, batch norm without a scale, nonlinearity | dropout of maps.

    [B, C, H, W] -> [B, C', H', W'], or [B, C'], the maxima of the maps, from the `last` one. The first filters begin
    as the identity, as many as there are input channels.
    """

    def __init__(
        self, channels_in: int, channels: int, *, nonlinearity: str, dropout: float, pool: bool, last: bool = False
    ) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        if not self.encoder.weight.is_meta:
            nn.init.dirac_(self.encoder.weight[:channels_in].data)
        self.pool = MaxPool() if pool else nn.Identity()
        self.bn = nn.BatchNorm2d(channels)
        self.bn.weight.requires_grad_(False)
        self.nonlinearity = nonlinearity_named(nonlinearity)
        self.dropout, self.last = Dropout(dropout, maps=True), last

    def features(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.nonlinearity(self.bn(self.pool(self.encoder(x)))))

    def hand_on(self, h: Tensor) -> Tensor:
        h = self.dropout(h)
        return h.amax((2, 3)) if self.last else h


class WhiteningBlock(FastBlock):
    """The first block: patches of 2x2 pixels without correlation, fixed by `prepare`, then what any of them has."""

    whitening: Tensor

    def __init__(self, channels_in: int, channels: int, *, nonlinearity: str, dropout: float, pool: bool) -> None:
        filters = 2 * channels_in * _PATCH**2
        super().__init__(filters, channels, nonlinearity=nonlinearity, dropout=dropout, pool=pool)
        self.register_buffer("whitening", torch.zeros(filters, channels_in, _PATCH, _PATCH))

    @property
    def prepared(self) -> bool:
        """Whether there is a whitening, from images or from saved weights; waits for the device."""
        return bool(self.whitening.any())

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Compute the whitening of images as the network sees them, [N, C, H, W]; draws no random number."""
        self.whitening.copy_(patch_whitening(images))

    def features(self, x: Tensor) -> Tensor:
        return super().features(cast(Tensor, self.nonlinearity(F.conv2d(x, self.whitening))))


def patch_whitening(images: Tensor) -> Tensor:
    """Filters [2 P, C, 2, 2] for which patches of P = 4 C numbers have variance 1, and the same with the other sign.

    The eigenvectors of the patches' second moments over the root of their eigenvalues, in float64 on the CPU.
    """
    channels = images.shape[1]
    size = channels * _PATCH**2
    moments, count = torch.zeros(size, size, dtype=torch.float64), 0
    for part in images.split(_CHUNK):
        patches = F.unfold(part.to("cpu", torch.float64), _PATCH).transpose(1, 2).reshape(-1, size)
        moments += patches.T @ patches
        count += len(patches)
    values, vectors = torch.linalg.eigh(moments / count)
    largest = vectors.abs().argmax(0)
    signs = vectors[largest, torch.arange(size)].sign()  # an eigenvector has none of its own
    scaled = (vectors * signs / (values + _FLOOR).sqrt()).T.flip(0).reshape(size, channels, _PATCH, _PATCH)
    return torch.cat((scaled, -scaled)).float()


class FastOutput(Block):
    """The output layer: class scores [B, K] of features [B, C], a ninth of those of weights with deviation 1."""

    def __init__(self, features_in: int, classes: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features_in, classes, bias=False)
        if not self.encoder.weight.is_meta:
            self.encoder.weight.data /= self.encoder.weight.data.std()

    def features(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(x.flatten(1))) * _LOGITS
