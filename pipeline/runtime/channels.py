"""Connects a stage to its neighbours: the agreement on what travels, then the queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.config.schema import TrainConfig
from pipeline.learning.packet import Packet
from pipeline.learning.stage import Stage
from pipeline.network.spec import BlockShape
from pipeline.runtime.worker import Ends
from pipeline.runtime.world import LinkFactory
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.links import Link
from pipeline.transport.queues import ReceiveQueue, SendQueue
from pipeline.transport.wire import Contract, agree

__all__ = ["connect_stage"]


def connect_stage(
    stage: Stage,
    shapes: Sequence[BlockShape],
    links: LinkFactory,
    control: Control,
    config: TrainConfig,
    recorder: Recorder,
    source: Callable[[], Packet] | None,
) -> Ends:
    """The ends of one stage in a run of several processes; every process calls it once.

    Args:
        stage: of this process; its index is the process's rank.
        shapes: of every block of the network.
        links: makes the transport.
        control: to agree with the neighbours and to notice their death.
        config: queue depth, loss, number formats.
        recorder: takes the spans of the transfers.
        source: where the first stage's packets come from; None in the others.

    Raises:
        ConfigError: a neighbour promises something else than this stage expects.
    """
    rank, last = control.rank, control.world_size - 1
    inputs = _contract(stage, shapes[stage.blocks[0].index].inputs)
    outputs = _contract(stage, shapes[stage.blocks[-1].index].outputs)
    control.together("contract", lambda: _agree(control, inputs, outputs))
    queue = _Queues(config, control, recorder, stage)
    sink: SendQueue | None = None
    received: ReceiveQueue | None = None
    gradient_sink: SendQueue | None = None
    gradient_source: ReceiveQueue | None = None
    for edge in range(last):
        forward = links.edge(edge, edge + 1)
        backward = links.edge(edge + 1, edge) if config.backpropagates else None
        if rank == edge:
            sink = queue.send(forward, outputs, edge + 1)
            gradient_source = queue.receive(backward, outputs, edge + 1)
        elif rank == edge + 1:
            received = queue.receive(forward, inputs, edge)
            gradient_sink = queue.send(backward, inputs, edge)
    if source is None:
        assert received is not None
        source = received.get
    return Ends(source, sink, gradient_source, gradient_sink)


def _contract(stage: Stage, shape: tuple[int, ...]) -> Contract:
    return Contract(shape, stage.numerics.wire(stage.config.wire), stage.config.batch_size)


def _agree(control: Control, inputs: Contract, outputs: Contract) -> None:
    control.publish(f"contract/{control.rank}", outputs.describe())
    if control.rank > 0:
        agree(control.rank - 1, control.read(f"contract/{control.rank - 1}", control.rank - 1), inputs)


class _Queues:
    """Makes the queues of one stage; a missing link gives none."""

    def __init__(self, config: TrainConfig, control: Control, recorder: Recorder, stage: Stage) -> None:
        self.depth, self.control, self.recorder, self.stage = config.queue_depth, control, recorder, stage

    def send(self, link: Link | None, contract: Contract, peer: int) -> SendQueue | None:
        if link is None:
            return None
        return SendQueue(link, contract, self.depth, self.control, peer, self.recorder, self.stage.index)

    def receive(self, link: Link | None, contract: Contract, peer: int) -> ReceiveQueue | None:
        if link is None:
            return None
        device = self.stage.numerics.device
        return ReceiveQueue(link, contract, self.depth, self.control, peer, self.recorder, self.stage.index, device)
