"""One stage of a real pipeline, run by hand: the product's own session around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.config.schema import TrainConfig
from pipeline.learning.packet import Packet, Position
from pipeline.learning.stage import Trainable
from pipeline.runtime.session import Session
from pipeline.runtime.topology import Topology
from pipeline.runtime.world import connect
from pipeline.spans import Recorder

__all__ = ["Given", "run_stage"]


@dataclass(frozen=True)
class Given:
    """A timetable of packets that are there already, the stop packet at their end."""

    given: Iterable[Packet]

    def packets(self, start: Position) -> Iterator[Packet]:
        """All of them."""
        return iter(self.given)


def run_stage(
    stage: Trainable, stages: int, config: TrainConfig, packets: Iterable[Packet], recorder: Recorder | None = None
) -> None:
    """One run from the first packet to the stop packet, started and ended as training does.

    Args:
        stage: of this process; every process of the crew calls this with its own.
        stages: how many there are.
        config: of the run.
        packets: what the first stage is fed; the others do not look at them.
        recorder: takes the spans, where a trace is wanted.
    """
    with connect(config) as world:
        topology, links = Topology.over((1,) * stages, world.size), world.links(stage.device)
        with Session([stage], topology, config, world.control, links, recorder=recorder) as session:
            session.run(Given(packets) if stage.index == 0 else None)
