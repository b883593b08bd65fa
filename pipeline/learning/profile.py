"""What each block costs: measured on copies with made-up data, or computed."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from pipeline.config.schema import TrainConfig
from pipeline.learning.balance import arithmetic_costs
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.blocks import canonical
from pipeline.network.spec import BlockShape, BlockSpec, Network

__all__ = ["ARITHMETIC_UNIT", "block_costs", "measure_costs"]

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
        return arithmetic_costs(config, shapes, classes), ARITHMETIC_UNIT
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
    ones = [1] * len(network)
    costs = []
    with torch.random.fork_rng(devices=devices):
        for index, shape in enumerate(shapes):
            copied = tuple(_copy(spec) if i == index else spec for i, spec in enumerate(network))
            stage = build_stage(alone, copied, shapes, classes, ones, index, numerics)
            costs.append(_time(stage, shape.inputs, classes, config.batch_size, deadline))
    return costs


def _copy(spec: BlockSpec) -> BlockSpec:
    return spec if spec.given is None else replace(spec, given=copy.deepcopy(spec.given))


def _time(stage: Stage, inputs: tuple[int, ...], classes: int, batch: int, deadline: float) -> float:
    generator = torch.Generator().manual_seed(0)
    device = stage.numerics.device
    x = canonical(torch.randn(batch, *inputs, generator=generator)).to(device)
    labels = torch.randint(classes, (batch,), generator=generator)
    seconds: list[float] = []
    while len(seconds) <= _REPEATS and (not seconds or time.perf_counter() < deadline):
        start = time.perf_counter()
        handed_on = stage.forward(Packet.of(Kind.TRAIN, Position(1, len(seconds)), x, labels))
        stage.update(torch.ones_like(handed_on.x) if stage.blocks[-1].gradient_in else None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:] or seconds)
