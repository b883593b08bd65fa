"""The start-up agreement of all processes: configuration, sizes of the data, network, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError, DataError
from pipeline.learning.balance import balance, cut_segments, members
from pipeline.learning.numerics import Numerics
from pipeline.learning.profile import ARITHMETIC_UNIT, block_costs, count_costs
from pipeline.network.spec import BlockShape, Network, infer_shapes
from pipeline.transport.control import Control
from pipeline.transport.topics import Topic

__all__ = [
    "SIZES",
    "Layout",
    "NetworkFactory",
    "Sizes",
    "agree_on_layout",
    "check_same_configuration",
    "count_segments",
    "decide_split",
]

NetworkFactory = Callable[[tuple[int, ...], int], Network]
"""Describes the network for the shape of one sample and the number of classes."""


@dataclass(frozen=True)
class Sizes:
    """What process 0 knows from the data and tells the others."""

    shape: tuple[int, ...]  # of one sample
    classes: int
    train_samples: int
    steps_per_epoch: int

    def trained_samples(self, batch_size: int) -> int:
        """Samples that an epoch trains; a last batch of one is left out."""
        return min(self.train_samples, self.steps_per_epoch * batch_size)


SIZES = Topic("sizes", Sizes)
_CONFIGURATION = Topic("configuration", dict)
_SPLIT = Topic("split", list)


@dataclass(frozen=True)
class Layout:
    """A network, not built, and how its blocks are spread over the stages."""

    network: Network
    shapes: Sequence[BlockShape]
    classes: int
    segments: tuple[int, ...] | int | None  # as configured, a number replaced by the counts that it came to
    split: tuple[int, ...]  # blocks of each stage
    costs: Sequence[float]  # of each block; only their ratios mean anything


def check_same_configuration(control: Control, config: TrainConfig) -> None:
    """Raise ConfigError unless this process was started with the same configuration as process 0."""
    mine: dict[str, Any] = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    theirs = _CONFIGURATION.share(control, mine if control.rank == 0 else None)
    for name, value in mine.items():
        if theirs[name] != value:
            raise ConfigError(
                f"process {control.rank} has {name} = {value!r}, but process 0 has {theirs[name]!r}; "
                "start all processes with the same flags"
            )


def agree_on_layout(
    control: Control, config: TrainConfig, factory: NetworkFactory, sizes: Sizes, numerics: Numerics
) -> Layout:
    """Describe the network in every process; process 0 decides the split.

    Raises:
        ConfigError: blocks that do not fit each other, or a split that does not fit the network.
        DataError: an output layer with fewer scores than the data has classes.
    """
    network, shapes, config = control.together("network", lambda: _describe(control, config, factory, sizes))
    decided = None
    if control.rank == 0:
        decided = [[len(network)], [1.0] * len(network)]  # a single stage has the whole cost, whatever that is
        if config.stage_count(control.world_size) > 1:
            split, costs, _ = decide_split(config, network, shapes, sizes.classes, control.world_size, numerics)
            decided = [list(split), costs]
    split, costs = _SPLIT.share(control, decided)
    return Layout(network, shapes, sizes.classes, config.segments, tuple(split), costs)


def _describe(
    control: Control, config: TrainConfig, factory: NetworkFactory, sizes: Sizes
) -> tuple[Network, list[BlockShape], TrainConfig]:
    network = factory(sizes.shape, sizes.classes)
    config.check_blocks(len(network), control.world_size)
    shapes = infer_shapes(network, sizes.shape)
    config = count_segments(config, shapes, control.world_size)
    scores = shapes[-1].outputs
    if len(scores) != 1 or scores[0] < sizes.classes:
        raise DataError(
            f"the data has {sizes.classes} classes, but the output layer gives scores of shape {list(scores)}; "
            f"make it [{sizes.classes}]"
        )
    return network, shapes, config


def count_segments(config: TrainConfig, shapes: Sequence[BlockShape], world_size: int) -> TrainConfig:
    """`config` with the block counts of the segments that it asks for by their number.

    Raises ConfigError if a stage ends inside one of them.
    """
    if isinstance(config.segments, int):
        config = replace(config, segments=cut_segments(config, shapes))
        config.check_blocks(len(shapes), world_size)
    return config


def decide_split(
    config: TrainConfig,
    network: Network,
    shapes: Sequence[BlockShape],
    classes: int,
    world_size: int,
    numerics: Numerics,
) -> tuple[Sequence[int], list[float], str]:
    """The split asked for, or the one that balances what the blocks cost; each block's cost, and what costs are."""
    stages = config.stage_count(world_size)
    if config.split is None and stages > 1:
        costs, unit = block_costs(config, network, shapes, classes, numerics)
        pieces = members((1,) * len(network) if config.backpropagates else cut_segments(config, shapes))
        found = balance([sum(costs[block] for block in piece) for piece in pieces], stages)
        return tuple(sum(len(pieces[i]) for i in stage) for stage in members(found)), costs, unit
    return config.split or (len(network),), count_costs(config, network, shapes, classes), ARITHMETIC_UNIT
