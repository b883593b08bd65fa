"""Pictures are drawn for every kind of run, also for very short ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.plots import save_curves, save_timeline
from pipeline.trace import Span
from tests import records

PNG = b"\x89PNG"


@pytest.mark.parametrize("epochs", [1, 5])
@pytest.mark.parametrize("tested", [True, False])
def test_curves_are_drawn(tmp_path: Path, epochs: int, tested: bool) -> None:
    made = [records.epoch(n, test=7.5 if tested or n == epochs else None) for n in range(1, epochs + 1)]
    save_curves(made, tmp_path / "curves.png", "title")
    assert (tmp_path / "curves.png").read_bytes()[:4] == PNG


def test_a_timeline_is_drawn_even_of_nothing(tmp_path: Path) -> None:
    spans = [
        Span(stage, "compute", name, step, 1000 * step + 100 * stage, 80)
        for step in range(30)
        for stage in range(3)
        for name in ("forward", "update")
    ]
    for name, shown in (("full", spans), ("empty", [])):
        save_timeline(shown, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == PNG
