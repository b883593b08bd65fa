"""Seconds of a step of every entrant, on the same cores, in turn; what a step takes else."""

from __future__ import annotations

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
from benchmarks.race.entrants import PROCESSES, Entrant
from benchmarks.race.kept import keep_of_lines, read_of_lines, settings_of
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


def measure_all(task: Task, all_entrants: Sequence[Entrant], rounds: int) -> dict[str, Speed]:
    """By label; rounds of all entrants, after one that warms up and finds the splits."""
    seconds: dict[Entrant, list[float]] = {entrant: [] for entrant in all_entrants}
    energy: dict[Entrant, list[float]] = {entrant: [] for entrant in all_entrants}
    with Crew(1) as solo, Crew(PROCESSES) as team:
        crews = {1: solo, PROCESSES: team}

        def train(method: Method, epochs: int, split: tuple[int, ...] | None = None) -> Sequence[Trained]:
            return method.train(crews[method.processes], method.configured(_timed(task, epochs), split))

        def step_seconds(method: Method, split: tuple[int, ...] | None) -> float:
            return max(one.seconds[-1] for one in train(method, 2, split)) / task.timed_steps

        def used(entrant: Entrant, epochs: int) -> float | None:
            before = joules()
            train(entrant.method, epochs, splits[entrant])
            after = joules()
            return None if before is None or after is None or after < before else after - before

        splits = {entrant: split_of(train(entrant.method, 2)) for entrant in all_entrants}
        for entrant in shown(list(all_entrants) * rounds, f"{task.name}: steps of everyone"):
            seconds[entrant].append(with_averages(entrant.method, partial(step_seconds, split=splits[entrant])))
            if joules() is not None:  # what another epoch takes: start and data fall out
                one, two = used(entrant, 1), used(entrant, 2)
                energy[entrant] += [] if one is None or two is None else [(two - one) / task.timed_steps]
    found = {}
    for entrant in shown(list(all_entrants), f"{task.name}: memory of everyone"):
        held = sum(peak_memory(entrant.method, entrant.method.configured(_timed(task), splits[entrant])))
        spent = statistics.median(energy[entrant]) if energy[entrant] else None
        found[entrant.label] = Speed(tuple(seconds[entrant]), held, spent)
    return found


def with_averages(method: Method, timed: Callable[[Method], float]) -> float:
    """Seconds of a step, with its share of an average of replicas where there are any: too rare for a few steps."""
    if method.kind != "averaged":
        return timed(method)
    never, always = (timed(replace(method, every=every)) for every in (_NEVER, 1))
    return never + (always - never) / method.every


def work_of(task: Task, entrant: Entrant) -> float:
    """Multiply-accumulates of a training sample: forward, backward, local heads, and what is computed again."""
    shapes, costs = counted(override(task.config, dict(entrant.line.overrides)))
    again = sum(shape.macs for shape in shapes) if entrant.method.kind == "checkpointed" else 0
    return sum(costs) + again


def keep_speeds(path: Path, task: Task, all_lines: Sequence[Line], speeds: Mapping[str, Speed]) -> None:
    """Write all speeds of a task, whose entrants are of `all_lines`."""
    found = {label: asdict(speed) for label, speed in speeds.items()}
    keep_of_lines(path, f"{task.name}: speed", settings_of(_timed(task)), all_lines, {"speeds": found})


def read_speeds(path: Path, task: Task, all_lines: Sequence[Line]) -> dict[str, Speed]:
    """What is kept, by label; nothing where there is no file. Raises DataError for one that is not ours, or of other
    settings or lines.
    """

    def parse(report: Mapping[str, Any]) -> dict[str, Speed]:
        rows = report["speeds"].items()
        return {label: Speed(tuple(row["seconds"]), row["megabytes"], row["joules"]) for label, row in rows}

    return read_of_lines(path, "speeds", settings_of(_timed(task)), all_lines, parse) or {}
