"""What a process does when: seconds of every stage's work and waiting, and the spans of a trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from pipeline.learning.packet import Packet
from pipeline.spans import Recorder

__all__ = ["Clock", "Stopwatch"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Clock:
    """Seconds a stage has spent working and waiting since the run began."""

    busy_s: float = 0.0
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0

    def since(self, mark: Clock) -> Clock:
        """What has been added since a copy was taken."""
        return Clock(
            self.busy_s - mark.busy_s, self.wait_input_s - mark.wait_input_s, self.wait_output_s - mark.wait_output_s
        )

    @property
    def busy_fraction(self) -> float:
        """Of work and waiting together."""
        whole = self.busy_s + self.wait_input_s + self.wait_output_s
        return self.busy_s / whole if whole > 0 else 0.0


class Stopwatch:
    """Times the calls of a process, by the index of the stage they are for.

    The first of its stages waits for input, the last one for output.
    """

    def __init__(self, stages: Sequence[int], recorder: Recorder) -> None:
        self.stages, self.recorder = tuple(stages), recorder
        self.clocks = [Clock() for _ in stages]

    def work(
        self, name: str, position: int, packet: Packet, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """A piece of the work of the stage at `position` among the process's own."""
        start, start_ns = time.perf_counter(), time.monotonic_ns()
        result = act(*args, **kwargs)
        self.recorder.settle()
        self.clocks[position].busy_s += time.perf_counter() - start
        self._span(name, position, packet, start_ns)
        return result

    def wait_input(self, take: Callable[[], Packet]) -> Packet:
        """Wait for the next packet."""
        start, start_ns = time.perf_counter(), time.monotonic_ns()
        packet = take()
        self.clocks[0].wait_input_s += time.perf_counter() - start
        self._span("wait input", 0, packet, start_ns)
        return packet

    def wait_output(self, name: str, packet: Packet, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Wait for room behind this process, or for the gradient that comes back from there."""
        start, start_ns = time.perf_counter(), time.monotonic_ns()
        result = act(*args, **kwargs)
        self.clocks[-1].wait_output_s += time.perf_counter() - start
        self._span(name, -1, packet, start_ns)
        return result

    def _span(self, name: str, position: int, packet: Packet, start_ns: int) -> None:
        if self.recorder.enabled:
            stage, duration = self.stages[position], time.monotonic_ns() - start_ns
            self.recorder.add(stage, "compute", name, packet.at.step, start_ns, duration, packet.kind.name.lower())
