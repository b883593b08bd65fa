"""The loop of one process, over all packets:

take ─> TRAIN          the policy: forward, hand on, update
     ─> EVALUATE       forward in evaluation mode, hand on
     ─> SNAPSHOT       show the stages to the observer, hand on       a consistent cut: it rides the queues
     ─> END_OF_EPOCH   report, hand on
     ─> STOP           hand on; wait for it to come back where gradients do, and send it back
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.learning.packet import Kind, Packet
from pipeline.learning.stage import Trainable
from pipeline.runtime.policy import Policy, Ports, hand_on, through
from pipeline.runtime.stopwatch import Stopwatch
from pipeline.runtime.telemetry import Observer, Telemetry

__all__ = ["Worker"]


@dataclass(frozen=True)
class Worker:
    """Runs the stages of one process, packet by packet."""

    stages: Sequence[Trainable]  # one under torchrun; all of them in the single-process fallback
    take: Callable[[], Packet]  # the next packet, from the process before or from a feed
    ports: Ports
    policy: Policy
    watch: Stopwatch
    telemetry: Telemetry
    observer: Observer  # is shown snapshots

    def step(self) -> bool:
        """Work on the next packet; whether more will come."""
        packet = self.watch.wait_input(self.take)
        self.telemetry.before(packet)
        if packet.kind is Kind.TRAIN:
            self.policy(self.stages, packet, self.ports, self.watch)
        else:
            self._pass_on(packet)
        self.telemetry.after(packet)
        return packet.kind is not Kind.STOP

    def _pass_on(self, packet: Packet) -> None:
        handed_on = packet
        if packet.kind is Kind.EVALUATE:
            handed_on = through("evaluate", self.stages, packet, self.ports, self.watch)
        elif packet.kind is Kind.SNAPSHOT:
            self.observer.snapshot(packet, self.stages, self.telemetry.seconds)
        hand_on(handed_on, self.ports, self.watch)
        if packet.kind is Kind.STOP:
            if self.ports.gradient_inbox is not None:
                self.ports.gradient_inbox.get()
            if self.ports.gradient_outbox is not None:
                self.ports.gradient_outbox.put(packet)
