"""Networks described before they are built, so that a process builds only the blocks that it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, first_line
from pipeline.network.blocks import Block
from pipeline.network.flops import FlopCounter
from pipeline.seeding import seed_default_generator
from pipeline.settings import plain_settings

__all__ = ["BlockShape", "BlockSpec", "HeadBuilder", "Network", "build_block", "infer_shapes"]


HeadBuilder = Callable[[tuple[int, ...]], nn.Module]
"""Makes the layer before a similarity matrix for the shape of one sample's activation."""


@dataclass(frozen=True)
class BlockSpec:
    """A block not built yet."""

    name: str
    build: Callable[[], Block]
    given: Block | None = None  # where the user built it
    similarity_head: HeadBuilder | None = None  # for its local loss, instead of the configured one


Network = tuple[BlockSpec, ...]


@dataclass(frozen=True)
class BlockShape:
    """Shapes of one sample: what a block takes, what its local loss sees, what it hands on; and its cost."""

    inputs: tuple[int, ...]
    features: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int  # multiply-accumulates of one sample's forward


def build_block(spec: BlockSpec, seed: int, index: int) -> Block:
    """Build a block with initial weights keyed by (seed, block); a given one comes as it is."""
    if spec.given is not None:
        return spec.given
    with plain_settings(), torch.random.fork_rng(devices=[]):
        seed_default_generator(torch.device("cpu"), seed, "weights", index)
        return spec.build()


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
    """Run a copy in evaluation mode on two synthetic samples, on the meta device where its layers allow that."""
    with plain_settings(), torch.random.fork_rng(devices=[]):
        try:
            return _run_copy(spec, shape, torch.device("meta"))
        except RuntimeError:
            return _run_copy(spec, shape, torch.device("cpu"))


def _run_copy(spec: BlockSpec, shape: tuple[int, ...], device: torch.device) -> BlockShape:
    if spec.given is not None:
        block = copy.deepcopy(spec.given).to(device)
    else:
        with device:
            block = spec.build()
    block.eval()
    samples, counter = 2, FlopCounter()
    with torch.no_grad(), counter:
        h: Tensor = block.features(torch.zeros(samples, *shape, device=device))
        out = block.hand_on(h)
    macs = counter.flops // (2 * samples)
    return BlockShape(shape, tuple(h.shape[1:]), tuple(out.shape[1:]), macs)
