"""Speeds in files: all of a task, and the rounds of a measurement that is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Provenance, code_digest
from benchmarks.race.entrants import Entrant
from benchmarks.race.kept import keep_of_lines, origin_of, read_of_lines, settings_of
from benchmarks.race.lines import Line
from benchmarks.race.speed import Begun, Round, Speed, Split, timed
from benchmarks.race.tasks import Task

__all__ = ["begun_path", "keep_begun", "keep_speeds", "read_begun", "read_speeds"]


def keep_speeds(
    path: Path, task: Task, all_lines: Sequence[Line], speeds: Mapping[str, Speed], origin: Provenance
) -> None:
    """Write all speeds of a task, whose entrants are of `all_lines`, and where and with what they were measured.

    What was kept of the measurement while it was under way is gone then.
    """
    found = {label: asdict(speed) for label, speed in speeds.items()}
    keep_of_lines(path, f"{task.name}: speed", origin, settings_of(timed(task)), all_lines, {"speeds": found})
    begun_path(path).unlink(missing_ok=True)


def read_speeds(path: Path, task: Task, all_lines: Sequence[Line]) -> tuple[dict[str, Speed], Provenance | None]:
    """What is kept, by label, and where and with what it was measured; nothing where there is no file.

    Raises DataError for one that is not ours, or of other settings or lines.
    """

    def parse(report: Mapping[str, Any]) -> tuple[dict[str, Speed], Provenance]:
        rows = report["speeds"].items()
        speeds = {label: Speed(tuple(row["seconds"]), row["megabytes"], row["joules"]) for label, row in rows}
        return speeds, origin_of(report)

    return read_of_lines(path, "speeds", settings_of(timed(task)), all_lines, parse) or ({}, None)


def begun_path(path: Path) -> Path:
    """Of what is under way, beside the file at `path` that it becomes."""
    return path.with_suffix(".begun.json")


def keep_begun(path: Path, task: Task, all_lines: Sequence[Line], begun: Begun, origin: Provenance) -> None:
    """Write what is measured so far of what will be kept at `path`, and where and with what it was begun."""
    name = f"{task.name}: speed, under way"
    content = {"code": code_digest(), **asdict(begun)}
    keep_of_lines(begun_path(path), name, origin, settings_of(timed(task)), all_lines, content)


def read_begun(
    path: Path, task: Task, all_lines: Sequence[Line], all_entrants: Sequence[Entrant], here: Provenance
) -> Begun | None:
    """What has been measured of all these entrants; None where that is nothing, or was measured elsewhere.

    Rounds are compared with each other, and so must be of one machine and one code, whatever else has been committed.
    Raises DataError as `read_speeds`.
    """

    def parse(report: Mapping[str, Any]) -> tuple[Begun, Provenance, str | None]:
        splits: dict[str, Split] = {label: found and tuple(found) for label, found in report["splits"].items()}
        rounds = tuple(Round(dict(turn["seconds"]), dict(turn["joules"])) for turn in report["rounds"])
        return Begun(splits, rounds), origin_of(report), report.get("code")

    found = read_of_lines(begun_path(path), "speeds under way", settings_of(timed(task)), all_lines, parse)
    if found is None:
        return None
    begun, origin, code = found
    everyone = {entrant.label for entrant in all_entrants}
    there, now = (origin.machine, origin.versions, code), (here.machine, here.versions, code_digest())
    return begun if there == now and begun.splits.keys() == everyone else None
