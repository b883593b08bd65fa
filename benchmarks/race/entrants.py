"""Who races: ways to learn, by the processes that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contenders.methods import Method
from benchmarks.contenders.torch_schedules import CHUNKS, equal_parts
from benchmarks.race.lines import BACKPROP, REPLICAS, Line
from benchmarks.race.tasks import Task

__all__ = ["PROCESSES", "SCHEDULES", "Entrant", "entrants"]

PROCESSES = 2
SCHEDULES = ("GPipe", "1F1B", "ZBVZeroBubble")


@dataclass(frozen=True)
class Entrant:
    """A line, and a way to compute it that is timed by itself."""

    line: Line
    method: Method

    @property
    def label(self) -> str:
        """For tables."""
        return self.method.label

    @property
    def is_pipelined_backprop(self) -> bool:
        """Whether it is one of torch's schedules."""
        return self.line.is_microbatched


def entrants(task: Task, all_lines: Sequence[Line]) -> list[Entrant]:
    """In the order of the lines.

    Where a line's microbatches would not be equal, schedules are timed with the next number that are. A schedule wants
    one for each of its chunks of the network, at least.
    """
    return [Entrant(line, method) for line in all_lines for method in _methods(task, line)]


def _methods(task: Task, line: Line) -> list[Method]:
    if line == BACKPROP:
        return [
            Method("backprop, one process", "backprop", 1),
            Method("backprop, activation checkpointing", "checkpointed", 1),
        ]
    if line == REPLICAS:
        return [Method("backprop, DDP", "ddp", PROCESSES)]
    if line.is_microbatched:
        count = equal_parts(task.config.train.batch_size, line.parts)
        able = [name for name in SCHEDULES if line.parts >= PROCESSES * CHUNKS[name]]
        return [Method(f"backprop, {name}, {line.parts} microbatches", name, PROCESSES, (), count) for name in able]
    if line.every is not None:
        return [Method(line.name, "averaged", PROCESSES, (), 1, line.every, line.diloco)]
    return [
        Method(f"{line.name}, one process", "ours", 1, line.overrides),
        Method(f"{line.name}, pipeline", "ours", PROCESSES, line.overrides),
    ]
