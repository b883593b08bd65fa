"""Networks as ordered lists of blocks: by name, or from a user's `nn.Sequential`.

A network is described before it is built, so that a process builds only the blocks that it trains.
"""

from __future__ import annotations

import math

from pipeline.config.catalog import LOSSES, POOL, VGG_PLANS, check_fits, stem_stride
from pipeline.config.method import Method
from pipeline.config.model import ModelConfig
from pipeline.network.blocks import Block, ConvBlock, LinearBlock, OutputBlock
from pipeline.network.spec import BlockSpec, Network, build_block

__all__ = ["create_model", "named_network"]


def named_network(config: ModelConfig, shape: tuple[int, ...], classes: int, loss: str) -> Network:
    """The blocks of a named network for images of `shape` (C, H, W).

    Raises ConfigError if the images are too small for its poolings.
    """
    nonlinearity = config.nonlinearity_for(loss)
    specs, features = _convolutions(config, shape, nonlinearity)
    assert config.hidden_layers is not None
    for _ in range(config.hidden_layers):
        specs.append(_linear(features, config.hidden_units, nonlinearity, config.dropout))
        features = config.hidden_units
    # As in the reference: classifiers start at zero unless trained by global backpropagation or fed by a convolution.
    zero = LOSSES[loss].local and config.hidden_layers > 0
    specs.append(_output(features, classes, zero))
    return tuple(specs)


def _convolutions(config: ModelConfig, shape: tuple[int, ...], nonlinearity: str) -> tuple[list[BlockSpec], int]:
    """The convolutional blocks and the number of features after the last one, flattened."""
    if config.model == "mlp":
        return [], math.prod(shape)
    channels, height, width = shape
    check_fits(config.model, (channels, height, width))
    specs: list[BlockSpec] = []
    stride = stem_stride(max(height, width))
    height, width = (height + stride - 1) // stride, (width + stride - 1) // stride
    plan = VGG_PLANS[config.model]
    for entry, following in zip(plan, (*plan[1:], None), strict=True):
        if isinstance(entry, str):
            height, width = height // 2, width // 2
            continue
        out = int(entry * config.width)
        specs.append(_conv(channels, out, nonlinearity, config.dropout, following == POOL, stride))
        channels, stride = out, 1
    return specs, channels * height * width


def _conv(cin: int, cout: int, nonlinearity: str, dropout: float, pool: bool, stride: int) -> BlockSpec:
    def build() -> Block:
        return ConvBlock(cin, cout, nonlinearity=nonlinearity, dropout=dropout, pool=pool, stem_stride=stride)

    return BlockSpec(f"conv {cin}-{cout}" + (", pool" if pool else ""), build)


def _linear(features_in: int, features: int, nonlinearity: str, dropout: float) -> BlockSpec:
    def build() -> Block:
        return LinearBlock(features_in, features, nonlinearity=nonlinearity, dropout=dropout)

    return BlockSpec(f"linear {features_in}-{features}", build)


def _output(features_in: int, classes: int, zero: bool) -> BlockSpec:
    return BlockSpec(f"output {features_in}-{classes}", lambda: OutputBlock(features_in, classes, zero=zero))


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
        name: `mlp` or one of the VGG family, such as `vgg8b`.
        input_shape: of one image, (channels, height, width).
        classes: number of classes.
        width: multiplies the channels of a convolutional network.
        hidden_units, hidden_layers: of the fully connected blocks before the output layer.
        nonlinearity: `relu`, `leaky_relu` or `auto`, which follows `loss`.
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
    network = named_network(config, input_shape, classes, Method(loss=loss).loss)  # which checks the name
    return [build_block(spec, seed, index) for index, spec in enumerate(network)]
