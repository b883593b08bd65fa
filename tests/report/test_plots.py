"""Pictures are drawn whatever is missing from a run, and show the right part of it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.report.plots import _window, save_curves, save_timeline
from pipeline.report.records import EpochRecord
from pipeline.spans import Span


def record(epoch: int, blocks: int, *, tested: bool = True, value: float | None = None) -> EpochRecord:
    errors = tuple(value if value is not None else 60 / epoch + block for block in range(blocks))
    return EpochRecord(
        epoch=epoch,
        seconds=1.0,
        lr=5e-4,
        train_error_percent=errors[-1],
        test_error_percent=errors[-1] if tested else None,
        block_loss=tuple(2 / (epoch + block) for block in range(blocks)),
        block_train_error_percent=errors,
        block_test_error_percent=errors if tested else None,
        stage=(),
    )


def spans_of_a_run(stages: int, epochs: int, batches: int) -> list[Span]:
    """Every stage forwards and updates each batch; after an epoch the last one evaluates for as long."""
    spans, now = [], 0
    for epoch in range(epochs):
        for step in range(epoch * batches, (epoch + 1) * batches):
            for stage in range(stages):
                spans.append(Span(stage, "compute", "forward", step, now + stage * 100, 400))
                spans.append(Span(stage, "send", "send", step, now + stage * 100 + 400, 1900))
                spans.append(Span(stage, "compute", "update", step, now + stage * 100 + 400, 600))
            now += 1000
        spans.append(Span(stages - 1, "compute", "evaluate", step, now + 1000, batches * 1000, "evaluate"))
        now += 1000 + batches * 1000
    return spans


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


@pytest.mark.parametrize("title", ["画像 on 🙂", "\x1b[31m", "$x$_{ \udcff", "Ärger"])
def test_a_title_is_drawn_whatever_signs_the_font_has(title: str, tmp_path: Path) -> None:
    """Each that it has not would be a warning."""
    save_curves([], tmp_path / "curves.png", title)
    assert is_picture(tmp_path / "curves.png")


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(1, 8)],
        [record(1, 8, tested=False)],
        [record(epoch, 20, tested=epoch % 5 == 0) for epoch in range(1, 41)],
        [record(epoch, 1) for epoch in (1, 2)],
        [record(epoch, 3, value=math.nan) for epoch in (1, 2)],
        [record(epoch, 3, value=0.0) for epoch in (1, 2)],
    ],
    ids=["no epoch", "one epoch", "no test", "test now and then", "one block", "diverged", "no errors left"],
)
def test_curves_are_drawn_whatever_is_missing(records: list[EpochRecord], tmp_path: Path) -> None:
    save_curves(records, tmp_path / "curves.png", "vgg8b on digits, predsim")
    assert is_picture(tmp_path / "curves.png")


def test_blocks_without_classifier_or_loss_are_left_out(tmp_path: Path) -> None:
    records = [
        EpochRecord(epoch, 1.0, 5e-4, 9.0, 8.0, (None, None, 0.1), (None, None, 9.0), (None, None, 8.0), ())
        for epoch in (1, 2)
    ]
    save_curves(records, tmp_path / "curves.png", "glob")
    assert is_picture(tmp_path / "curves.png")


def test_a_title_is_no_formula(tmp_path: Path) -> None:
    save_curves([record(1, 2)], tmp_path / "curves.png", "a $\\frac{ name $ of the user's")
    assert is_picture(tmp_path / "curves.png")


@pytest.mark.parametrize("stages", [1, 4, 8])
def test_timelines_are_drawn_for_any_number_of_stages(stages: int, tmp_path: Path) -> None:
    save_timeline(spans_of_a_run(stages, epochs=2, batches=20), tmp_path / "timeline.png")
    assert is_picture(tmp_path / "timeline.png")


@pytest.mark.parametrize(
    "spans",
    [[], [Span(0, "compute", "something new", 0, 5, 0)], [Span(2, "compute", "forward", 0, 5, 10)]],
    ids=["nothing", "an unknown name of no length", "one span of one stage"],
)
def test_timelines_are_drawn_from_next_to_nothing(spans: list[Span], tmp_path: Path) -> None:
    save_timeline(spans, tmp_path / "timeline.png")
    assert is_picture(tmp_path / "timeline.png")


def test_a_timeline_shows_seven_training_batches_near_the_middle_and_no_evaluation() -> None:
    spans = spans_of_a_run(stages=3, epochs=4, batches=20)
    begin_ns, end_ns = _window(spans)
    steps = {s.step for s in spans if s.stage == 2 and s.lane == "compute" and begin_ns <= s.start_ns < end_ns}
    assert len(steps) == 7
    assert min(steps) // 20 == max(steps) // 20 in (1, 2)
    assert not any(s.name == "evaluate" and s.start_ns < end_ns and s.end_ns > begin_ns for s in spans)


@pytest.mark.runs
def test_importing_plots_loads_neither_matplotlib_nor_torch() -> None:
    code = "import pipeline.report.plots, sys; print(*{'torch', 'matplotlib'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_pictures_leave_pyplot_alone(tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    save_curves([record(1, 2)], tmp_path / "curves.png", "")
    save_timeline([], tmp_path / "timeline.png")
    assert ("matplotlib.pyplot" in sys.modules) == before
