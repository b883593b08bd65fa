"""Similarity heads that the product does not have: what the experiments hold its own against.

All save on space, or on connections, and leave flat activations the paper's square matrix:

    pool-N      means of windows of NxN, or of less so that two rows are left, before the paper's head
    stride-N    the paper's convolution at every N-th place, or at more so that two rows are left
    grouped-N   the paper's convolution in N groups of maps
    none        no weights at all
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from torch import nn

from pipeline.learning.heads import conv_head, pooled_head
from pipeline.network.spec import HeadBuilder, Network

__all__ = ["CANDIDATES", "with_head"]


def _step(side: int, wanted: int) -> int:
    """The largest of wanted, wanted / 2, ... 1 that leaves two of `side` rows: a deviation over space needs them."""
    return wanted if wanted == 1 or side // wanted >= 2 else _step(side, wanted // 2)


def _strided(shape: tuple[int, ...], wanted: int) -> nn.Module:
    if len(shape) != 3:
        return conv_head(shape)
    return nn.Conv2d(shape[0], shape[0], 3, stride=_step(min(shape[1:]), wanted), padding=1, bias=False)


def _grouped(shape: tuple[int, ...], groups: int) -> nn.Module:
    if len(shape) != 3:
        return conv_head(shape)
    return nn.Conv2d(shape[0], shape[0], 3, padding=1, groups=math.gcd(shape[0], groups), bias=False)


def _none(shape: tuple[int, ...]) -> nn.Module:
    return nn.Identity() if len(shape) == 3 else nn.Flatten()


CANDIDATES: Mapping[str, HeadBuilder] = MappingProxyType(
    {
        "pool-2": partial(pooled_head, window=2, rows=2),
        "pool-4": partial(pooled_head, window=4, rows=2),
        "stride-4": partial(_strided, wanted=4),
        "grouped-8": partial(_grouped, groups=8),
        "none": _none,
    }
)


def with_head(network: Network, name: str) -> Network:
    """The network with one of the candidates in all its local losses."""
    return tuple(replace(spec, similarity_head=CANDIDATES[name]) for spec in network)
