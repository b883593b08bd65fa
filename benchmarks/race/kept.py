"""Files of a race: with the settings that what they hold was made with, which must be those of today."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness.kept import read_whole, write_whole
from benchmarks.harness.report import provenance
from benchmarks.harness.settings import departures
from pipeline.config.schema import RunConfig
from pipeline.errors import DataError

__all__ = ["keep", "read", "settings_of"]

T = TypeVar("T")

_SCHEMA = 1
_ELSEWHERE = ("data_dir", "threads", "seed", "lr")  # fields that change nothing, or are kept with what they change


def settings_of(config: RunConfig) -> dict[str, Any]:
    """All fields that are not at their defaults."""
    return {name: value for name, value in departures(config, RunConfig()).items() if name not in _ELSEWHERE}


def keep(path: Path, name: str, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a file in place of what is there."""
    write_whole(path, {"schema": _SCHEMA, "name": name, **asdict(provenance()), "settings": settings, **content})


def read(path: Path, what: str, settings: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T]) -> T | None:
    """What `parse` makes of a file; None where there is none.

    Raises DataError for a file that does not hold `what`, or was made with other settings.
    """
    if not path.exists():
        return None
    found, content = read_whole(path, f"{what} of a race", lambda report: (dict(report["settings"]), parse(report)))
    wanted = json.loads(json.dumps(settings))
    differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differ:
        raise DataError(f"{path} was made with other settings ({', '.join(differ)}); remove it to make it anew")
    return content
