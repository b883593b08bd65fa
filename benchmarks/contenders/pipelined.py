"""One stage of a real pipeline, run by hand: the product's own worker, queues and control channel around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from pipeline.config.schema import TrainConfig
from pipeline.learning.packet import Packet
from pipeline.learning.stage import Stage
from pipeline.network.spec import BlockShape
from pipeline.runtime.channels import connect_stage
from pipeline.runtime.worker import Worker
from pipeline.runtime.world import connect
from pipeline.spans import Recorder

__all__ = ["run_stage"]


def run_stage(
    stage: Stage,
    shapes: Sequence[BlockShape],
    config: TrainConfig,
    packets: Iterator[Packet],
    recorder: Recorder | None = None,
) -> None:
    """One run on CPUs from the first packet to the stop packet, started and ended as training does.

    Args:
        stage: of this process; every process of the crew calls this with its own.
        shapes: of all blocks.
        config: of the run.
        packets: what the first stage takes for data, the stop packet at its end; the others do not look at them.
        recorder: takes the spans, where a trace is wanted.
    """
    cpu, recorder = torch.device("cpu"), recorder or Recorder(enabled=False)
    world = connect(config)
    try:
        links = world.links(cpu)
        source = packets.__next__ if stage.index == 0 else None
        ends = connect_stage(stage, shapes, links, world.control, config, recorder, source)
        dist.barrier()
        Worker([stage], ends, config, world.control, recorder).run()
        if ends.sink is not None:
            ends.sink.close(config.timeout)
        dist.barrier()
        links.close()
    finally:
        world.control.close()
