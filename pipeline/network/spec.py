"""Networks described before they are built, so that a process builds only the blocks that it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.network.blocks import Block
from pipeline.network.flops import FlopCounter
from pipeline.network.lazy import materialize
from pipeline.network.manners import Manners
from pipeline.network.misfit import misfit
from pipeline.network.trial import SIZES, try_out
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
    manners: Manners = field(default_factory=Manners)


def build_block(spec: BlockSpec, seed: int, index: int) -> Block:
    """Build a block with initial weights keyed by (seed, block); a given one comes as it is."""
    if spec.given is not None:
        return spec.given
    with plain_settings(), torch.random.fork_rng(devices=[]):
        seed_default_generator(torch.device("cpu"), seed, "weights", index)
        return spec.build()


def infer_shapes(
    network: Network,
    shape: tuple[int, ...],
    *,
    device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    single: bool = False,
) -> list[BlockShape]:
    """Shapes and cost of every block for one sample of `shape`, on copies; draws no random number.

    Blocks that the user built are tried out in training and evaluation on the `device`, in mixed precision where
    `dtype` is a half one; their lazy layers get their sizes, and weights keyed by (seed, block). All others are known
    to train and are asked for shapes alone. `single` says whether batches of one sample will be evaluated.

    Raises ConfigError if a block does not take what the one before hands on, or cannot be trained.
    """
    shapes = []
    for index, spec in enumerate(network):
        name = f"block {index} ({spec.name})"
        if spec.given is None:
            found = _infer(spec, shape, name)
        else:
            with plain_settings():
                _materialize(spec.given, shape, name, (seed, index))
                last = index == len(network) - 1
                trial = try_out(spec.given, shape, device, dtype, name, single=single, output=last)
            found = BlockShape(shape, trial.features, trial.outputs, trial.macs, trial.manners)
        shapes.append(found)
        shape = found.outputs
    return shapes


def _materialize(block: Block, shape: tuple[int, ...], name: str, key: tuple[int, int]) -> None:
    try:
        materialize(block, shape, SIZES[0], name, key)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise misfit(name, shape, error, f"{SIZES[0]} samples") from error


def _infer(spec: BlockSpec, shape: tuple[int, ...], name: str) -> BlockShape:
    """Run a block in evaluation mode on two synthetic samples, on the meta device."""
    try:
        with plain_settings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            block, samples, counter = spec.build().eval(), 2, FlopCounter()
            with torch.no_grad(), counter:
                h: Tensor = block.features(torch.zeros(samples, *shape))
                out = block.hand_on(h)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise misfit(name, shape, error, f"{SIZES[0]} samples") from error
    return BlockShape(shape, tuple(h.shape[1:]), tuple(out.shape[1:]), counter.flops // (2 * samples))
