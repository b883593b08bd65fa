"""The same race on devices that are not there: real curves, steps timed on stages that sleep.

Every device sleeps as long as its share of a step's counted arithmetic takes, ours with its heads, cut where segments
end; processes, queues and messages are real. Seconds are told in steps of backprop on one such device.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.emulation.load import Load, Window
from benchmarks.experiments.schedule import OURS, Contest, Method, compete, judge
from benchmarks.harness.crew import Crew
from benchmarks.harness.kept import write_whole
from benchmarks.harness.progress import shown
from benchmarks.harness.report import provenance
from benchmarks.race.lines import BACKPROP, MICROBATCHES, Line
from benchmarks.race.tasks import Task
from pipeline.config.schema import override
from pipeline.errors import DataError, first_line
from pipeline.learning.balance import balance, cut_segments, members
from pipeline.learning.profile import count_costs
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from pipeline.text import brief

__all__ = ["Emulated", "emulate", "keep_emulated", "read_emulated", "stage_costs"]

_DEVICE_S = 0.36  # that a batch of backprop costs each device on average
_SCHEDULES = ("GPipe", "1F1B", "ZBVZeroBubble")


@dataclass(frozen=True)
class Emulated:
    """One way to train on so many devices; `steps` are the durations of one of its steps, by round."""

    devices: int
    line: str
    label: str
    steps: tuple[float, ...]


def stage_costs(task: Task, line: Line, devices: int) -> list[float] | None:
    """Multiply-accumulates of a sample on each device; None where segments (or blocks) are fewer than devices."""
    config = override(task.config, dict(line.overrides))
    network = named_network(config.model, task.shape, task.classes, config.train.loss)
    shapes = infer_shapes(network, task.shape)
    costs = count_costs(config.train, network, shapes, task.classes)
    pieces = members(cut_segments(config.train, shapes)) if line.is_local else [(i,) for i in range(len(costs))]
    if len(pieces) < devices:
        return None
    whole = [sum(costs[i] for i in piece) for piece in pieces]
    return [sum(whole[i] for i in group) for group in members(balance(whole, devices))]


def emulate(task: Task, all_lines: Sequence[Line], rounds: int) -> list[Emulated]:
    """Every number of devices with torch's schedules and all lines that can be cut so often."""
    found = []
    for devices in task.emulated:
        contests = _contests(task, all_lines, devices, rounds)
        with Crew(devices) as crew:
            for line, contest in shown(contests, f"{task.name}: {devices} emulated devices"):
                outcomes = judge(contest, crew.call(compete, contest))
                for method, outcome in outcomes.items():
                    label = line.name if method == OURS else f"backprop, {method.label}"
                    steps = tuple(1 / (rate * devices * _DEVICE_S) for rate in outcome.rates)
                    found.append(Emulated(devices, line.name, label, steps))
    return found


def _contests(task: Task, all_lines: Sequence[Line], devices: int, rounds: int) -> list[tuple[Line, Contest]]:
    reference = stage_costs(task, BACKPROP, 1)
    assert reference is not None
    unit = devices * _DEVICE_S / reference[0]  # seconds of a multiply-accumulate
    methods = {MICROBATCHES: tuple(Method(name) for name in _SCHEDULES)}
    contests = []
    for line in [MICROBATCHES, *(line for line in all_lines if line.is_local)]:
        costs = stage_costs(task, line, devices)
        if costs is not None:
            weights = tuple(cost * unit / _DEVICE_S for cost in costs)
            load = Load(devices, _DEVICE_S, weights=weights)
            # As many microbatches as keep the devices busy; they are taken to learn like those of the curve.
            contest = Contest(line.name, load, 2 * devices, methods.get(line, (OURS,)), Window(2, 4), rounds)
            contests.append((line, contest))
    return contests


def keep_emulated(path: Path, task: Task, found: Sequence[Emulated]) -> None:
    """Write what the emulated devices of a task took."""
    report = {"schema": 1, "name": f"{task.name}: emulated devices", **asdict(provenance())}
    write_whole(path, {**report, "emulated": [asdict(one) for one in found]})


def read_emulated(path: Path) -> list[Emulated]:
    """What is kept; nothing where there is no file. Raises DataError for one that is not ours."""
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["emulated"]
        return [Emulated(row["devices"], row["line"], row["label"], tuple(row["steps"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as emulated devices ({brief(first_line(error))}); mend or remove it"
        ) from error
