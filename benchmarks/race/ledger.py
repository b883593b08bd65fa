"""What has been trained: a JSON file for each line of each task, with every try and every run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.kept import write_whole
from benchmarks.harness.report import provenance
from benchmarks.race.curves import Curve
from benchmarks.race.lines import Line
from benchmarks.race.tasks import Task
from pipeline.config.schema import SECTIONS, RunConfig
from pipeline.errors import DataError, first_line
from pipeline.text import brief

__all__ = ["Job", "Kept", "Ledger", "Trained"]

_SCHEMA = 1
_ELSEWHERE = ("data_dir", "threads", "seed")  # fields that change no curve, or are kept with it


@dataclass(frozen=True)
class Job:
    """One training: a try, where `seed` is None, or a run."""

    line: Line
    lr: float
    head_lr: float
    seed: int | None = None


@dataclass(frozen=True)
class Trained:
    """A training that has ended."""

    lr: float
    head_lr: float
    seed: int | None
    curve: Curve

    @property
    def error(self) -> float:
        """At its end, in percent."""
        return self.curve.errors[-1]


@dataclass(frozen=True)
class Kept:
    """Of a line: tries on the held-out samples, and runs by seed."""

    tries: tuple[Trained, ...] = ()
    runs: tuple[Trained, ...] = ()

    def choice(self) -> tuple[float, float]:
        """The learning rate, and the heads' factor of it, of the best try; of equal ones the first."""
        best = min(self.tries, key=lambda one: one.error)
        return best.lr, best.head_lr


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
        path = self.path(line)
        if not path.exists():
            return Kept()
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            settings = report["settings"]
            kept = Kept(*(tuple(_trained(row) for row in report[part]) for part in ("tries", "runs")))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} cannot be read as curves of a race ({brief(first_line(error))}); mend or remove it"
            ) from error
        wanted = self._settings(line)
        differ = sorted(name for name in settings.keys() | wanted.keys() if settings.get(name) != wanted.get(name))
        if differ:
            raise DataError(f"{path} was trained with other settings ({', '.join(differ)}); remove it to train anew")
        return kept

    def add(self, job: Job, curve: Curve) -> None:
        """Keep what has been trained."""
        kept, new = self.read(job.line), Trained(job.lr, job.head_lr, job.seed, curve)
        tries, runs = (*kept.tries, new) if job.seed is None else kept.tries, kept.runs
        if job.seed is not None:
            runs = tuple(sorted((*runs, new), key=lambda one: one.seed or 0))
        report = {
            "schema": _SCHEMA,
            "name": f"{self._task.name}: {job.line.name}",
            **asdict(provenance()),
            "settings": self._settings(job.line),
            "tries": [asdict(one) for one in tries],
            "runs": [asdict(one) for one in runs],
        }
        write_whole(self.path(job.line), report)

    def _settings(self, line: Line) -> dict[str, Any]:
        """What is not the default, as JSON gives it back."""
        task, first = self._task, self._task.rates[0]
        shared = {
            "tuning_epochs": task.tuning_epochs,
            "looks": task.looks,
            "parts": line.parts,
            "every": line.every,
            "diloco": line.outer,
        }
        config = _departures(line.applied(task.config, first, 1.0, 1))
        found: dict[str, Any] = json.loads(json.dumps({**config, **shared, "lr": None}))
        return found


def _departures(config: RunConfig) -> dict[str, Any]:
    departures = {}
    for section, kind in SECTIONS.items():
        ours, plain = getattr(config, section), kind()
        for entry in fields(kind):
            value = getattr(ours, entry.name)
            if value != getattr(plain, entry.name) and entry.name not in _ELSEWHERE:
                departures[entry.name] = value
    return departures


def _trained(row: Mapping[str, Any]) -> Trained:
    curve = row["curve"]
    errors: Sequence[float] = curve["errors"]
    return Trained(
        row["lr"], row["head_lr"], row["seed"], Curve(tuple(curve["steps"]), tuple(errors), curve["seconds"])
    )
