"""What a person sees: everything there, nothing wider than the terminal, no codes where there is no terminal."""

from __future__ import annotations

import math
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from pipeline.learning.scores import BlockScore
from pipeline.report import render
from pipeline.report.display import LiveDisplay, NullDisplay, PlainDisplay, create_display
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.transport.messages import StagePlan, StageStatus, StageSummary

CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SIZES = [(8, 4), (20, 8), (20, 1), (2, 2), (1, 1)]


@dataclass(frozen=True)
class Run:
    """All that a display is told of a made-up run."""

    plan: RunPlan
    states: tuple[StageStatus, ...]
    record: EpochRecord
    summary: Summary

    @property
    def names(self) -> list[str]:
        return [name for stage in self.plan.stages for name in stage.names]


def made_up(blocks: int = 8, stages: int = 4, *, missing: bool = False) -> Run:
    """A run; `missing` leaves out or spoils whatever can be."""
    cuts = [round(index * blocks / stages) for index in range(stages + 1)]
    members = [tuple(range(a, b)) for a, b in pairwise(cuts)]
    names = [*(f"conv 512-{500 + index}, pool" for index in range(blocks - 1)), "output 1024-10"]
    plan = RunPlan(
        dataset="digits",
        model="vgg8b",
        loss="predsim",
        seed=1,
        epochs=12,
        steps_per_epoch=12,
        samples_per_epoch=1437,
        batch_size=128,
        processes=stages,
        transport="gloo",
        stages=tuple(
            StagePlan(i, "cuda:1" if i else "cpu", 2, m, tuple(names[b] for b in m), 890_000, 300, 1 / stages)
            for i, m in enumerate(members)
        ),
        notes=("a :smile: note with [bold]brackets[/bold]",),
    )
    odd = [math.nan, None, math.inf]
    losses = [odd[b % 3] if missing else 12.3456 / (b + 1) for b in range(blocks)]
    errors = [odd[b % 3] if missing else 80.0 / (b + 1) for b in range(blocks)]
    fraction = math.nan if missing else 0.9
    states = tuple(
        StageStatus(
            stage=index,
            phase="train",
            epoch=3,
            step=7,
            samples=0 if missing else 3000,
            seconds=math.nan if missing else 2.5,
            busy_fraction=fraction,
            wait_input_fraction=0.06,
            wait_output_fraction=0.03,
            blocks=tuple(BlockScore(b, losses[b], errors[b]) for b in m),
        )
        for index, m in enumerate(members)
    )
    tested = None if missing else tuple(errors)
    last = math.nan if missing else 4.32
    record = EpochRecord(3, 1.94, 1.25e-4, last, None if missing else 3.06, tuple(losses), tuple(errors), tested, ())
    summary = Summary(
        dataset="digits",
        model="vgg8b",
        loss="predsim",
        seed=1,
        epochs=12,
        steps=144,
        batch_size=128,
        processes=stages,
        stages=stages,
        threads=2,
        parameters=8_900_000,
        parameters_local_heads=640_000,
        train_error_percent=last,
        test_error_percent=last,
        best_test_error_percent=1.94,
        block_test_error_percent=tuple(errors),
        train_seconds=71.3,
        samples_per_second=2412.3,
        weights_sha256="ab" * 32,
        state_sha256="cd" * 32,
        stage=tuple(
            StageSummary(i, "cpu", m, 1, fraction, 1.25, 12.5, 0 if missing else 412_000_000, 45_678_901_234)
            for i, m in enumerate(members)
        ),
    )
    return Run(plan, states, record, summary)


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(file=StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor")


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def drawn(view: RenderableType, width: int = 80) -> list[str]:
    """The lines of a view, without colours."""
    console = Console(file=StringIO(), width=width)
    console.print(view)
    return [line.rstrip() for line in written(console).splitlines()]


def show(shown: LiveDisplay | PlainDisplay | NullDisplay, run: Run, folder: str | None = "runs/x") -> None:
    shown.start(run.plan)
    shown.status([])
    shown.status(run.states)
    shown.epoch(run.record)
    shown.note("half way")
    shown.finish(run.summary, folder, run.names)
    shown.close()
    shown.close()


def plain(run: Run, folder: str | None = "runs/x") -> list[str]:
    console = Console(file=StringIO(), width=80)
    show(PlainDisplay(console), run, folder)
    return written(console).splitlines()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(("blocks", "stages"), SIZES)
def test_every_view_fits_the_terminal_whatever_is_missing(blocks: int, stages: int, width: int, missing: bool) -> None:
    run = made_up(blocks, stages, missing=missing)
    console = terminal(width)
    show(LiveDisplay(console, redraw_s=0), run)
    lines = CODE.sub("", written(console)).replace("\r", "\n").splitlines()
    assert max(cell_len(line) for line in lines) <= max(width, 80)  # the line of an epoch is not broken


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


def test_the_summary_has_every_blocks_error_beside_the_networks() -> None:
    run = made_up()
    console = terminal()
    show(LiveDisplay(console, redraw_s=0), run)
    text = CODE.sub("", written(console))
    assert re.search(r" 0  conv 512-500, pool +0  12.3456 +80.00 % +80.00 %", text)
    assert re.search(r" 7  output 1024-10 +3 +1.5432 +10.00 % +10.00 %  <- network", text)
    assert re.search(r" 1  cpu +2-3 +90% +1.2 s +12.5 s +412 MB  45.7 GB", text)
    for found in ("4.32 % (best 1.94 %", "2,412 images/s", "8.90M", "runs/x", "note: half way"):
        assert found in text


def test_epochs_appear_above_the_live_view_while_another_thread_refreshes_it() -> None:
    run = made_up()
    console = terminal()
    live = LiveDisplay(console, redraw_s=0)
    live.start(run.plan)

    def refresh() -> None:
        for step in range(50):
            live.status([replace(state, step=step) for state in run.states])

    thread = threading.Thread(target=refresh)
    thread.start()
    for epoch in range(1, 13):
        live.epoch(replace(run.record, epoch=epoch))
    live.close()
    thread.join()
    live.status(run.states)  # after the end: nothing
    assert re.findall(r"epoch +(\d+)/12 +1.9 s", CODE.sub("", written(console))) == [str(n) for n in range(1, 13)]


def test_an_unchanged_state_is_not_drawn_again() -> None:
    run = made_up()
    console = terminal()
    live = LiveDisplay(console, redraw_s=0)
    live.start(run.plan)
    live.status(run.states)
    before = written(console)
    live.status(tuple(reversed(run.states)))
    assert written(console) == before
    live.close()


def test_the_view_is_not_drawn_more_often_than_wanted() -> None:
    run = made_up()
    console = terminal()
    live = LiveDisplay(console, redraw_s=60)
    live.start(run.plan)
    live.status(run.states)
    before = written(console)
    live.status([replace(state, step=8) for state in run.states])
    assert written(console) == before
    live.close()


def test_the_line_of_a_late_epoch_of_a_long_run_fits_80_columns() -> None:
    late = replace(made_up().record, epoch=400, seconds=12345.6, lr=1.953125e-06, test_error_percent=100.0)
    assert len(render.epoch_text(late, 400).plain) <= 80


def test_the_cursor_is_visible_while_the_view_lives_so_that_a_kill_leaves_it() -> None:
    console = terminal()
    live = LiveDisplay(console, redraw_s=0)
    live.start(made_up().plan)
    assert written(console).rindex("\x1b[?25h") > written(console).rindex("\x1b[?25l")
    live.close()


def test_plain_output_is_a_line_per_stage_and_epoch_and_an_aligned_summary() -> None:
    lines = plain(made_up(4, 2))
    assert lines == [
        "vgg8b on digits, predsim, seed 1: 2 processes (gloo), 12 epochs of 1,437 images in 12 batches of 128",
        "stage 0: process 0, cpu, 2 threads, blocks 0-1, 0.89M parameters (+ 300 in local heads), 50% of the cost",
        "stage 1: process 1, cuda:1, 2 threads, blocks 2-3, 0.89M parameters (+ 300 in local heads), 50% of the cost",
        "note: a :smile: note with [bold]brackets[/bold]",
        "epoch 3/12: 1.9 s, lr 0.000125, train error 4.32 %, test error 3.06 %",
        "note: half way",
        "block  layer               stage     loss  train error  test error",
        "    0  conv 512-500, pool      0  12.3456      80.00 %     80.00 %",
        "    1  conv 512-501, pool      0   6.1728      40.00 %     40.00 %",
        "    2  conv 512-502, pool      1   4.1152      26.67 %     26.67 %",
        "    3  output 1024-10          1   3.0864      20.00 %     20.00 %  <- network",
        "stages busy: 90%, 90%",
        "test error: 4.32 % (best 1.94 %, training 4.32 %)",
        "speed: 2,412 images/s, 71.3 s of training",
        "parameters: 8.90M, 0.64M more in local heads",
        "state: cdcdcdcdcdcdcdcd",
        "run folder: runs/x",
    ]


def test_plain_output_says_nothing_of_a_folder_or_a_test_that_is_not_there() -> None:
    lines = plain(made_up(missing=True), folder=None)
    assert not any("run folder" in line for line in lines)
    assert "epoch 3/12: 1.9 s, lr 0.000125, train error nan %" in lines


def test_plain_output_is_ascii() -> None:
    assert "\n".join(plain(made_up(20, 8))).isascii()


def test_a_summary_without_any_epoch_has_dashes() -> None:
    run = made_up(1, 1)
    console = Console(file=StringIO(), width=80)
    PlainDisplay(console).finish(run.summary, None, run.names)
    assert "    0  output 1024-10      0     -            -     80.00 %  <- network" in written(console)


def test_the_null_display_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show(NullDisplay(), made_up())
    assert capsys.readouterr() == ("", "")


def test_the_live_view_needs_a_terminal_that_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(create_display(False, terminal()), LiveDisplay)
    assert isinstance(create_display(True, terminal()), PlainDisplay)
    assert isinstance(create_display(False, Console(file=StringIO())), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(create_display(False, terminal()), PlainDisplay)


@pytest.mark.runs
def test_no_codes_reach_a_pipe_even_if_colours_are_forced() -> None:
    code = (
        "from tests.report.test_display import made_up, show; from pipeline.report.display import create_display; "
        "show(create_display(False), made_up())"
    )
    environment = {**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert "test error: 4.32 %" in done.stdout and "\x1b" not in done.stdout


@pytest.mark.runs
def test_an_interrupted_run_gives_the_terminal_back() -> None:
    """In a real terminal: the live view is gone, the cursor is there, standard output and error are themselves."""
    code = (
        "import sys\n"
        "from pipeline.report.display import create_display\n"
        "from tests.report.test_display import made_up\n"
        "before, run = (sys.stdout, sys.stderr), made_up()\n"
        "shown = create_display(False)\n"
        "try:\n"
        "    shown.start(run.plan); shown.status(run.states); raise KeyboardInterrupt\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
        "finally:\n"
        "    shown.close()\n"
        "print('same' if before == (sys.stdout, sys.stderr) else 'changed', type(shown).__name__)\n"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    subprocess.run([sys.executable, "-c", code], env=environment, stdout=slave, stderr=slave, check=True, timeout=60)
    os.close(slave)
    seen = os.read(master, 1 << 20).decode()
    os.close(master)
    assert "same LiveDisplay" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


@pytest.mark.runs
def test_the_display_works_without_torch() -> None:
    code = "import pipeline.report.display, pipeline.report.trace, sys; print(*{'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
