"""Connects a process to its neighbours: the agreement on what travels, then the queues."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol, TypeVar

from pipeline.config.schema import TrainConfig
from pipeline.learning.stage import Trainable
from pipeline.runtime.policy import Ports
from pipeline.runtime.topology import Topology
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.links import Link
from pipeline.transport.queues import Channel, ReceiveQueue, SendQueue
from pipeline.transport.wire import Contract, agree, codec_for

__all__ = ["Links", "connect"]

Q = TypeVar("Q", SendQueue, ReceiveQueue)


class Links(Protocol):
    """Makes this process's ends of its links."""

    def link(self, source: int, target: int) -> Link:
        """One end of the one-way link between two processes; the other one makes its own at the same time."""


def connect(
    stages: Sequence[Trainable],
    topology: Topology,
    config: TrainConfig,
    control: Control,
    links: Links,
    recorder: Recorder,
) -> Ports:
    """The ports of a process with these stages. Its queues are made with its neighbours, and by nobody else.

    Raises ConfigError if a neighbour promises something else than this process expects.
    """
    rank, device = control.rank, stages[0].device
    before, after = topology.neighbours(rank)
    codec = codec_for(config.wire, stages[0].takes["x"].dtype)
    takes = Contract(codec.wire(stages[0].takes), config.batch_size)
    gives = Contract(codec.wire(stages[-1].gives), config.batch_size)

    def agreed() -> None:
        control.publish(f"contract/{rank}", gives.describe())
        if before is not None:
            agree(stages[0].index - 1, control.read(f"contract/{before}", before), takes)

    control.together("contract", agreed)
    with ExitStack() as undo:

        def channel(peer: int, contract: Contract, *, out: bool) -> Channel:
            link = links.link(rank, peer) if out else links.link(peer, rank)
            stage = stages[-1 if peer == after else 0].index
            return Channel(link, contract, codec, config.queue_depth, control, peer, recorder, stage)

        def opened(queue: Q) -> Q:
            undo.callback(queue.release)
            undo.callback(queue.end)  # the last one is called first
            return queue

        inbox = outbox = gradient_inbox = gradient_outbox = None
        # Two neighbours meet once for each link; in every process those with the one before come first.
        if before is not None:
            inbox = opened(ReceiveQueue(channel(before, takes, out=False), device))
            if config.backpropagates:
                gradient_outbox = opened(SendQueue(channel(before, _gradients(takes), out=True)))
        if after is not None:
            outbox = opened(SendQueue(channel(after, gives, out=True)))
            if config.backpropagates:
                gradient_inbox = opened(ReceiveQueue(channel(after, _gradients(gives), out=False), device))
        undo.pop_all()
        return Ports(codec, inbox, outbox, gradient_inbox, gradient_outbox)


def _gradients(contract: Contract) -> Contract:
    """What comes back for what a contract sends."""
    return Contract({"x": contract.signature["x"]}, contract.batch)
