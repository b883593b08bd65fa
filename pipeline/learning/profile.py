"""What a training step of each block costs: timed or counted, on copies with synthetic data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from pipeline.config.schema import TrainConfig
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.blocks import canonical
from pipeline.network.copies import copied
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
    """Seconds of one training step of each block: the median of three after a warm-up, captured where the run's are.

    Every block is built, measured on a copy with random data, and dropped before the next one, so that weights,
    batch-norm statistics and random numbers of the run stay untouched.
    """
    deadline = time.perf_counter() + _BUDGET_S
    devices = [numerics.device] if numerics.device.type == "cuda" else []
    # A measured block learns from its own loss alone; the global loss adds about as much to each of them.
    # Compiling a block takes longer than the whole measurement may.
    alone = replace(config, loss=config.loss_spec.isolated.name, split=None, stages=None, compile=False)
    with torch.random.fork_rng(devices=devices):
        return [
            _time(_copied(alone, network, shapes, classes, index, numerics), shape, classes, deadline)
            for index, shape in enumerate(shapes)
        ]


def count_costs(config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int) -> list[float]:
    """Multiply-accumulates of a sample in one training step of each block: in forward, local loss and backward.

    Counted on copies, without data where the layers allow that; draws no random number. Pooling, normalisation and
    optimizer do not count, but for the matrix products of Muon.
    """

    config = replace(config, compile=False, ema=0.0)

    def count(index: int, device: torch.device) -> float:
        batch, counter = config.batch_size, FlopCounter()
        with torch.random.fork_rng(devices=[]), device, counter:
            stage = _copied(config, network, shapes, classes, index, Numerics(device, fused=False))
            x, labels = torch.zeros(batch, *shapes[index].inputs), torch.zeros(batch, dtype=torch.int64)
            handed_on = stage.forward(Packet.of(Kind.TRAIN, Position(), x, labels)).x
            stage.update(torch.ones_like(handed_on) if stage.blocks[0].gradient_in else None)
        return counter.flops / (2 * batch)

    costs = []
    for index in range(len(network)):
        try:
            costs.append(count(index, torch.device("meta")))
        except Exception:  # whatever a user's module makes of a device without data
            costs.append(count(index, torch.device("cpu")))
    return costs


def _copied(
    config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int, index: int, numerics: Numerics
) -> Stage:
    """Block `index` with its local loss as a stage; of one that the user built, a copy."""
    given = network[index].given
    spec = replace(network[index], given=given if given is None else copied(given))
    network = (*network[:index], spec, *network[index + 1 :])
    return build_stage(config, network, shapes, classes, [1] * len(network), index, numerics)


def _time(stage: Stage, shape: BlockShape, classes: int, deadline: float) -> float:
    generator = torch.Generator().manual_seed(0)
    batch, device = stage.config.batch_size, stage.device
    x = canonical(shape.manners.made_up(batch, *shape.inputs, generator=generator)).to(device)
    labels = torch.randint(classes, (batch,), generator=generator).to(device)
    packet = Packet.of(Kind.TRAIN, Position(), x, labels)
    # As count_costs does: in the run it comes from the next block, and without it there is no backward to measure.
    gradient = torch.ones(batch, *shape.outputs, device=device) if stage.blocks[0].gradient_in else None
    warm_up, seconds = stage.capture.warm_up, list[float]()
    while len(seconds) < warm_up + _REPEATS and (not seconds or time.perf_counter() < deadline):
        start = time.perf_counter()
        if gradient is None:
            stage.step(packet)
        else:
            stage.forward(packet)
            stage.update(gradient)
        stage.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[warm_up:] or seconds[-1:])
