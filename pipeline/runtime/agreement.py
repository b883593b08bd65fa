"""The start-up agreement of all processes: configuration, sizes of the data, network, split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.errors import ConfigError, DataError
from pipeline.learning.balance import balance, cut_segments, members
from pipeline.learning.cores import Host, share_cores
from pipeline.learning.memory import check_buffers, check_memory
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Position
from pipeline.learning.profile import ARITHMETIC_UNIT, block_costs, count_costs
from pipeline.network.spec import BlockShape, Network, infer_shapes
from pipeline.network.structure import first_difference, parts_of
from pipeline.runtime.cores import Seat, hosts_of, own_cores
from pipeline.runtime.memory import memory_of
from pipeline.text import brief
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
    "decide_threads",
]

NetworkFactory = Callable[[tuple[int, ...], int], Network]
"""Describes the network for the shape of one sample and the number of classes."""


@dataclass(frozen=True)
class Sizes:
    """What process 0 knows from the data and tells the others."""

    shape: tuple[int, ...]  # of one sample
    classes: int
    train_samples: int
    test_samples: int
    steps_per_epoch: int

    def largest_batch(self, batch_size: int) -> int:
        """Samples of the largest batch that there will be."""
        return min(batch_size, max(self.train_samples, self.test_samples))

    def trained_samples(self, batch_size: int) -> int:
        """Samples that an epoch trains; a last batch of one is left out."""
        return min(self.train_samples, self.steps_per_epoch * batch_size)

    def samples_before(self, at: Position, batch_size: int) -> int:
        """Samples that a run has trained when it comes to a position."""
        steps = at.step - (at.epoch - 1) * self.steps_per_epoch  # of the epoch
        return (at.epoch - 1) * self.trained_samples(batch_size) + min(self.train_samples, steps * batch_size)


SIZES = Topic("sizes", Sizes)
_CONFIGURATION = Topic("configuration", dict)
_BLOCKS = "blocks"  # in that, beside the flags
_SPLIT = Topic("split", list)
_SEATS = Topic("seats", list)


@dataclass(frozen=True)
class Layout:
    """A network, not built, and how its blocks are spread over the stages."""

    network: Network
    shapes: Sequence[BlockShape]
    classes: int
    segments: tuple[int, ...] | int | None  # as configured, a number replaced by the counts that it came to
    split: tuple[int, ...]  # blocks of each stage
    costs: Sequence[float]  # of each block; only their ratios mean anything
    threads: tuple[int, ...]  # of each process
    cores: tuple[int, ...]  # that this process keeps to


def check_same_configuration(
    control: Control, config: TrainConfig, model: ModelConfig | None = None, given: Sequence[nn.Module] = ()
) -> None:
    """Raise ConfigError unless this process was started with the same configuration and network as process 0.

    Args:
        model: names the network, where it has a name.
        given: a user's own blocks, of which the weights may differ.
    """
    flags = asdict(config) | ({} if model is None else asdict(model))
    mine: dict[str, Any] = {name: list(one) if isinstance(one, tuple) else one for name, one in flags.items()}
    parts = parts_of(given) if control.world_size > 1 else []
    theirs = _CONFIGURATION.share(control, {**mine, _BLOCKS: parts} if control.rank == 0 else None)
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise ConfigError(
                f"process {control.rank} has {name} = {value!r}, but process 0 has {theirs.get(name)!r}; "
                "start all processes with the same flags"
            )
    found = first_difference(parts, theirs.get(_BLOCKS, []))
    if found is not None:
        here, there = map(brief, found)
        raise ConfigError(
            f"process {control.rank} has {here}, but process 0 has {there}; build the same blocks in all processes"
        )


def agree_on_layout(
    control: Control,
    config: TrainConfig,
    factory: NetworkFactory,
    sizes: Sizes,
    numerics: Numerics,
    mine: Seat,
    kept: tuple[int, ...] | None = None,
) -> Layout:
    """Describe the network in every process; process 0 decides the split, and who gets how many cores.

    It takes the split `kept` where that fits and nobody asks for another.

    Raises:
        ConfigError: blocks that do not fit each other, a split that does not fit the network, or local losses that
            need more memory than there is.
        DataError: an output layer with another number of scores than the data has classes.
    """
    network, shapes, config = control.together("network", lambda: _describe(control, config, factory, sizes, numerics))
    _SEATS.publish(control, control.rank, [mine.host, list(mine.mask), mine.count])
    told = _SEATS.gather(control, range(control.world_size))
    seats = [Seat(host, tuple(mask), count) for host, mask, count in told]
    hosts, decided = hosts_of(seats), None
    there = memory_of(numerics.device, len({one.host for one in seats}), len(seats))

    def check() -> None:
        check_memory(config, network, shapes, sizes.classes, *there)

    control.together("memory", check if control.rank == 0 else lambda: None)
    if control.rank == 0:
        config = _keep(config, kept, len(network), control.world_size)
        # A single stage has the whole cost, whatever that is.
        split: Sequence[int] = [len(network)]
        costs = [1.0] * len(network)
        if config.stage_count(control.world_size) > 1:
            split, costs, _ = decide_split(config, network, shapes, sizes.classes, hosts, numerics)
        decided = [list(split), costs, decide_threads(config, costs, split, hosts, numerics)]
    split, costs, threads = _SPLIT.share(control, decided)
    if control.world_size > 1:
        control.together("buffers", lambda: check_buffers(config, shapes, split, *there))
    keeps = config.threads is None and numerics.device.type == "cpu"
    cores = own_cores(seats, threads, control.rank) if keeps else mine.mask
    return Layout(network, shapes, sizes.classes, config.segments, tuple(split), costs, tuple(threads), cores)


def _describe(
    control: Control, config: TrainConfig, factory: NetworkFactory, sizes: Sizes, numerics: Numerics
) -> tuple[Network, list[BlockShape], TrainConfig]:
    network = factory(sizes.shape, sizes.classes)
    config.check_blocks(len(network), control.world_size)
    shapes = infer_shapes(
        network,
        sizes.shape,
        device=numerics.device,
        dtype=numerics.dtype,
        seed=config.seed,
        single=sizes.test_samples % config.batch_size == 1,
    )
    config = count_segments(config, shapes, control.world_size)
    scores = shapes[-1].outputs
    if scores != (sizes.classes,):
        raise DataError(
            f"the data has {sizes.classes} classes, but the output layer gives scores of shape {list(scores)}; "
            f"make it [{sizes.classes}]"
        )
    return network, shapes, config


def _keep(config: TrainConfig, split: tuple[int, ...] | None, blocks: int, world_size: int) -> TrainConfig:
    """`config` with the split, where the blocks and processes are as many as it places, and no other is given."""
    if split is None or config.split is not None or sum(split) != blocks:
        return config
    stages = len(split)
    return replace(config, split=split) if world_size in (1, stages) and config.stages in (None, stages) else config


def count_segments(config: TrainConfig, shapes: Sequence[BlockShape], world_size: int) -> TrainConfig:
    """`config` with the block counts of the segments that it asks for by their number.

    Raises ConfigError if a stage ends inside one of them.
    """
    if isinstance(config.segments, int):
        config = replace(config, segments=cut_segments(config, shapes), first_cut_after=None)
        config.check_blocks(len(shapes), world_size)
    return config


def decide_split(
    config: TrainConfig,
    network: Network,
    shapes: Sequence[BlockShape],
    classes: int,
    hosts: Sequence[Host],
    numerics: Numerics,
) -> tuple[Sequence[int], list[float], str]:
    """The split asked for, or the one that balances what the blocks cost; each block's cost, and what costs are.

    Where cores are shared out by cost, too, the split that is fastest with the best shares.
    """
    processes = sum(host.processes for host in hosts)
    stages = config.stage_count(processes)
    if config.split is None and stages > 1:
        costs, unit = block_costs(config, network, shapes, classes, numerics)
        pieces = members((1,) * len(network) if config.backpropagates else cut_segments(config, shapes))
        units = [sum(costs[block] for block in piece) for piece in pieces]
        together = processes > 1 and _shares_cores(config, numerics)
        found = share_cores(units, hosts).split if together else balance(units, stages)
        return tuple(sum(len(pieces[i]) for i in stage) for stage in members(found)), costs, unit
    return config.split or (len(network),), count_costs(config, network, shapes, classes), ARITHMETIC_UNIT


def _shares_cores(config: TrainConfig, numerics: Numerics) -> bool:
    """Whether cores follow the cost: not where their number is given, a GPU computes, or the stages take turns."""
    return config.threads is None and numerics.device.type == "cpu" and not config.backpropagates


def decide_threads(
    config: TrainConfig, costs: Sequence[float], split: Sequence[int], hosts: Sequence[Host], numerics: Numerics
) -> list[int]:
    """CPU threads of each process: as given; by the cost of its stage; or an equal part of its host's cores."""
    processes = sum(host.processes for host in hosts)
    given = config.threads_of(processes)
    if given is not None:
        return list(given)
    if processes > 1 and _shares_cores(config, numerics):
        return list(share_cores([sum(costs[i] for i in own) for own in members(split)], hosts).cores)
    return [max(1, host.cores // host.processes) for host in hosts for _ in range(host.processes)]
