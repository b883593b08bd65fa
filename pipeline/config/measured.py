"""What a checkout keeps of the paper's experiments, in a few words for the list of recipes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read_measured"]


def read_measured(folder: Path) -> dict[str, str]:
    """By experiment, test error and how it was run; whatever in the folder is no such result is left out."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            found[str(report["row"])] = _said(min(report["rows"], key=_distance))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


def _distance(row: Mapping[str, Any]) -> tuple[bool, int]:
    """From the recipe: nothing changed is nearest, then the longest schedule."""
    return bool(row["changes"]), int(row["recipe_epochs"]) - int(row["epochs"])


def _said(row: Mapping[str, Any]) -> str:
    error = statistics.fmean(run["test_error_percent"] for run in row["runs"])
    changed = bool(row["changes"]) or row["epochs"] != row["recipe_epochs"]
    return f"{error:.2f} %" + (f" ({row['label']})" if changed else "")
