"""What an experiment found, as JSON, as a table and as a picture: every figure with median, minimum, maximum and n."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.figures import Figure
from benchmarks.harness.kept import write_text
from benchmarks.harness.pictures import Bars, Picture, draw
from pipeline.text import json_text

__all__ = [
    "Provenance",
    "Result",
    "Row",
    "Target",
    "at_least",
    "at_most",
    "bars",
    "code_digest",
    "provenance",
    "publish",
    "show",
]

SCHEMA = 1
_PACKAGES = ("torch", "torchvision", "numpy")
_ROOT = Path(__file__).resolve().parents[2]
_COLUMNS = 3  # figures beside each other on a terminal of 80 characters


@dataclass(frozen=True)
class Row:
    """One setting of an experiment; names of figures carry their unit, such as `images_per_second`."""

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON file: label, settings and figures side by side."""
        return {"label": self.label, **self.settings, **{name: asdict(f) for name, f in self.figures.items()}}


@dataclass(frozen=True)
class Target:
    """What was hoped for, and whether it came true."""

    name: str
    wanted: str
    measured: float
    met: bool


@dataclass(frozen=True)
class Result:
    """All that an experiment reports: its rows, what was hoped for, and a picture of it."""

    rows: Sequence[Row]
    targets: Sequence[Target]
    picture: Picture


def at_least(name: str, wanted: float, figure: Figure) -> Target:
    """A target met where the median is no smaller."""
    return Target(name, f"at least {wanted:g}", figure.median, figure.median >= wanted)


def at_most(name: str, wanted: float, figure: Figure) -> Target:
    """A target met where the median is no larger."""
    return Target(name, f"at most {wanted:g}", figure.median, figure.median <= wanted)


def bars(figure: str, rows: Sequence[Row]) -> Bars:
    """The picture of one figure over the rows that have it."""
    return Bars(figure.replace("_", " "), {row.label: row.figures[figure] for row in rows if figure in row.figures})


def publish(name: str, command: str, result: Result, folder: Path, origin: Provenance) -> Path:
    """Write `name`.json and `name`.png into `folder`, and return the path of the JSON file.

    `origin` is where and with what it was measured, as it was when that began. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "schema": SCHEMA,
        "name": name,
        "command": command,
        **asdict(origin),
        "rows": [row.to_dict() for row in result.rows],
        "targets": [asdict(target) for target in result.targets],
    }
    path = folder / f"{name}.json"
    write_text(path, json_text(report, indent=2) + "\n")
    draw(name, result.picture, folder / f"{name}.png")
    return path


@dataclass(frozen=True)
class Provenance:
    """Where and with what something was measured; the commit is marked where files differ from it, None without."""

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None


def provenance() -> Provenance:
    """Of this process, now: taken when something begins, since commits may be made while it is measured."""
    return Provenance(_machine(), _versions(), _commit())


@cache
def code_digest() -> str:
    """Of the code that measures and is measured, as this process first saw it: where files differ from their commit,
    or there is none, the commit does not tell two versions apart."""
    found = hashlib.sha256()
    for path in sorted(each for part in ("pipeline", "launch", "benchmarks") for each in (_ROOT / part).rglob("*.py")):
        found.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def _machine() -> dict[str, Any]:
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)), "devices": devices}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit measured, marked where the code differs from it; None outside a checkout."""
    git = ["git", "-C", str(_ROOT)]
    try:
        commit = _said([*git, "rev-parse", "HEAD"])
        changed = _said([*git, "status", "--porcelain", "--", "pipeline", "launch", "benchmarks/**.py"])
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def show(name: str, result: Result) -> None:
    """Print the result: its tables, and what was hoped for."""
    console = Console()
    for figures, rows in _alike(result.rows).items():
        for first in range(0, len(figures), _COLUMNS):
            console.print(_table(name, figures[first : first + _COLUMNS], rows))
    for target in result.targets:
        verdict = "met" if target.met else "MISSED"
        console.print(f"{verdict}: {target.name}: wanted {target.wanted}, measured {_number(target.measured)}")


def _alike(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the names of their figures: one table for all rows would be mostly empty."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.figures), []).append(row)
    return found


def _table(name: str, figures: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(title=name)
    table.add_column("")
    for figure in figures:
        table.add_column(figure.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(row.label, *(_cell(row.figures[figure]) for figure in figures))
    return table


def _cell(figure: Figure) -> str:
    return f"{_number(figure.median)} ({_number(figure.minimum)} to {_number(figure.maximum)}, n={figure.n})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
