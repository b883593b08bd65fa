"""Networks as ordered lists of blocks: by name, or from a user's `nn.Sequential`.

A network is described before it is built, so that a process builds only the blocks that it trains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.flop_counter import FlopCounterMode

from pipeline.blocks import Block, ConvBlock, Dropout, LinearBlock, OutputBlock, SequentialBlock
from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, first_line
from pipeline.keys import seed_default_generator
from pipeline.plans import POOL, VGG_PLANS, check_fits, stem_stride

__all__ = [
    "CUSTOM",
    "BlockShape",
    "BlockSpec",
    "Network",
    "blocks_from",
    "build_block",
    "create_model",
    "given_network",
    "infer_shapes",
    "named_network",
]


CUSTOM = "custom"
"""Model name of a user's own network."""


@dataclass(frozen=True)
class BlockSpec:
    """A block not built yet; `given` is set where the user built it."""

    name: str
    build: Callable[[], Block]
    given: Block | None = None


Network = tuple[BlockSpec, ...]


@dataclass(frozen=True)
class BlockShape:
    """Shapes of one sample: what a block takes, what its local loss sees, what it hands on; and its cost."""

    inputs: tuple[int, ...]
    features: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int  # multiply-accumulates of one sample's forward


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
    zero = loss != "glob" and config.hidden_layers > 0
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


def build_block(spec: BlockSpec, seed: int, index: int) -> Block:
    """Build a block with initial weights keyed by (seed, block); a given one comes as it is."""
    if spec.given is not None:
        return spec.given
    with torch.random.fork_rng(devices=[]):
        seed_default_generator(torch.device("cpu"), seed, "weights", index)
        return spec.build()


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
    network = named_network(config, input_shape, classes, loss)
    return [build_block(spec, seed, index) for index, spec in enumerate(network)]


_NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_TAIL = (
    Dropout,
    *(nn.modules.dropout._DropoutNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd),
    *(nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd),
    *(nn.Flatten, nn.Identity),
)


def blocks_from(sequential: nn.Sequential) -> list[Block]:
    """Cut a network into blocks, one at each child that has weights and is not a normalisation.

    What follows such a child belongs to its block, and children before the first one to the first block. The local
    loss taps a block before its trailing dropout, pooling and flattening. The last block is the output layer, whose
    result must be class scores. Given weights are kept.

    Raises:
        ConfigError: no child has weights, or two blocks share a parameter.
    """
    groups: list[list[tuple[str, nn.Module]]] = []
    leading: list[tuple[str, nn.Module]] = []
    for name, child in sequential._modules.items():  # named_children would skip a module used twice
        assert child is not None
        if any(True for _ in child.parameters()) and not isinstance(child, _NORMALISATIONS):
            groups.append([*leading, (name, child)])
            leading = []
        else:
            (groups[-1] if groups else leading).append((name, child))
    if not groups:
        raise ConfigError(f"the network of {len(sequential)} children has no weights; add a layer such as nn.Linear")
    blocks = [_sequential_block(group, output=group is groups[-1]) for group in groups]
    _check_shared(blocks)
    return blocks


def _sequential_block(children: list[tuple[str, nn.Module]], output: bool) -> Block:
    tap = len(children)
    while not output and isinstance(children[tap - 1][1], _TAIL):
        tap -= 1
    return SequentialBlock(children, tap)


def _check_shared(blocks: Sequence[nn.Module]) -> None:
    owner: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            first = owner.setdefault(id(parameter), index)
            if first != index:
                raise ConfigError(
                    f"blocks {first} and {index} share the parameter {name}, but every block trains alone; "
                    "give each its own"
                )


def given_network(blocks: Sequence[nn.Module]) -> Network:
    """Describe blocks that the user built; a plain module becomes a block whose local loss sees its output."""
    if not blocks:
        raise ConfigError("the network has no blocks; pass at least one, the output layer")
    wrapped = [b if isinstance(b, Block) else SequentialBlock([("0", b)], 1) for b in blocks]
    _check_shared(wrapped)
    for index, block in enumerate(wrapped):
        if not any(parameter.requires_grad for parameter in block.parameters()):
            raise ConfigError(
                f"block {index} has no parameter that learns; join it to its neighbour, or set requires_grad"
            )
    return tuple(_given(block, index) for index, block in enumerate(wrapped))


def _given(block: Block, index: int) -> BlockSpec:
    layer = next((m for m in block.modules() if next(m.parameters(recurse=False), None) is not None), block)
    return BlockSpec(f"{type(layer).__name__.lower()} {index}", lambda: block, given=block)


def infer_shapes(network: Network, shape: tuple[int, ...]) -> list[BlockShape]:
    """Shapes and cost of every block for one sample of `shape`, on copies without data; draws no random number.

    Raises ConfigError if a block does not take what the one before hands on.
    """
    shapes = []
    for index, spec in enumerate(network):
        try:
            shapes.append(_infer(spec, shape))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ConfigError(
                f"block {index} ({spec.name}) does not take input of shape {list(shape)}: {first_line(error)}; "
                "change the block or the one before it"
            ) from error
        shape = shapes[-1].outputs
    return shapes


def _infer(spec: BlockSpec, shape: tuple[int, ...]) -> BlockShape:
    """Run a copy in evaluation mode on two made-up samples, on the meta device where its layers allow that."""
    with torch.random.fork_rng(devices=[]):
        try:
            return _run_copy(spec, shape, torch.device("meta"))
        except (NotImplementedError, RuntimeError):
            return _run_copy(spec, shape, torch.device("cpu"))


def _run_copy(spec: BlockSpec, shape: tuple[int, ...], device: torch.device) -> BlockShape:
    if spec.given is not None:
        block = copy.deepcopy(spec.given).to(device)
    else:
        with device:
            block = spec.build()
    block.eval()
    samples = 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        h: Tensor = block.features(torch.zeros(samples, *shape, device=device))
        out = block.hand_on(h)
    macs = counter.get_total_flops() // (2 * samples)
    return BlockShape(shape, tuple(h.shape[1:]), tuple(out.shape[1:]), macs)
