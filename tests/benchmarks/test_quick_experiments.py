"""Every experiment runs in its quick form, made smaller still, and reports what it promises.

Whether a target is met is for the full run to say: a busy machine must not fail the tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import EXPERIMENTS, main
from benchmarks.contenders import handover
from benchmarks.contenders.schedules import SCHEDULES
from benchmarks.emulation.load import Window
from benchmarks.experiments import heads as trainings
from benchmarks.experiments import memory as memories
from benchmarks.experiments import queue as queues
from benchmarks.experiments import scaling as sizes
from benchmarks.experiments import schedule as schedules
from benchmarks.experiments import throughput as speeds
from benchmarks.experiments import time_to_accuracy as races
from benchmarks.race import emulated as race_emulated
from benchmarks.race import entrants as race_entrants
from benchmarks.race import order as race_order
from benchmarks.race import speed as race_speed
from benchmarks.race.lines import BACKPROP, MICROBATCHED, REPLICAS, Line, lines, local_line
from benchmarks.race.tasks import Task, tasks
from tests.support.processes import fresh

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900), pytest.mark.usefixtures("forked_crews", "smaller")]

BY_COMMAND = "input"  # the others by the command's own function: an interpreter and its crew take 10 s to start

WAYS = (queues.QUEUE, queues.GLOO, queues.COPY)

RACING_HEADS = ("linear", "copy")

Report = dict[str, Any]


@pytest.fixture(scope="module")
def smaller() -> Iterator[None]:
    """One round of what takes a minute as a rough figure: the figures are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speeds, "_QUICK", replace(speeds._QUICK, steps=1, rounds=1))
        contests = [replace(one, window=Window(1, 1), rounds=1) for one in schedules._QUICK]
        patch.setattr(schedules, "_QUICK", tuple(contests))
        patch.setattr(races, "tasks", lambda quick, data_dir: (race(),))
        patch.setattr(race_order, "lines", racing)
        patch.setattr(race_entrants, "SCHEDULES", ("1F1B",))
        patch.setattr(race_emulated, "SCHEDULES", ("1F1B",))
        patch.setattr(race_emulated, "_DEVICE_S", 0.03)
        patch.setattr(race_speed, "peak_memory", lambda method, config: [200.0] * method.processes)  # as `throughput`
        axes = {
            "blocks": [sizes.Point(blocks=blocks, batch=4) for blocks in (1, 2, 4)],
            "width": [sizes.Point(width=width, batch=4) for width in (0.0625, 0.125, 0.25)],
            "batch": [sizes.Point(width=0.0625, batch=batch) for batch in (4, 8, 16)],
            "stages": [sizes.Point(blocks=3, batch=4, stages=stages) for stages in (1, 4)],
        }
        patch.setattr(sizes, "_QUICK", sizes.Extent(axes, repetitions=1, repetition_s=0.001))
        cases = [memories.Case(), memories.Case("vgg8b"), memories.Case(width=0.5), memories.Case(batch=64)]
        few = {axis: [cases[0], other] for axis, other in zip(("depth", "width", "batch"), cases[1:], strict=True)}
        patch.setattr(memories, "_AXES", few)
        patch.setattr(trainings, "_QUICK", replace(trainings._QUICK, rounds=1))
        patch.setitem(queues._ROUNDS, True, 1)
        patch.setitem(handover._CASES, True, (handover.Case(0.25, 128, steps=2, rounds=1, warm_up=1),))
        yield


def race() -> Task:
    """One seed, one rate."""
    (task,) = tasks(True, "")
    rates, head_rates = task.rates[:1], task.head_rates[:1]
    return replace(task, rates=rates, head_rates=head_rates, fine_rates=(), seeds=1, heads=RACING_HEADS)


def racing(task: Task) -> list[Line]:
    """One line of every kind; more segments come when the heads are known."""
    *_, averaged = lines(task)
    return [BACKPROP, MICROBATCHED[-1], REPLICAS, *(local_line(task, 2, head) for head in RACING_HEADS), averaged]


def by_label(report: Report) -> dict[str, Any]:
    return {row["label"]: row for row in report["rows"]}


def figures_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if isinstance(value, dict)}


