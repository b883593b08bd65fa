"""Views: everything in them, nothing wider or higher than the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pipeline.learning.packet import Position
from pipeline.report import render
from pipeline.runtime.agreement import Sizes
from tests.support.made_up import drawn, made_up


def test_the_live_view_fits_80_columns_with_everything_in_it() -> None:
    run = made_up()
    bar, heading, *rows = drawn(render.live_view(run.plan, run.states, 80, 24))
    assert re.fullmatch(r"epoch 3/12  ━+ +17%  1,200 images/s  0:12 left", bar)
    assert heading.split() == ["stage", "busy", "wait", "in", "wait", "out", "block", "loss", "error", "%"]
    assert rows[0].split() == ["0", "█████░", "90%", "6%", "3%", "0", "conv", "512-500,", "pool", "12.3456", "80.00"]
    assert rows[7].split() == ["7", "output", "1024-10", "1.5432", "10.00"]
    assert len(rows) == 8 and "…" not in "".join(rows)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("height", [12, 18, 24])
def test_the_live_view_of_20_blocks_in_8_stages_is_never_higher_than_the_terminal(width: int, height: int) -> None:
    run = made_up(20, 8)
    lines = drawn(render.live_view(run.plan, run.states, width, height), width)
    assert len(lines) < height
    assert all(str(score.block) in " ".join(lines) for state in run.states for score in state.blocks) or height == 12


def test_before_any_data_there_are_dashes() -> None:
    run = made_up(missing=True)
    for states in ((), run.states):
        assert "- images/s  -:-- left" in drawn(render.live_view(run.plan, states, 80, 24))[0]


def test_a_stage_that_has_not_reported_has_dashes_and_gives_no_rate() -> None:
    run = made_up()
    lines = drawn(render.live_view(run.plan, run.states[:1], 80, 24))
    assert "- images/s  -:-- left  starting" in lines[0]
    assert lines[2].split()[:5] == ["0", "█████░", "90%", "6%", "3%"]
    assert lines[3].split()[:4] == ["1", "-", "-", "-"]
    assert len(lines) == len(drawn(render.live_view(run.plan, run.states, 80, 24)))


def test_the_rate_is_the_last_stages() -> None:
    run = made_up(2, 2)
    first, last = run.states
    states = [replace(first, samples=9000), replace(last, samples=1437 * 6, seconds=10.0)]
    assert "50%  862 images/s  0:10 left" in drawn(render.live_view(run.plan, states, 80, 24))[0]


def test_a_run_that_goes_on_counts_what_it_has_done_before_but_not_in_its_rate() -> None:
    """It began at 0 % again, and told the time of the whole run as what is left."""
    sizes = Sizes((1, 8, 8), 10, 1437, 360, 12)
    before = sizes.samples_before(Position(6, 5 * 12 + 6), 128)
    assert before == 5 * 1437 + 6 * 128
    assert Sizes((8,), 2, 33, 1, 1).samples_before(Position(2, 1), 32) == 32, "a last batch of one is left out"
    plan = replace(made_up(1, 1).plan, samples_before=before)
    state = replace(made_up(1, 1).states[0], samples=1437 * 6 - before, seconds=0.5)
    assert "50%  1,338 images/s  0:06 left" in drawn(render.live_view(plan, [state], 80, 24))[0]


def test_a_run_that_is_done_is_full() -> None:
    run = made_up(1, 1)
    state = replace(run.states[0], phase="done", samples=12 * 1437 + 5, epoch=12)
    (line,) = drawn(render._progress(run.plan, state, 80))
    assert "100%" in line and line.endswith("0:00 left  done")


@pytest.mark.parametrize(
    ("shares", "bar"),
    [
        ((0.5, 0.3, 0.2), "█████░░░▒▒"),
        ((1.0, 0.0, 0.0), "██████████"),
        ((0.9, 0.9, 0.9), "█████████░"),
        ((math.nan, 0.5, -1.0), "░░░░░     "),
    ],
)
def test_the_bar_of_a_stage_shows_work_and_both_waits(shares: Sequence[float], bar: str) -> None:
    assert render._share_bar(shares, 10).plain == bar


def test_the_plan_names_every_block_where_there_is_room() -> None:
    run = made_up()
    for width in (80, 120):
        lines = drawn(render.plan_table(run.plan, width), width)
        assert all(f"{index} {name}" in "\n".join(lines) for index, name in enumerate(run.names))
    assert " ".join(lines[1].split()) == "0 0 cpu 2 0 conv 512-500, pool; 1 conv 512-501, pool 0.89M 300 25%"


def test_a_long_list_of_blocks_is_cut() -> None:
    run = made_up(40, 8)
    lines = drawn(render.plan_table(run.plan, 80))
    assert len(lines) == 1 + 8 * 3 and lines[3].endswith("…")


def test_the_line_of_a_late_epoch_of_a_long_run_fits_80_columns() -> None:
    late = replace(made_up().record, epoch=400, seconds=12345.6, lr=1.953125e-06, test_error_percent=100.0)
    assert len(render.epoch_text(late, 400).plain) <= 80
