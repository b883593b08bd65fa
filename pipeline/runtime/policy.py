"""The order of calls for one training batch, and what connects a process to its neighbours.

Unlocked (local losses): nothing flows back.

    get ─> forward ─> put ─> local losses, backward, update

Locked (`glob`, `glob+X`): the stages take turns, and the gradient is sent back.

    get ─> forward ─> put ─> get gradient ─> backward, update ─> put gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.learning.packet import Packet
from pipeline.learning.stage import Trainable
from pipeline.runtime.stopwatch import Stopwatch
from pipeline.transport.queues import ReceiveQueue, SendQueue
from pipeline.transport.wire import Codec

__all__ = ["Policy", "Ports", "hand_on", "locked", "through", "unlocked"]


@dataclass(frozen=True)
class Ports:
    """Where a process's packets come from and go to; None at the ends of the pipeline and in one process."""

    codec: Codec  # what the wire does to tensors happens between the stages of one process, too
    inbox: ReceiveQueue | None = None
    outbox: SendQueue | None = None
    gradient_inbox: ReceiveQueue | None = None
    gradient_outbox: SendQueue | None = None

    @property
    def queues(self) -> list[SendQueue | ReceiveQueue]:
        """Those that are."""
        ends = (self.inbox, self.outbox, self.gradient_inbox, self.gradient_outbox)
        return [end for end in ends if end is not None]

    @property
    def bytes_sent(self) -> int:
        """Of activations and gradients, so far."""
        return sum(queue.bytes_sent for queue in self.queues if isinstance(queue, SendQueue))


Policy = Callable[[Sequence[Trainable], Packet, Ports, Stopwatch], None]
"""Lets the stages of a process learn from one batch, and hands it on."""


def through(name: str, stages: Sequence[Trainable], packet: Packet, ports: Ports, watch: Stopwatch) -> Packet:
    """A batch through the stages of this process by their method `name`: forward, step or evaluate."""
    for position, stage in enumerate(stages):
        if position > 0:
            packet = replace(packet, tensors=ports.codec.decode(ports.codec.encode(packet.tensors)))
        act: Callable[[Packet], Packet] = getattr(stage, name)
        packet = watch.work(name, position, packet, act, packet)
    return packet


def hand_on(packet: Packet, ports: Ports, watch: Stopwatch) -> None:
    """To the next process, if there is one."""
    if ports.outbox is not None:
        watch.wait_output("wait output", packet, ports.outbox.put, packet)


def unlocked(stages: Sequence[Trainable], packet: Packet, ports: Ports, watch: Stopwatch) -> None:
    """Hands on before the backward; where nobody waits for the packet, segment by segment."""
    if ports.outbox is None:
        through("step", stages, packet, ports, watch)
        return
    packet = through("forward", stages, packet, ports, watch)
    hand_on(packet, ports, watch)
    for position, stage in enumerate(stages):
        watch.work("update", position, packet, stage.update)


def locked(stages: Sequence[Trainable], packet: Packet, ports: Ports, watch: Stopwatch) -> None:
    """Waits for the gradient of what it has handed on."""
    packet = through("forward", stages, packet, ports, watch)
    hand_on(packet, ports, watch)
    gradient: Tensor | None = None
    if ports.gradient_inbox is not None:
        gradient = watch.wait_output("wait gradient", packet, ports.gradient_inbox.get).x
    for position, stage in reversed(list(enumerate(stages))):
        gradient = watch.work("update", position, packet, stage.update, gradient)
        if gradient is not None and position > 0:
            gradient = ports.codec.decode(ports.codec.encode({"x": gradient}))["x"]
    if ports.gradient_outbox is not None:
        assert gradient is not None
        ports.gradient_outbox.put(Packet(packet.kind, packet.at, {"x": gradient}))