def throughput(report: Report) -> None:
    rows = by_label(report)
    for label in ("backprop, one process", "backprop, DDP", *(f"backprop, {name}" for name in SCHEDULES)):
        assert rows[label]["samples_per_second"]["n"] == 1 and rows[label]["samples_per_second"]["minimum"] > 0
    for loss in ("pred", "predsim", "predsim, cheap head"):
        for way in ("one process", "pipeline", "pipeline, a loss a stage"):
            assert rows[f"{loss}, {way}"]["speed_ratio_to_backprop"]["minimum"] > 0
    assert rows["pred, pipeline: process 1"]["busy_percent"]["maximum"] <= 100


def schedule(report: Report) -> None:
    labels = [row["label"] for row in report["rows"]]
    assert labels == [contest.label(method) for contest in schedules.contests(True) for method in contest.methods]
    assert all(label.startswith("emulated, ") for label in labels)
    for row in report["rows"]:
        figures = figures_of(row)
        assert {"batches_per_second", "utilisation_percent", "of_slowest_stage_percent"} < set(figures)
        # No upper bound: of one batch, a stage that overslept has slept longer than the last one's clock ran.
        assert all(figure["n"] == 1 and figure["minimum"] > 0 for figure in figures.values()), row["label"]


def time_to_accuracy(report: Report) -> None:
    rows = by_label(report)
    for entrant in race_entrants.entrants(race(), racing(race())):
        row = rows[f"digits-mlp: {entrant.label}"]
        assert row["test_error_percent"]["n"] == 1 and row["step_seconds"]["minimum"] > 0
        assert row["million_multiply_accumulates"] > 0 and row["peak_megabytes"] == 200 * row["processes"]
    assert sum("3 segments" in label and "emulated" not in label for label in rows) == 2
    emulated = {label: row for label, row in rows.items() if row.get("emulated")}
    assert len(emulated) == 1 + len(RACING_HEADS) + 1
    assert all(label.startswith("digits-mlp: emulated, 2 devices: ") for label in emulated)
    assert all(row["steps_of_one_device"]["minimum"] > 0 for row in emulated.values())


def memory(report: Report) -> None:
    rows = report["rows"]
    counted = [row for row in rows if "saved_activation_mb" in row]
    assert {row["model"] for row in counted} == {"vgg8b", "vgg11b"}
    assert {row["batch"] for row in counted} == {64, 128}
    assert {row["width"] for row in counted} == {0.5, 1.0}
    assert all(row["saved_activation_mb"]["n"] >= 1 and row["saved_activation_mb"]["minimum"] > 0 for row in counted)
    stages = [row for row in rows if "of_own_blocks" in row]
    assert len(stages) == 2 * memories.STAGES and all("queue_mb" in row for row in stages)
    assert sum(row.get("derived", False) and "saved_activation_mb" in row for row in rows) == 2 * memories.STAGES
    processes = [row for row in rows if "peak_process_mb" in row]
    assert len(processes) == 6
    assert all(row["peak_process_mb"]["median"] > row["added_process_mb"]["median"] > 0 for row in processes)


def scaling(report: Report) -> None:
    points = [row for row in report["rows"] if "seconds" in row]
    fits = [row for row in report["rows"] if "exponent" in row]
    assert {row["axis"] for row in points} == {"blocks", "width", "batch", "stages"}
    assert {(row["axis"], row["method"]) for row in fits} == {
        (axis, method.label) for axis in ("blocks", "width", "batch") for method in sizes.METHODS
    }
    assert all(row["seconds"]["n"] == 1 and row["seconds"]["minimum"] > 0 for row in points)
    assert all(row["samples_per_second"]["minimum"] > 0 for row in points)
    assert all(("of_one_stage" in row) == (row["axis"] == "stages") for row in points)
    assert all(row["exponent"]["n"] == 1 and "largest_deviation" in row for row in fits)


def queue(report: Report) -> None:
    labels = set(by_label(report))
    assert {f"{load.kib} KiB: {way}" for load in queues.loads(quick=True) for way in WAYS} <= labels
    assert {f"vgg8b x 0.25, batch 128: {part}" for part in ("stage 0", "stage 1", "pipeline")} <= labels
    for row in report["rows"]:
        figures = figures_of(row)
        assert figures and all(figure["n"] == 1 for figure in figures.values())
        # A difference may come out below zero on a busy machine.
        assert all(figure["minimum"] > 0 for name, figure in figures.items() if not name.endswith("_percent"))


