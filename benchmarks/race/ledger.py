"""What has been trained: a JSON file for each line of each task, with every try and every run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Provenance
from benchmarks.race.curves import Curve
from benchmarks.race.kept import keep, origin_of, read, settings_of
from benchmarks.race.lines import Line
from benchmarks.race.tasks import Task

__all__ = ["Job", "Kept", "Ledger", "Trained"]


@dataclass(frozen=True)
class Job:
    """One training: a try, where `seed` is None, or a run."""

    line: Line
    lr: float
    head_lr: float
    seed: int | None = None


@dataclass(frozen=True)
class Trained:
    """A training that has ended; files that began before each had its `origin` leave it open."""

    lr: float
    head_lr: float
    seed: int | None
    curve: Curve
    origin: Provenance | None = None

    @property
    def error(self) -> float:
        """At its end, in percent."""
        return self.curve.errors[-1]


@dataclass(frozen=True)
class Kept:
    """Of a line: tries on the held-out samples, and runs by seed."""

    tries: tuple[Trained, ...] = ()
    runs: tuple[Trained, ...] = ()

    def best(self) -> Trained:
        """The try with the least error; of equal ones that with the lower rates."""
        return min(self.tries, key=lambda one: (one.error, one.lr, one.head_lr))


class Ledger:
    """The files of a task.

    Args:
        folder: that has one folder for each task.
        task: whose settings the files must have been made with.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = folder / task.name, task

    def path(self, line: Line) -> Path:
        """Of a line."""
        return self._folder / f"{re.sub(r'[^a-z0-9]+', '-', line.name.lower())}.json"

    def read(self, line: Line) -> Kept:
        """What is kept of a line. Raises DataError for a file that is not ours, or was made with other settings."""

        def parse(report: Mapping[str, Any]) -> Kept:
            return Kept(*(tuple(_trained(row) for row in report[part]) for part in ("tries", "runs")))

        return read(self.path(line), "curves", self._settings(line), parse) or Kept()

    def add(self, job: Job, curve: Curve, origin: Provenance) -> None:
        """Keep what has been trained, and where and with what, in place of the same training.

        Somebody else may have made and kept it meanwhile.
        """
        kept, new = self.read(job.line), Trained(job.lr, job.head_lr, job.seed, curve, origin)
        others = [one for one in (*kept.tries, *kept.runs) if _which(one) != _which(new)]
        tries = [one for one in (*others, new) if one.seed is None]
        runs = sorted((one for one in (*others, new) if one.seed is not None), key=lambda one: one.seed or 0)
        content = {"tries": [_row(one) for one in tries], "runs": [_row(one) for one in runs]}
        keep(self.path(job.line), f"{self._task.name}: {job.line.name}", origin, self._settings(job.line), content)

    def _settings(self, line: Line) -> dict[str, Any]:
        task = self._task
        return {
            **settings_of(line.applied(task.config, task.rates[0], 1.0, 1)),
            # A wider grid may choose other rates, with which the runs were not made.
            "rates": task.rates,
            "factors": task.head_rates if line.is_local else task.fine_rates,
            "tuning_epochs": task.tuning_epochs,
            "looks": task.looks,
            "parts": line.parts,
            "every": line.every,
            "diloco": line.diloco,
        }


def _which(one: Trained) -> object:
    """What it is of its line: a try with these rates, or the run of this seed."""
    return (one.lr, one.head_lr) if one.seed is None else one.seed


def _row(one: Trained) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if name != "origin" or value is not None}


def _trained(row: Mapping[str, Any]) -> Trained:
    curve = row["curve"]
    errors: Sequence[float] = curve["errors"]
    return Trained(
        row["lr"],
        row["head_lr"],
        row["seed"],
        Curve(tuple(curve["steps"]), tuple(errors), curve["seconds"]),
        origin_of(row["origin"]) if "origin" in row else None,
    )
