"""What the rows came to: a JSON file for each, with every run that has been made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import Figure, summarize
from benchmarks.harness.kept import read_whole, write_whole
from benchmarks.paper.rows import Plan

__all__ = ["Kept", "Run", "Setting", "add", "read", "setting_of"]

SCHEMA = 1

_FIGURES = ("test_error_percent", "best_test_error_percent", "train_error_percent", "train_seconds")


@dataclass(frozen=True)
class Setting:
    """How a row was run, seeds apart.

    Attributes:
        epochs: that it had.
        recipe_epochs: that the paper's schedule has.
        changes: what else differs from the recipe, by field.
    """

    epochs: int
    recipe_epochs: int
    changes: Mapping[str, Any]

    @property
    def departure(self) -> str:
        """What differs from the paper's recipe, in words; empty where nothing does."""
        told = [f"{name.replace('_', ' ')} {_said(value)}" for name, value in self.changes.items()]
        if self.epochs != self.recipe_epochs:
            told.insert(0, f"shortened to {self.epochs} of {self.recipe_epochs} epochs")
        return ", ".join(told)

    @property
    def label(self) -> str:
        return self.departure or f"as published, {self.epochs} epochs"


def _said(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training that has ended, and where and how it was made; errors are percent, times seconds of training."""

    seed: int
    test_error_percent: float
    best_test_error_percent: float
    train_error_percent: float
    block_test_error_percent: Sequence[float | None]
    train_seconds: float
    processes: int
    threads: Sequence[int]
    device: str
    precision: str
    state_sha256: str
    train_curve: Sequence[float]  # errors by epoch
    test_curve: Sequence[float | None]
    command: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None


Kept = Mapping[str, Mapping[str, tuple[Setting, Sequence[Run]]]]
"""By row, and by the setting's label."""


def setting_of(plan: Plan) -> Setting:
    return Setting(plan.epochs, plan.recipe_epochs, plan.changes)


def read(folder: Path) -> dict[str, dict[str, tuple[Setting, list[Run]]]]:
    """All that is kept, by row and by the setting's label. Raises DataError that names a file which is not ours."""
    return dict(read_whole(path, "the results of a row", _row_of) for path in sorted(folder.glob("*.json")))


def _row_of(report: Mapping[str, Any]) -> tuple[str, dict[str, tuple[Setting, list[Run]]]]:
    return report["row"], {row["label"]: _setting(row) for row in report["rows"]}


def _setting(row: Mapping[str, Any]) -> tuple[Setting, list[Run]]:
    return Setting(row["epochs"], row["recipe_epochs"], row["changes"]), [Run(**run) for run in row["runs"]]


def add(folder: Path, row: str, setting: Setting, run: Run) -> Path:
    """Keep a run, in place of one with its seed and setting. Returns the file, which is whole at any time."""
    kept = read(folder).get(row, {})
    _, before = kept.get(setting.label, (setting, []))
    runs = sorted([*(one for one in before if one.seed != run.seed), run], key=lambda one: one.seed)
    rows = {**kept, setting.label: (setting, runs)}
    report = {
        "schema": SCHEMA,
        "name": f"paper: {row}",
        "row": row,
        **{name: getattr(run, name) for name in ("command", "machine", "versions", "commit")},
        "rows": [_row(label, *found) for label, found in sorted(rows.items())],
        "targets": [],
    }
    path = folder / f"{row.replace('/', '-')}.json"
    write_whole(path, report)
    return path


def _row(label: str, setting: Setting, runs: Sequence[Run]) -> dict[str, Any]:
    figures: dict[str, Figure] = {name: summarize([getattr(run, name) for run in runs]) for name in _FIGURES}
    return {
        "label": label,
        **asdict(setting),
        **{name: asdict(figure) for name, figure in figures.items()},
        "runs": [asdict(run) for run in runs],
    }
