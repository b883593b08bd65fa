"""Networks as ordered lists of blocks: by name, or from a user's `nn.Sequential`.

A network is described before it is built, so that a process builds only the blocks that it trains.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.config.catalog import (
    FASTNET,
    FASTNET_PLAN,
    LOSSES,
    POOL,
    RESIDUAL_PLANS,
    VGG_PLANS,
    ResidualPlan,
    check_fits,
    stem_stride,
)
from pipeline.config.fields import are_counts
from pipeline.config.method import Method
from pipeline.config.model import ModelConfig
from pipeline.config.plain import plain_number, plain_numbers
from pipeline.errors import ConfigError
from pipeline.network.blocks import Block, ConvBlock, LinearBlock, OutputBlock
from pipeline.network.fastnet import FastBlock, FastOutput, WhiteningBlock
from pipeline.network.residual import EXPANSION, ResidualBlock, WideBlock
from pipeline.network.spec import BlockSpec, Network, build_block
from pipeline.text import shown

__all__ = ["create_model", "named_network"]

_LARGEST = 1_000_000  # side of an image, or number of classes: more take too much memory


def named_network(config: ModelConfig, shape: tuple[int, ...], classes: int, loss: str) -> Network:
    """The blocks of a named network for images of `shape` (C, H, W).

    Raises ConfigError if the images are too small for its poolings.
    """
    nonlinearity = config.nonlinearity_for(loss)
    specs, features = _convolutions(config, shape, nonlinearity)
    assert config.hidden_layers is not None
    for _ in range(config.hidden_layers):
        build = partial(LinearBlock, features, config.hidden_units, nonlinearity=nonlinearity, dropout=config.dropout)
        specs.append(BlockSpec(f"linear {features}-{config.hidden_units}", build))
        features = config.hidden_units
    # As in the reference: classifiers start at zero unless trained by global backpropagation or fed by a convolution.
    zero = LOSSES[loss].local and config.hidden_layers > 0
    output: Callable[[], Block] = partial(OutputBlock, features, classes, zero=zero)
    if config.model == FASTNET:
        output = partial(FastOutput, features, classes)
    specs.append(BlockSpec(f"output {features}-{classes}", output))
    return tuple(specs)


def _convolutions(config: ModelConfig, shape: tuple[int, ...], nonlinearity: str) -> tuple[list[BlockSpec], int]:
    """The convolutional blocks and the number of features after the last one, flattened."""
    if config.model == "mlp":
        return [], math.prod(shape)
    if config.model in RESIDUAL_PLANS:
        return _residual(config, RESIDUAL_PLANS[config.model], shape, nonlinearity)
    channels, height, width = shape
    check_fits(config.model, (channels, height, width))
    if config.model == FASTNET:
        return _fastnet(config, channels, nonlinearity)
    specs: list[BlockSpec] = []
    stride = stem_stride(max(height, width))
    height, width = (height + stride - 1) // stride, (width + stride - 1) // stride
    plan = VGG_PLANS[config.model]
    for entry, following in zip(plan, (*plan[1:], None), strict=True):
        if isinstance(entry, str):
            height, width = height // 2, width // 2
            continue
        out, pool = int(entry * config.width), following == POOL
        build = partial(
            ConvBlock, channels, out, nonlinearity=nonlinearity, dropout=config.dropout, pool=pool, stem_stride=stride
        )
        specs.append(BlockSpec(f"conv {channels}-{out}" + (", pool" if pool else ""), build))
        channels, stride = out, 1
    return specs, channels * height * width


def _residual(
    config: ModelConfig, plan: ResidualPlan, shape: tuple[int, ...], nonlinearity: str
) -> tuple[list[BlockSpec], int]:
    """Stem and residual blocks, the last of which hands on a mean over its map: so images may have any size.

    Images larger than 64 pixels have a 7x7 stem of stride 2 and a pooling after it.
    """
    channels, stride = int(plan.stem * config.width), stem_stride(max(shape[1:]))
    large = stride == 2
    how = partial(partial, nonlinearity=nonlinearity, dropout=config.dropout)
    stem = how(ConvBlock, shape[0], channels, pool=large, stem_stride=stride)
    specs = [BlockSpec(f"conv {shape[0]}-{channels}" + (", pool" if large else ""), stem)]
    kind = WideBlock if plan.kind == "wide" else partial(ResidualBlock, plan.kind)
    firsts = itertools.accumulate((count for count, _ in plan.groups), initial=0)
    widths = [int(inner * config.width) for count, inner in plan.groups for _ in range(count)]
    halving = set(firsts) - {0}
    for number, width in enumerate(widths):
        last = number + 1 == len(widths)
        build = how(kind, channels, width, stride=2 if number in halving else 1, last=last)
        out = width * EXPANSION[plan.kind]
        specs.append(BlockSpec(f"{plan.kind} {channels}-{out}" + (", mean" if last else ""), build))
        channels = out
    return specs, channels


def _fastnet(config: ModelConfig, channels: int, nonlinearity: str) -> tuple[list[BlockSpec], int]:
    """Its convolutions, the first with the whitening; the last hands on the maxima of its maps."""
    specs = []
    for index, (width, pool) in enumerate(FASTNET_PLAN):
        out, last = int(width * config.width), index + 1 == len(FASTNET_PLAN)
        kind: Callable[..., Block] = WhiteningBlock if index == 0 else partial(FastBlock, last=last)
        build = partial(kind, channels, out, nonlinearity=nonlinearity, dropout=config.dropout, pool=pool)
        name = f"{'whitening, ' if index == 0 else ''}conv {channels}-{out}"
        specs.append(BlockSpec(name + (", pool" if pool else "") + (", maxima" if last else ""), build))
        channels = out
    return specs, channels


def create_model(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    width: float = 1.0,
    hidden_units: int = 1024,
    hidden_layers: int | None = None,
    nonlinearity: str = "auto",
    dropout: float = 0.0,
    loss: str = "predsim",
    seed: int = 1,
) -> list[Block]:
    """A named network as a list of blocks, as the command line builds it.

    Args:
        name: `mlp`, one of the VGG family, such as `vgg8b`, a residual network, such as `resnet18` or `wrn-28-10`, or
            `fastnet`.
        input_shape: of one image, (channels, height, width).
        classes: number of classes.
        width: multiplies the channels of a convolutional network.
        hidden_units, hidden_layers: of the fully connected blocks before the output layer.
        nonlinearity: `relu`, `leaky_relu`, `gelu` or `auto`, which follows `loss`.
        dropout: rate on what a block hands on.
        loss: the loss it will be trained with; it decides `auto` and the start of the output layer.
        seed: key of the initial weights.

    Raises:
        ConfigError: an unknown name, a value out of range, or images too small for the network.
    """
    config = ModelConfig(
        model=name,
        width=width,
        hidden_units=hidden_units,
        hidden_layers=hidden_layers,
        nonlinearity=nonlinearity,
        dropout=dropout,
    )
    method = Method(loss=loss, seed=seed)
    network = named_network(config, _image_shape(name, input_shape), _class_count(classes), method.loss)
    return [build_block(spec, method.seed, index) for index, spec in enumerate(network)]


def _image_shape(model: str, given: Any) -> tuple[int, ...]:
    """Raises ConfigError for what is no shape of an image; an mlp takes any, since it flattens what it is given."""
    shape = plain_numbers(given)
    if not are_counts(shape, _LARGEST) or (model != "mlp" and len(shape) != 3):
        raise ConfigError(
            f"input_shape is {shown(given)}; give (channels, height, width) of an image, whole numbers of at least 1, "
            "such as (3, 32, 32)"
        )
    return shape


def _class_count(given: Any) -> int:
    classes = plain_number(given, whole=True)
    if not are_counts((classes,), _LARGEST):
        raise ConfigError(f"classes is {shown(given)}; give a whole number at least 1 and at most {_LARGEST}")
    return int(classes)
