"""What a training step of each block costs: timed or counted, on copies with synthetic data."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.learning.local_block import LocalBlock
from pipeline.learning.losses import Targets
from pipeline.learning.numerics import Numerics
from pipeline.learning.stage import build_stage
from pipeline.network.blocks import canonical
from pipeline.network.flops import FlopCounter
from pipeline.network.spec import BlockShape, Network

__all__ = ["ARITHMETIC_UNIT", "block_costs", "count_costs", "measure_costs"]

ARITHMETIC_UNIT = "multiply-accumulates of a sample"

_REPEATS = 3
_BUDGET_S = 20.0  # measuring stops repeating after this; every block is measured at least once


def block_costs(
    config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int, numerics: Numerics
) -> tuple[list[float], str]:
    """Costs to balance stages by, and what they are.

    Seconds measured where every block learns alone; where segments hold several blocks, the arithmetic of each.
    """
    if config.segments is not None:
        return count_costs(config, network, shapes, classes), ARITHMETIC_UNIT
    return measure_costs(config, network, shapes, classes, numerics), "seconds of a batch, measured"


def measure_costs(
    config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int, numerics: Numerics
) -> list[float]:
    """Seconds of one training step of each block: the median of three after a warm-up.

    Every block is built, measured on a copy with random data, and dropped before the next one, so that weights,
    batch-norm statistics and random numbers of the run stay untouched.
    """
    deadline = time.perf_counter() + _BUDGET_S
    devices = [numerics.device] if numerics.device.type == "cuda" else []
    # A measured block learns from its own loss alone; the global loss adds about as much to each of them.
    alone = replace(config, loss=config.loss_spec.isolated.name, split=None, stages=None)
    with torch.random.fork_rng(devices=devices):
        return [
            _time(_copied(alone, network, shapes, classes, index, numerics), shape, classes, deadline)
            for index, shape in enumerate(shapes)
        ]


def count_costs(config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int) -> list[float]:
    """Multiply-accumulates of a sample in one training step of each block: in forward, local loss and backward.

    Counted on copies, without data where the layers allow that; draws no random number. Pooling, normalisation and
    optimizer do not count.
    """

    def count(index: int, device: torch.device) -> float:
        batch, counter = config.batch_size, FlopCounter()
        with torch.random.fork_rng(devices=[]), device, counter:
            block = _copied(config, network, shapes, classes, index, Numerics(device, fused=False))
            _train(block, torch.zeros(batch, *shapes[index].inputs), torch.zeros(batch, dtype=torch.int64))
        return counter.flops / (2 * batch)

    costs = []
    for index in range(len(network)):
        try:
            costs.append(count(index, torch.device("meta")))
        except RuntimeError:
            costs.append(count(index, torch.device("cpu")))
    return costs


def _copied(
    config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int, index: int, numerics: Numerics
) -> LocalBlock:
    """Block `index` with its local loss; of one that the user built, a copy."""
    spec = replace(network[index], given=copy.deepcopy(network[index].given))
    network = (*network[:index], spec, *network[index + 1 :])
    return build_stage(config, network, shapes, classes, [1] * len(network), index, numerics).blocks[0]


def _train(block: LocalBlock, x: Tensor, labels: Tensor) -> None:
    """One step, with a gradient from the next block where one would come."""
    handed_on = block.forward(x, 0)
    block.update(Targets(labels), torch.ones_like(handed_on) if block.gradient_in else None)


def _time(block: LocalBlock, shape: BlockShape, classes: int, deadline: float) -> float:
    generator = torch.Generator().manual_seed(0)
    batch, device = block.config.batch_size, block.numerics.device
    x = canonical(torch.randn(batch, *shape.inputs, generator=generator)).to(device)
    labels = torch.randint(classes, (batch,), generator=generator).to(device)
    seconds: list[float] = []
    while len(seconds) <= _REPEATS and (not seconds or time.perf_counter() < deadline):
        start = time.perf_counter()
        _train(block, x, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds)
