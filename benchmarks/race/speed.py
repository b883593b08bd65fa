"""Seconds of a step of every entrant, on the same cores, in turn; what a step takes else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders.arithmetic import counted
from benchmarks.contenders.common import Trained
from benchmarks.contenders.footprint import joules, peak_memory
from benchmarks.contenders.methods import Method, split_of
from benchmarks.harness.crew import Crew
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Provenance
from benchmarks.race.entrants import PROCESSES, Entrant
from benchmarks.race.kept import keep_of_lines, origin_of, read_of_lines, settings_of
from benchmarks.race.lines import Line
from benchmarks.race.tasks import Task
from pipeline.config.schema import RunConfig, override

__all__ = ["Speed", "keep_speeds", "measure_all", "read_speeds", "with_averages", "work_of"]

_QUEUE_DEPTH = 2
_NEVER = 10**9  # steps


@dataclass(frozen=True)
class Speed:
    """What an entrant's steps take.

    Attributes:
        seconds: of a step, in every round.
        megabytes: the sum of what its processes held at most, each with torch and all that it read.
        joules: of a step, by the machine's own meters; None where it has none.
    """

    seconds: tuple[float, ...]
    megabytes: float
    joules: float | None


def _timed(task: Task, epochs: int = 2) -> RunConfig:
    """Epochs of a few steps, of which the first warms up; queues hold few, so that no stage is far ahead of others."""
    batch = task.config.train.batch_size
    values = {"epochs": epochs, "eval_every": epochs, "train_limit": task.timed_steps * batch, "test_limit": batch}
    return override(task.config, {**values, "queue_depth": _QUEUE_DEPTH})


class _Bench:
    """Trains methods of a task for a few steps, in crews that stay."""

    def __init__(self, task: Task, crews: Mapping[int, Crew]) -> None:
        self._task, self._crews = task, crews

    def train(self, method: Method, epochs: int, split: tuple[int, ...] | None = None) -> Sequence[Trained]:
        return method.train(self._crews[method.processes], method.configured(_timed(self._task, epochs), split))

    def seconds(self, method: Method, split: tuple[int, ...] | None) -> float:
        """Of a step."""
        return max(one.seconds[-1] for one in self.train(method, 2, split)) / self._task.timed_steps

    def joules(self, method: Method, split: tuple[int, ...] | None) -> float:
        """Of a step: what another epoch takes, so that start and data fall out. NaN where the meters do not tell."""
        one, two = self._used(method, 1, split), self._used(method, 2, split)
        return (two - one) / self._task.timed_steps

    def _used(self, method: Method, epochs: int, split: tuple[int, ...] | None) -> float:
        before = joules()
        self.train(method, epochs, split)
        after = joules()
        return math.nan if before is None or after is None or after < before else after - before


def measure_all(task: Task, all_entrants: Sequence[Entrant], rounds: int) -> dict[str, Speed]:
    """By label; rounds of all entrants, after one that warms up and finds the splits."""
    seconds: dict[Entrant, list[float]] = {entrant: [] for entrant in all_entrants}
    energy: dict[Entrant, list[float]] = {entrant: [] for entrant in all_entrants}
    with Crew(1) as solo, Crew(PROCESSES) as team:
        bench = _Bench(task, {1: solo, PROCESSES: team})
        splits = {entrant: split_of(bench.train(entrant.method, 2)) for entrant in all_entrants}
        for entrant in shown(list(all_entrants) * rounds, f"{task.name}: steps of everyone"):
            seconds[entrant].append(with_averages(entrant.method, partial(bench.seconds, split=splits[entrant])))
            if joules() is not None:
                spent = with_averages(entrant.method, partial(bench.joules, split=splits[entrant]))
                energy[entrant] += [] if math.isnan(spent) else [spent]
    found = {}
    for entrant in shown(list(all_entrants), f"{task.name}: memory of everyone"):
        held = sum(peak_memory(_averaging(entrant.method), entrant.method.configured(_timed(task), splits[entrant])))
        median = statistics.median(energy[entrant]) if energy[entrant] else None
        found[entrant.label] = Speed(tuple(seconds[entrant]), held, median)
    return found


def with_averages(method: Method, measured: Callable[[Method], float]) -> float:
    """What a step takes, with its share of an average of replicas where there are any: too rare for a few steps."""
    if method.kind != "averaged":
        return measured(method)
    never, always = measured(replace(method, every=_NEVER)), measured(_averaging(method))
    return never + (always - never) / method.every


def _averaging(method: Method) -> Method:
    """With an average after every step, where there are any: what that holds counts, however rare it is."""
    return replace(method, every=1) if method.kind == "averaged" else method


def work_of(task: Task, entrant: Entrant) -> float:
    """Multiply-accumulates of a training sample: forward, backward, local heads, and what is computed again."""
    shapes, costs = counted(override(task.config, dict(entrant.line.overrides)))
    again = sum(shape.macs for shape in shapes) if entrant.method.kind == "checkpointed" else 0
    return sum(costs) + again


def keep_speeds(
    path: Path, task: Task, all_lines: Sequence[Line], speeds: Mapping[str, Speed], origin: Provenance
) -> None:
    """Write all speeds of a task, whose entrants are of `all_lines`, and where and with what they were measured."""
    found = {label: asdict(speed) for label, speed in speeds.items()}
    keep_of_lines(path, f"{task.name}: speed", origin, settings_of(_timed(task)), all_lines, {"speeds": found})


def read_speeds(path: Path, task: Task, all_lines: Sequence[Line]) -> tuple[dict[str, Speed], Provenance | None]:
    """What is kept, by label, and where and with what it was measured; nothing where there is no file.

    Raises DataError for one that is not ours, or of other settings or lines.
    """

    def parse(report: Mapping[str, Any]) -> tuple[dict[str, Speed], Provenance]:
        rows = report["speeds"].items()
        speeds = {label: Speed(tuple(row["seconds"]), row["megabytes"], row["joules"]) for label, row in rows}
        return speeds, origin_of(report)

    return read_of_lines(path, "speeds", settings_of(_timed(task)), all_lines, parse) or ({}, None)
