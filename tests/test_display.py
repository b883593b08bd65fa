"""Displays: everything a person should see is there, in a terminal and without one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pipeline.display import LiveDisplay, PlainDisplay, create_display
from tests import records


def console(width: int, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=width, force_terminal=terminal, color_system=None, legacy_windows=False), text


def shown(text: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(("stages", "blocks"), [(1, 2), (4, 8), (8, 20)])
def test_the_live_view_shows_stages_blocks_and_progress(width: int, stages: int, blocks: int) -> None:
    screen, text = console(width, terminal=True)
    view = LiveDisplay(screen)
    view.start(records.plan(stages, blocks))
    view.status([])
    view.status(records.status(stages, blocks, samples=0, loss=None))
    view.status(records.status(stages, blocks, loss=float("nan")))
    view.status(records.status(stages, blocks))
    view.epoch(records.epoch(1, blocks))
    view.finish(records.summary(stages, blocks), "runs/x", records.names(blocks))
    view.close()
    view.close()
    out = shown(text)
    assert max(map(len, out.replace("\r", "\n").split("\n"))) <= width
    for wanted in ("vgg8b on cifar10", "waits for", "busy", "loss", "error %", "images/s", "left", "80%", "12.50"):
        assert wanted in out, wanted
    assert "epoch 1/3: 4.0 s" in out and "test error 7.50 %" in out
    assert "output 64-10" in out and "run folder runs/x" in out and "mind the gap" in out


def test_plain_lines_hold_no_escape_codes_and_one_line_per_epoch() -> None:
    screen, text = console(80, terminal=False)
    view = create_display(False, screen)
    assert isinstance(view, PlainDisplay)
    view.start(records.plan())
    view.status(records.status())
    view.epoch(records.epoch(1))
    view.epoch(records.epoch(2, test=None))
    view.finish(records.summary(), None, records.names(5))
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert [line for line in lines if line.startswith("epoch ")] == [
        "epoch 1/3: 4.0 s, lr 0.0005, train error 20.00 %, test error 7.50 %",
        "epoch 2/3: 4.0 s, lr 0.0005, train error 10.00 %",
    ]
    assert "stage 1: process 1, cpu, 1 thread, blocks 2-4" in text.getvalue()
    assert re.search(r"^ +0 +conv 1-2 +-$", text.getvalue(), re.MULTILINE)
    assert not any(line.startswith("run folder") for line in lines)


def test_quiet_asks_for_plain_lines_in_a_terminal_too() -> None:
    assert isinstance(create_display(True, console(80, terminal=True)[0]), PlainDisplay)
    assert isinstance(create_display(False, console(80, terminal=True)[0]), LiveDisplay)
