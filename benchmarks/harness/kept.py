"""JSON files that grow while an experiment goes on, and are whole at any time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.text import json_text

__all__ = ["write_whole"]


def write_whole(path: Path, report: Mapping[str, Any]) -> None:
    """Write `report` in place of what is there, indented, with a list of numbers on a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json_text(report, indent=1)
    text = re.sub(r'\[\n([^\[\]{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
