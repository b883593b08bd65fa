"""Networks described before they are built, so that a process builds only the blocks that it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, first_line
from pipeline.network.blocks import Block
from pipeline.network.flops import FlopCounter
from pipeline.network.trial import Manners, materialize, try_out
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
) -> list[BlockShape]:
    """Shapes and cost of every block for one sample of `shape`, on copies; draws no random number.

    Blocks that the user built are tried out in training and evaluation on the `device`, in mixed precision where
    `dtype` is a half one; their lazy layers get their sizes, and weights keyed by (seed, block). All others are known
    to train and are asked for shapes alone.

    Raises ConfigError if a block does not take what the one before hands on, or cannot be trained.
    """
    shapes = []
    for index, spec in enumerate(network):
        name = f"block {index} ({spec.name})"
        if spec.given is None:
            found = _infer(spec, shape, name)
        else:
            found = _try(spec.given, shape, device, dtype, name, (seed, index), hidden=index + 1 < len(network))
        shapes.append(found)
        shape = found.outputs
    return shapes


def _try(
    block: Block,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    key: tuple[int, int],
    *,
    hidden: bool,
) -> BlockShape:
    with plain_settings():
        try:
            materialize(block, shape, *key)
        except Exception as error:  # whatever the user's code raises
            raise _does_not_fit(name, shape, error) from error
        trial = try_out(block, shape, device, dtype, name, hidden=hidden)
    return BlockShape(shape, trial.features, trial.outputs, trial.macs, trial.manners)


def _infer(spec: BlockSpec, shape: tuple[int, ...], name: str) -> BlockShape:
    """Run a block in evaluation mode on two synthetic samples, on the meta device."""
    try:
        with plain_settings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            block, samples, counter = spec.build().eval(), 2, FlopCounter()
            with torch.no_grad(), counter:
                h: Tensor = block.features(torch.zeros(samples, *shape))
                out = block.hand_on(h)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise _does_not_fit(name, shape, error) from error
    return BlockShape(shape, tuple(h.shape[1:]), tuple(out.shape[1:]), counter.flops // (2 * samples))


def _does_not_fit(name: str, shape: tuple[int, ...], error: Exception) -> ConfigError:
    return ConfigError(
        f"{name} does not take input of shape {list(shape)}: {type(error).__name__}: {first_line(error)}; change the "
        "block or the one before it"
    )
