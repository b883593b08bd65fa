"""Seconds of a step of every entrant, on the same cores, in turn; what a step takes else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders.footprint import joules, peak_memory
from benchmarks.contenders.methods import split_of
from benchmarks.harness.crew import Crew
from benchmarks.harness.kept import write_whole
from benchmarks.harness.progress import shown
from benchmarks.harness.report import provenance
from benchmarks.race.entrants import PROCESSES, Entrant
from benchmarks.race.tasks import Task
from pipeline.config.schema import RunConfig, override
from pipeline.errors import DataError, first_line
from pipeline.learning.profile import count_costs
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from pipeline.text import brief

__all__ = ["Speed", "keep_speeds", "measure_all", "read_speeds", "work_of"]


@dataclass(frozen=True)
class Speed:
    """What an entrant's steps take.

    Attributes:
        seconds: of a step, in every round.
        megabytes: that all its processes together held at most.
        joules: of a step, by the machine's own meters; None where it has none.
    """

    seconds: tuple[float, ...]
    megabytes: float
    joules: float | None


def _timed(task: Task) -> RunConfig:
    """Two epochs of a few steps, of which the first warms up."""
    batch = task.config.train.batch_size
    values = {"epochs": 2, "eval_every": 2, "train_limit": task.timed_steps * batch, "test_limit": batch}
    return override(task.config, values)


def measure_all(task: Task, all_entrants: Sequence[Entrant], rounds: int) -> dict[str, Speed]:
    """By label; rounds of all entrants, after one that warms up and finds the splits."""
    config = _timed(task)
    seconds: dict[Entrant, list[float]] = {entrant: [] for entrant in all_entrants}
    energy: dict[Entrant, list[float]] = {entrant: [] for entrant in all_entrants}
    with Crew(1) as solo, Crew(PROCESSES) as team:
        crews = {1: solo, PROCESSES: team}

        def train(entrant: Entrant, split: tuple[int, ...] | None = None) -> Any:
            method = entrant.method
            return method.train(crews[method.processes], method.configured(config, split))

        splits = {entrant: split_of(train(entrant)) for entrant in all_entrants}
        for entrant in shown(list(all_entrants) * rounds, f"{task.name}: steps of everyone"):
            before = joules()
            trained = train(entrant, splits[entrant])
            after = joules()
            seconds[entrant].append(max(one.seconds[-1] for one in trained) / task.timed_steps)
            if before is not None and after is not None and after > before:
                energy[entrant].append((after - before) / (2 * task.timed_steps))
    found = {}
    for entrant in shown(list(all_entrants), f"{task.name}: memory of everyone"):
        held = sum(peak_memory(entrant.method, entrant.method.configured(config, splits[entrant])))
        used = sorted(energy[entrant])
        found[entrant.label] = Speed(tuple(seconds[entrant]), held, used[len(used) // 2] if used else None)
    return found


def work_of(task: Task, entrant: Entrant) -> float:
    """Multiply-accumulates of a training sample: forward, backward, local heads, and what is computed again."""
    config = override(task.config, dict(entrant.line.overrides))
    network = named_network(config.model, task.shape, task.classes, config.train.loss)
    shapes = infer_shapes(network, task.shape)
    again = sum(shape.macs for shape in shapes) if entrant.method.kind == "checkpointed" else 0
    return sum(count_costs(config.train, network, shapes, task.classes)) + again


def keep_speeds(path: Path, task: Task, speeds: Mapping[str, Speed]) -> None:
    """Write all speeds of a task."""
    found = {label: asdict(speed) for label, speed in speeds.items()}
    write_whole(path, {"schema": 1, "name": f"{task.name}: speed", **asdict(provenance()), "speeds": found})


def read_speeds(path: Path) -> dict[str, Speed]:
    """What is kept, by label; nothing where there is no file. Raises DataError for one that is not ours."""
    if not path.exists():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return {
            label: Speed(tuple(found["seconds"]), found["megabytes"], found["joules"])
            for label, found in report["speeds"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as speeds ({brief(first_line(error))}); mend or remove it") from error