def heads(report: Report) -> None:
    rows = by_label(report)
    assert set(rows) == {"digits: conv", "digits: pool-4x4", "digits: pred"}
    assert all(row["test_error_percent"]["n"] == 2 for row in rows.values())
    assert "standard_error" in rows["digits: pool-4x4"] and "standard_error" not in rows["digits: conv"]


def input_(report: Report) -> None:
    for row in report["rows"]:
        assert row["images_per_second"]["n"] >= 5 and row["images_per_second"]["minimum"] > 0


ROWS: dict[str, Callable[[Report], None]] = {
    "throughput": throughput,
    "schedule": schedule,
    "time-to-accuracy": time_to_accuracy,
    "memory": memory,
    "scaling": scaling,
    "queue": queue,
    "heads": heads,
    "input": input_,
}
# How the names of the first targets begin, and what all targets want, where the quick form settles it.
NAMES = {
    "throughput": ["1.", "1.", "2.", "5.", "5."],
    "schedule": ["4. emulated, "] * 6,
    "heads": ["2. digits:"],
}
WANTED = {
    "schedule": ["at least 97", "at least 95", "at least 1.32", "at least 1.35", "at least 1", "at least 1.4"],
    "memory": ["at most 0.35", "at most 0.45", "at most 1"],
    "scaling": ["at most 1.02"],
    "queue": ["at least 0.97", "at most 3", "at most 3"],
    "input": ["at least 30000"],
}


def start(name: str, folder: Path) -> Report:
    """The report of `python -m benchmarks NAME --quick`, run in a folder of its own."""
    arguments = [name, "--quick", "--output", str(folder)]
    if name == BY_COMMAND:
        done = fresh("-m", "benchmarks", *arguments, cwd=folder, timeout_s=800)
        assert done.returncode == 0, done.stderr
    else:
        with chdir(folder):
            assert main(arguments) == 0
    report: Report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Report, Path]]:
    """Folder and report of an experiment, which is started once."""

    @cache
    def once(name: str) -> tuple[Report, Path]:
        folder = tmp_path_factory.mktemp(name)
        return start(name, folder), folder

    return once


def test_every_experiment_is_here() -> None:
    assert [*ROWS, "gpu"] == list(EXPERIMENTS)  # that one needs a GPU


@pytest.mark.parametrize("name", ROWS)
def test_an_experiment_runs_from_the_command_line(quick: Callable[[str], tuple[Report, Path]], name: str) -> None:
    report, folder = quick(name)
    assert report["command"] == f"python -m benchmarks {name} --quick"
    assert (folder / f"{name}.png").stat().st_size > 5000
    ROWS[name](report)
    names = [target["name"] for target in report["targets"]]
    beginnings = NAMES.get(name, [])
    assert [found[: len(first)] for found, first in zip(names, beginnings, strict=False)] == beginnings
    if name in WANTED:
        assert [target["wanted"] for target in report["targets"]] == WANTED[name]


def test_the_heads_experiment_goes_on_where_it_stopped(quick: Callable[[str], tuple[Report, Path]]) -> None:
    _, folder = quick("heads")
    done = folder / "runs" / "benchmarks" / "heads" / "quick" / "digits-pred-1" / "summary.json"
    summary = json.loads(done.read_text(encoding="utf-8"))
    done.write_text(json.dumps(summary | {"test_error_percent": 1.25}), encoding="utf-8")
    again = by_label(start("heads", folder))
    assert again["digits: pred"]["test_error_percent"]["minimum"] == 1.25, "a run that is done is not run again"


def test_the_heads_experiment_refuses_runs_of_other_settings(
    quick: Callable[[str], tuple[Report, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = quick("heads")
    kept = folder / "runs" / "benchmarks" / "heads" / "quick" / "digits-pool-4x4-2" / "config.toml"
    before = kept.read_text(encoding="utf-8")
    kept.write_text(before.replace("lr = 0.0005", "lr = 0.25"), encoding="utf-8")
    with chdir(folder):
        assert main(["heads", "--quick", "--output", str(folder)]) == 1
    kept.write_text(before, encoding="utf-8")
    assert "digits-pool-4x4-2 holds a run of other settings (lr); remove it" in capsys.readouterr().err
