"""JSON files that grow while an experiment goes on, and are whole at any time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import DataError, first_line
from pipeline.text import brief, json_text

__all__ = ["read_whole", "write_text", "write_whole"]

T = TypeVar("T")


def write_whole(path: Path, report: Mapping[str, Any]) -> None:
    """Write `report` in place of what is there, indented, with a list of numbers on a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json_text(report, indent=1)
    text = re.sub(r'\[\n([^\[\]{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write `text` in place of what is there, whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_whole(path: Path, what: str, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """What `parse` makes of a file. Raises DataError that names it where it does not hold `what`."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as {what} ({brief(first_line(error))}); mend or remove it") from error
