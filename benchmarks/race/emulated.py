"""The same race on devices that are not there: real curves, steps timed on stages that sleep.

Every device sleeps as long as its share of a step's counted arithmetic takes, ours with its heads, cut where segments
end; processes, queues and messages are real. Seconds are told in steps of backprop on one such device. What devices
that hold the whole network each would reach (DDP) is not emulated: a step a device, if gradients took no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders.arithmetic import counted
from benchmarks.contenders.torch_schedules import CHUNKS, equal_parts
from benchmarks.emulation.load import BATCH, Load, Window
from benchmarks.experiments.schedule import OURS, Contest, Method, compete, judge
from benchmarks.harness.crew import Crew
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Provenance
from benchmarks.race.entrants import SCHEDULES
from benchmarks.race.kept import keep_of_lines, read_of_lines, settings_of
from benchmarks.race.lines import BACKPROP, MICROBATCHED, Line
from benchmarks.race.tasks import Task
from pipeline.config.schema import override
from pipeline.learning.balance import balance, cut_segments, members

__all__ = ["Emulated", "contests", "emulate", "keep_emulated", "read_emulated", "stage_costs"]

_DEVICE_S = 0.18  # times their number: what a batch of backprop costs each device, so that an action lasts some ms


@dataclass(frozen=True)
class Emulated:
    """One way to train on so many devices; `steps` are the durations of one of its steps, by round."""

    devices: int
    line: str
    label: str
    steps: tuple[float, ...]


def stage_costs(task: Task, line: Line, devices: int, chunks: int = 1) -> list[float] | None:
    """Multiply-accumulates of a sample on each device; None where segments (or blocks) are fewer than needed.

    With two `chunks` a device holds both ends of a V: the first and the last, the second and the last but one, ...
    """
    config = override(task.config, dict(line.overrides))
    shapes, costs = counted(config)
    pieces = members(cut_segments(config.train, shapes)) if line.is_local else [(i,) for i in range(len(costs))]
    groups = devices * chunks
    if len(pieces) < groups:
        return None
    whole = [sum(costs[i] for i in piece) for piece in pieces]
    found = [sum(whole[i] for i in group) for group in members(balance(whole, groups))]
    if chunks == 1:
        return found
    return [first + last for first, last in zip(found[:devices], reversed(found[devices:]), strict=True)]


def emulate(task: Task, all_lines: Sequence[Line], rounds: int) -> list[Emulated]:
    """Every number of devices with torch's schedules and all lines that can be cut so often."""
    found = []
    for devices in task.emulated:
        todo = contests(task, all_lines, devices, rounds)
        with Crew(devices) as crew:
            for line, contest in shown(todo, f"{task.name}: {devices} emulated devices"):
                outcomes = judge(contest, crew.call(compete, contest))
                for method, outcome in outcomes.items():
                    label = line.name if method == OURS else f"backprop, {method.label}"
                    alone = devices * contest.load.batch_s  # seconds of a batch of backprop on one device
                    steps = tuple(1 / (rate * alone) for rate in outcome.rates)
                    found.append(Emulated(devices, line.name, label, steps))
    return found


def contests(task: Task, all_lines: Sequence[Line], devices: int, rounds: int) -> list[tuple[Line, Contest]]:
    """What is timed on so many devices, each with the line whose steps it makes."""
    reference = stage_costs(task, BACKPROP, 1)
    assert reference is not None
    batch_s = _DEVICE_S * devices
    schedules = [(MICROBATCHED[-1], Method(name), CHUNKS[name]) for name in SCHEDULES]
    local = [(line, OURS, 1) for line in all_lines if line.is_local]
    found = []
    for line, method, chunks in [*schedules, *local]:
        costs = stage_costs(task, line, devices, chunks)
        if costs is not None:
            load = Load(devices, batch_s, weights=tuple(cost * devices / reference[0] for cost in costs))
            contest = Contest(line.name, load, _microbatches(devices), (method,), Window(2, 4), rounds)
            found.append((line, contest))
    return found


def _microbatches(devices: int) -> int:
    """So many that the devices are mostly busy, four each; they are taken to learn like those of the longest curve."""
    return equal_parts(BATCH, 4 * devices)


def keep_emulated(
    path: Path, task: Task, all_lines: Sequence[Line], found: Sequence[Emulated], origin: Provenance
) -> None:
    """Write what the emulated devices of a task took with `all_lines`, and where and with what that was measured."""
    content = {"emulated": [asdict(one) for one in found]}
    keep_of_lines(path, f"{task.name}: emulated devices", origin, _settings(task), all_lines, content)


def read_emulated(path: Path, task: Task, all_lines: Sequence[Line]) -> list[Emulated]:
    """What is kept; nothing where there is no file. Raises DataError for one that is not ours, or of other settings or
    lines.
    """

    def parse(report: Mapping[str, Any]) -> list[Emulated]:
        return [Emulated(r["devices"], r["line"], r["label"], tuple(r["steps"])) for r in report["emulated"]]

    return read_of_lines(path, "emulated devices", _settings(task), all_lines, parse) or []


def _settings(task: Task) -> dict[str, Any]:
    return {**settings_of(task.config), "emulated": task.emulated}
