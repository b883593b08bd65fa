"""The picture of stages that sleep."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.emulation.load import Load, Window
from benchmarks.emulation.timeline import draw_timeline

pytestmark = [pytest.mark.bench, pytest.mark.usefixtures("forked_crews")]


def test_the_timeline_of_sleeping_stages_is_drawn(tmp_path: Path) -> None:
    draw_timeline(tmp_path / "timeline.png", Load(2, 0.01), Window(1, 7))
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
