"""What a person sees: a live view in a terminal, plain lines elsewhere. Everything goes to standard output."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.report import render
from pipeline.report.console import is_terminal, standard_console
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.text import printable
from pipeline.transport.messages import StageStatus

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "Unseen", "create_display"]

_log = logging.getLogger(__name__)


class Display:
    """Shows a run, this one nothing. `status`, `epoch` and `note` may come from another thread than the rest."""

    def start(self, plan: RunPlan) -> None:
        """The layout, before training."""

    def status(self, stages: Sequence[StageStatus]) -> None:
        """Where the stages are; called a few times a second."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended in all stages."""

    def note(self, text: str) -> None:
        """One line that a person should read."""

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        """The result; `names` are the blocks'."""

    def close(self) -> None:
        """Give the terminal back; may be called more than once."""


class Unseen(Display):
    """Shows nothing; what a person should read goes to the log, which Python prints to standard error by itself."""

    def note(self, text: str) -> None:
        _log.warning("%s", printable(text))


def create_display(quiet: bool, console: Console | None = None) -> Display:
    """The live view in a terminal; plain lines with `quiet` or without a terminal that can show it."""
    # Not Console.is_terminal alone: it believes variables such as FORCE_COLOR, which say nothing about a pipe.
    terminal = is_terminal() if console is None else console.is_terminal
    console = console or standard_console()
    able = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveDisplay(console) if terminal and able and not quiet else PlainDisplay(console)


class PlainDisplay(Display):
    """Plain lines, one per epoch; our own text in them is ASCII, and names are made so that any pipe or file takes
    them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs = 0
        self._last: EpochRecord | None = None

    def start(self, plan: RunPlan) -> None:
        self._epochs = plan.epochs
        self._line(render.title(plan))
        for index, stage in enumerate(plan.stages):
            parameters, heads = render.count(stage.parameters), render.count(stage.parameters_local_heads)
            self._line(
                f"stage {index}: process {stage.rank}, {stage.device}, {render.plural(stage.threads, 'thread')}, "
                f"blocks {render.span_of(stage.blocks)}, {parameters} parameters (+ {heads} in local heads), "
                f"{render.percent(stage.cost_share)} of the cost"
            )
        for note in plan.notes:
            self.note(note)

    def epoch(self, record: EpochRecord) -> None:
        self._last = record
        self._line(render.epoch_line(record, self._epochs))

    def note(self, text: str) -> None:
        self._line(f"note: {text}")

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        rows = [render.HEADINGS, *render.score_rows(summary, self._last, names)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        sides = ["<" if heading == "layer" else ">" for heading in render.HEADINGS]
        for row in rows:
            cells = (f"{text:{side}{width}}" for text, side, width in zip(row, sides, widths, strict=True))
            self._line("  ".join(cells) + (f"  {render.MARK}" if row is rows[-1] else ""))
        self._line("stages busy: " + ", ".join(render.percent(stage.busy_fraction) for stage in summary.stage))
        for label, text in render.closing(summary, folder):
            self._line(f"{label}: {text}")

    def _line(self, text: str) -> None:
        self._console.print(Text(printable(text, self._console.encoding)), soft_wrap=True)


class LiveDisplay(Display):
    """Tables and a bar that follow the run in a terminal."""

    def __init__(self, console: Console, redraw_s: float = 0.5) -> None:
        self._console = console
        self._redraw_s = redraw_s  # at least, between two drawings; each takes about 10 ms from the process of stage 0
        self._drawn = -math.inf  # when
        self._plan: RunPlan | None = None
        self._live: Live | None = None
        self._shown: Sequence[StageStatus] = ()
        self._last: EpochRecord | None = None
        self._lock = threading.Lock()  # the gatherer's thread shows while the main thread closes

    def start(self, plan: RunPlan) -> None:
        self._plan = plan = render.with_printable_names(plan)
        self._console.print(render.header(plan))
        self._console.print(render.plan_table(plan, self._console.width))
        for text in plan.notes:
            self.note(text)
        self._live = Live(
            render.live_view(plan, (), *self._console.size),
            console=self._console,
            auto_refresh=False,  # drawing takes time from stage 0's process: only when there is something new
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # else what goes to a file would land here
        )
        self._live.start()
        self._console.show_cursor(True)  # so that a killed process leaves nothing to restore

    def status(self, stages: Sequence[StageStatus]) -> None:
        stages = sorted(stages, key=lambda stage: stage.stage)
        with self._lock:
            early = time.monotonic() - self._drawn < self._redraw_s
            if self._live is None or self._plan is None or early or stages == self._shown:
                return
            self._shown, self._drawn = stages, time.monotonic()
            self._live.update(render.live_view(self._plan, stages, *self._console.size), refresh=True)

    def epoch(self, record: EpochRecord) -> None:
        self._last = record
        self._console.print(render.epoch_text(record, self._plan.epochs if self._plan else 0), soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(Text.assemble(("note: ", "yellow"), printable(text)))

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        self.close()
        scores = render.score_table(summary, self._last, [printable(name) for name in names])
        for view in (scores, render.stage_summary(summary)):
            self._console.print()
            self._console.print(view)
        self._console.print()
        for line in render.closing_lines(summary, folder):
            self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            live.stop()
