"""Displays: what reaches a terminal, a pipe, or nobody, and that the terminal is given back."""

from __future__ import annotations

import ast
import os
import pty
import re
import subprocess
import sys
import threading
from dataclasses import replace
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.report.display import Display, LiveDisplay, PlainDisplay, create_display
from tests.support.made_up import CODE, made_up, plain, show, terminal, written

SIZES = [(8, 4), (20, 8), (20, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(("blocks", "stages"), SIZES)
def test_every_view_fits_the_terminal_whatever_is_missing(blocks: int, stages: int, width: int, missing: bool) -> None:
    run = made_up(blocks, stages, missing=missing)
    console = terminal(width)
    show(LiveDisplay(console, redraw_s=0), run)
    lines = CODE.sub("", written(console)).replace("\r", "\n").splitlines()
    assert max(cell_len(line) for line in lines) <= max(width, 80)  # the line of an epoch is not broken


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


@pytest.mark.parametrize(
    "folder", ["runs/" + 30 * "a long name ", 'it\'s "quoted" ' + 20 * "back\\slash ", "käse/\udce4\x1b[31m" * 9]
)
@pytest.mark.parametrize("width", [20, 80])
def test_the_line_that_loads_the_weights_can_be_copied_whole(folder: str, width: int) -> None:
    """It used to be broken at the width of the terminal, which Python does not take inside of a string."""
    run, console = made_up(), terminal(width)
    show(LiveDisplay(console, redraw_s=0), run, folder)
    line = CODE.sub("", written(console)).rstrip().splitlines()[-1]
    for found in (line.removeprefix("weights"), plain(run, folder)[-1].removeprefix("weights:")):
        call = ast.parse(found.strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        assert ast.unparse(call.func) == "pipeline.load_model"
        assert [ast.literal_eval(argument) for argument in call.args] == [folder]


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
        'weights: pipeline.load_model("runs/x")',
    ]


def test_plain_output_says_nothing_of_a_folder_or_a_test_that_is_not_there() -> None:
    lines = plain(made_up(missing=True), folder=None)
    assert not any("run folder" in line for line in lines)
    assert "epoch 3/12: 1.9 s, lr 0.000125, train error nan %" in lines


def test_the_weights_of_a_users_own_network_are_loaded_into_its_blocks() -> None:
    run = made_up()
    own = replace(run, summary=replace(run.summary, model="custom"))
    assert plain(own, folder='a "b"')[-1] == 'weights: pipeline.load_model("a \\"b\\"", blocks)'


def test_plain_output_takes_any_name_to_any_pipe() -> None:
    run = made_up(1, 1)
    odd = replace(run, plan=replace(run.plan, dataset="画像\x1b[2J", model="é\udcff"))
    raw = BytesIO()
    console = Console(file=TextIOWrapper(raw, encoding="ascii"), width=80)
    show(PlainDisplay(console), odd, "käse")
    lines = raw.getvalue().decode("ascii").splitlines()
    assert lines[0].startswith("\\u00e9\\udcff on \\u753b\\u50cf\\u001b[2J, predsim")
    assert lines[-1] == 'weights: pipeline.load_model("k\\u00e4se")'


def test_plain_output_is_ascii() -> None:
    assert "\n".join(plain(made_up(20, 8))).isascii()


def test_a_summary_without_any_epoch_has_dashes() -> None:
    run = made_up(1, 1)
    console = Console(file=StringIO(), width=80)
    PlainDisplay(console).finish(run.summary, None, run.names)
    assert "    0  output 1024-10      0     -            -     80.00 %  <- network" in written(console)


def test_the_null_display_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show(Display(), made_up())
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
        "from tests.support.made_up import made_up, show; from pipeline.report.display import create_display; "
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
        "from tests.support.made_up import made_up\n"
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
    subprocess.run([sys.executable, "-c", code], env=environment, stdout=slave, stderr=slave, check=True, timeout=240)
    os.close(slave)
    seen = os.read(master, 1 << 20).decode()
    os.close(master)
    assert "same LiveDisplay" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


@pytest.mark.runs
def test_the_display_works_without_torch() -> None:
    code = "import pipeline.report.display, pipeline.report.trace, sys; print(*{'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"
