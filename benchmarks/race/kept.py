"""Files of a race: with the settings that what they hold was made with, which must be those of today, and where."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.kept import read_whole, write_whole
from benchmarks.harness.report import Provenance
from benchmarks.harness.settings import departures
from benchmarks.race.lines import Line
from pipeline.config.schema import RunConfig
from pipeline.errors import DataError

__all__ = ["keep", "keep_of_lines", "origin_of", "read", "read_of_lines", "settings_of"]

T = TypeVar("T")

_SCHEMA = 1
_ELSEWHERE = ("data_dir", "threads", "seed", "lr")  # fields that change nothing, or are kept with what they change


def settings_of(config: RunConfig) -> dict[str, Any]:
    """All fields that are not at their defaults."""
    return {name: value for name, value in departures(config, RunConfig()).items() if name not in _ELSEWHERE}


def keep(path: Path, name: str, origin: Provenance, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a file in place of what is there; `origin` is where and with what the newest of it was made."""
    write_whole(path, {"schema": _SCHEMA, "name": name, **asdict(origin), "settings": settings, **content})


def read(path: Path, what: str, settings: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    """What `parse` makes of a file; None where there is none.

    Raises DataError for a file that does not hold `what`, or was made with other settings.
    """
    if not path.exists():
        return None
    found, content = read_whole(path, f"{what} of a race", lambda report: (dict(report["settings"]), parse(report)))
    _compare(path, found, settings)
    return content


def keep_of_lines(
    path: Path,
    name: str,
    origin: Provenance,
    settings: Mapping[str, Any],
    lines: Sequence[Line],
    content: Mapping[str, Any],
) -> None:
    """As `keep`, for what several lines were measured in."""
    keep(path, name, origin, settings, {"lines": {line.name: asdict(line) for line in lines}, **content})


def read_of_lines(
    path: Path,
    what: str,
    settings: Mapping[str, Any],
    lines: Sequence[Line],
    parse: Callable[[Mapping[str, Any]], T],
) -> T | None:
    """As `read`; lines that have come since, or are gone, do not matter, but those of the same names must be the same.

    Raises DataError as `read` does.
    """
    found = read(path, what, settings, lambda report: (dict(report["lines"]), parse(report)))
    if found is None:
        return None
    before, content = found
    today = {line.name: asdict(line) for line in lines if line.name in before}
    _compare(path, {name: before[name] for name in today}, today)
    return content


def origin_of(report: Mapping[str, Any]) -> Provenance:
    """Where and with what something was made, as a file tells it."""
    return Provenance(report["machine"], report["versions"], report["commit"])


def _compare(path: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(settings))
    differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differ:
        raise DataError(f"{path} was made with other settings ({', '.join(differ)}); remove it to make it anew")
