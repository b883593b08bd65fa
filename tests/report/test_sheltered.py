"""A display that fails ends alone: the run that it shows never notices."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pipeline.report.display import Display, LiveDisplay, create_display
from pipeline.report.sheltered import Sheltered
from tests.support.made_up import made_up, show, terminal, written


class Leaves(io.StringIO):
    """Takes a few writes."""

    def __init__(self, writes: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = writes, error

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


class Mute:
    """Nothing that a stream has but `write`."""

    def write(self, text: str) -> int:
        return len(text)


OUTPUTS: dict[str, Callable[[], Any]] = {
    "closed at start": lambda: None,
    "without any method": object,
    "only write": Mute,
    "closed": lambda: closed(),
    "a reader that left": lambda: Leaves(2, BrokenPipeError(32, "Broken pipe")),
    "a terminal that is gone": lambda: Leaves(0, OSError(5, "Input/output error")),
    "a full disk": lambda: Leaves(1, OSError(28, "No space left on device")),
    "a bug": lambda: Leaves(3, ValueError("no")),
}


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_run_outlives_its_standard_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, output = made_up(), OUTPUTS[name]()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        shown = Sheltered(lambda: create_display(False))
        show(shown, run)
        assert sys.stdout is output


class Gone(Display):
    """Fails as rich does when nobody reads a pipe."""

    def __init__(self) -> None:
        self.asked = self.closed = 0

    def epoch(self, record: object) -> None:
        self.asked += 1
        raise SystemExit(1)

    def close(self) -> None:
        self.closed += 1
        raise ValueError("nothing to close")


def test_what_has_failed_is_closed_and_not_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    gone = Gone()
    shown = Sheltered(lambda: gone)
    for _ in range(3):
        shown.epoch(made_up().record)
    assert (gone.asked, gone.closed) == (1, 1)
    with caplog.at_level(logging.WARNING):
        shown.note("half \x1b way")
    assert [record.getMessage() for record in caplog.records] == ["half \\u001b way"], "somebody may still read that"


def test_a_display_that_cannot_be_made_is_none() -> None:
    def fails() -> Display:
        raise LookupError("unknown encoding")

    show(Sheltered(fails), made_up())


def test_standard_output_is_itself_again_when_the_live_view_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    run, console, before = made_up(), terminal(), sys.stdout
    shown = Sheltered(lambda: LiveDisplay(console, redraw_s=0))
    shown.start(run.plan)
    assert sys.stdout is not before
    monkeypatch.setattr(console.file, "write", Leaves(0, OSError(5, "Input/output error")).write)
    shown.status(run.states)
    assert sys.stdout is before
    shown.finish(run.summary, None, run.names)
    shown.close()


@pytest.mark.runs
def test_what_a_left_reader_did_not_take_goes_nowhere() -> None:
    """Else Python complains of it when it ends, and its status is 120."""
    code = (
        "import os, sys\n"
        "from tests.support.made_up import made_up, show\n"
        "from pipeline.report.display import create_display\n"
        "from pipeline.report.sheltered import Sheltered\n"
        "show(Sheltered(lambda: create_display(False)), made_up())\n"
        "sys.stderr.write('the end')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "half way\nthe end")


def test_the_live_view_shows_names_without_their_escapes() -> None:
    run = made_up(2, 1)
    odd = "\x1b[2J\x9b\udcff"
    stage = run.plan.stages[0]
    plan = replace(run.plan, dataset=odd, stages=(replace(stage, names=(odd, odd)),))
    console = terminal(120)
    live = LiveDisplay(console, redraw_s=0)
    live.start(plan)
    live.note(odd)
    live.status(run.states)
    live.epoch(run.record)
    live.finish(replace(run.summary, dataset=odd), odd, [odd, odd])
    text = written(console)
    assert "\x1b[2J" not in text and "\x9b" not in text and "\udcff" not in text
    assert text.count("\\u001b[2J\\u009b\\udcff") >= 6
