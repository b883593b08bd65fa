"""What a person sees: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.metrics import EpochRecord, RunPlan, StageStatus, Summary

__all__ = ["Display", "LiveDisplay", "NullDisplay", "PlainDisplay", "create_display"]


class Display(Protocol):
    """Shows a run; process 0 has one."""

    def start(self, plan: RunPlan) -> None:
        """The layout, before training."""

    def status(self, stages: Sequence[StageStatus]) -> None:
        """Where the stages are; called a few times a second."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has ended in all stages."""

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        """The result; `names` are the blocks'."""

    def close(self) -> None:
        """Give the terminal back; may be called more than once."""


def create_display(quiet: bool, console: Console | None = None) -> Display:
    """The live view in a terminal; plain lines with `quiet` or without a terminal."""
    console = console or Console()
    if quiet or not console.is_terminal:
        return PlainDisplay(console)
    return LiveDisplay(console)


class NullDisplay:
    """Shows nothing."""

    def start(self, plan: RunPlan) -> None:
        """Nothing."""

    def status(self, stages: Sequence[StageStatus]) -> None:
        """Nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Nothing."""

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainDisplay:
    """Plain lines, one per epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs = 0

    def start(self, plan: RunPlan) -> None:
        """A line for the run, for each stage and for each note."""
        self._epochs = plan.epochs
        self._line(_title(plan))
        for index, stage in enumerate(plan.stages):
            self._line(
                f"stage {index}: process {stage.rank}, {stage.device}, {_threads(stage.threads)}, "
                f"blocks {_span(stage.blocks)}, {_millions(stage.parameters)} parameters "
                f"(+ {_millions(stage.parameters_local_heads)} in local heads), {stage.cost_share:.0%} of the cost"
            )
        for note in plan.notes:
            self._line(f"note: {note}")

    def status(self, stages: Sequence[StageStatus]) -> None:
        """Nothing: plain output has a line per epoch."""

    def epoch(self, record: EpochRecord) -> None:
        """One line."""
        self._line(_epoch_line(record, self._epochs))

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        """The summary table as aligned text."""
        self._line(f"{'block':>5}  {'layer':<24} {'test error %':>12}")
        for index, (name, error) in enumerate(zip(names, summary.block_test_error_percent, strict=True)):
            self._line(f"{index:>5}  {name:<24} {_number(error, 2):>12}")
        for line in _closing(summary, folder):
            self._line(line)

    def close(self) -> None:
        """Nothing to give back."""

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """Tables and a bar that follow the run in a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plan: RunPlan | None = None
        self._live: Live | None = None

    def start(self, plan: RunPlan) -> None:
        """The table of stages; the live view begins."""
        self._plan = plan
        self._console.print(Text(_title(plan), style="bold"))
        self._console.print(_plan_table(plan))
        for note in plan.notes:
            self._console.print(Text(f"note: {note}", style="yellow"))
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._live.start()

    def status(self, stages: Sequence[StageStatus]) -> None:
        """Refresh the bar and the tables."""
        if self._live is not None and self._plan is not None and stages:
            self._live.update(_live_view(self._plan, sorted(stages, key=lambda s: s.stage), self._console.width))

    def epoch(self, record: EpochRecord) -> None:
        """A line above the live view."""
        epochs = 0 if self._plan is None else self._plan.epochs
        self._console.print(Text(_epoch_line(record, epochs)))

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        """The summary table."""
        self.close()
        self._console.print(_summary_table(summary, names))
        for line in _closing(summary, folder):
            self._console.print(Text(line))

    def close(self) -> None:
        """End the live view."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _title(plan: RunPlan) -> str:
    processes = "1 process" if plan.processes == 1 else f"{plan.processes} processes ({plan.transport})"
    return (
        f"{plan.model} on {plan.dataset}, {plan.loss}, seed {plan.seed}: {processes}, {plan.epochs} epochs of "
        f"{plan.samples_per_epoch:,} images in {plan.steps_per_epoch:,} batches of {plan.batch_size}"
    )


def _epoch_line(record: EpochRecord, epochs: int) -> str:
    test = "" if record.test_error_percent is None else f", test error {record.test_error_percent:.2f} %"
    return (
        f"epoch {record.epoch}/{epochs}: {record.seconds:.1f} s, lr {record.lr:.2g}, "
        f"train error {_number(record.train_error_percent, 2)} %{test}"
    )


def _plan_table(plan: RunPlan) -> Table:
    table = Table(expand=False)
    for name in ("stage", "process", "device", "threads"):
        table.add_column(name, justify="right" if name != "device" else "left", no_wrap=True)
    table.add_column("blocks", overflow="ellipsis", max_width=46)
    for name in ("parameters", "+ heads", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, stage in enumerate(plan.stages):
        blocks = "; ".join(f"{i} {name}" for i, name in zip(stage.blocks, stage.names, strict=True))
        counts = (_millions(stage.parameters), _millions(stage.parameters_local_heads), f"{stage.cost_share:.0%}")
        table.add_row(str(index), str(stage.rank), stage.device, str(stage.threads), blocks, *counts)
    return table


def _live_view(plan: RunPlan, stages: Sequence[StageStatus], width: int) -> RenderableType:
    return Group(_progress(plan, stages[-1], width), _stage_table(stages), _block_table(stages, width))


def _progress(plan: RunPlan, last: StageStatus, width: int) -> RenderableType:
    """Bar of the whole run, rate, time left: as the last stage sees it."""
    total = plan.epochs * plan.samples_per_epoch
    rate = last.samples / last.seconds if last.seconds > 0 else 0.0
    left = _clock((total - last.samples) / rate) if rate > 0 else "-:--"
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(total, 1), completed=last.samples, width=max(10, min(40, width - 60)))
    text = f"{rate:,.0f} images/s, {left} left" if rate > 0 else "- images/s"
    grid.add_row(f"epoch {last.epoch}/{plan.epochs}", bar, text, last.phase if last.phase != "train" else "")
    return grid


def _stage_table(stages: Sequence[StageStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "batch", "busy", "", "waits for input", "waits for output"):
        table.add_column(name, justify="right" if name else "left")
    for stage in stages:
        bar = ProgressBar(total=1.0, completed=min(stage.busy_fraction, 1.0), width=12)
        waits = (f"{stage.wait_input_fraction:.0%}", f"{stage.wait_output_fraction:.0%}")
        table.add_row(str(stage.stage), str(stage.step), f"{stage.busy_fraction:.0%}", bar, *waits)
    return table


def _block_table(stages: Sequence[StageStatus], width: int) -> Table:
    """Local loss and error of every block, in as many columns as fit."""
    scores = [score for stage in stages for score in stage.blocks]
    columns = max(1, min(len(scores), (width - 8) // 9))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("block")
    for score in scores[:columns]:
        table.add_column(str(score.block), justify="right", min_width=7)
    if columns < len(scores):
        table.add_column("…")
    table.add_row("loss", *(_number(score.loss, 4) for score in scores[:columns]))
    table.add_row("error %", *(_number(score.error_percent, 2) for score in scores[:columns]))
    return table


def _summary_table(summary: Summary, names: Sequence[str]) -> Table:
    table = Table(title=f"{summary.model} on {summary.dataset}, {summary.loss}: test error of every classifier")
    table.add_column("block", justify="right")
    table.add_column("layer")
    table.add_column("stage", justify="right")
    table.add_column("test error %", justify="right")
    homes = {block: index for index, stage in enumerate(summary.stage) for block in stage.blocks}
    for index, (name, error) in enumerate(zip(names, summary.block_test_error_percent, strict=True)):
        last = index == len(names) - 1
        style = "bold" if last else ""
        table.add_row(str(index), name, str(homes.get(index, "")), _number(error, 2), style=style)
    return table


def _closing(summary: Summary, folder: str | None) -> list[str]:
    busy = ", ".join(f"{stage.busy_fraction:.0%}" for stage in summary.stage)
    lines = [
        f"test error {summary.test_error_percent:.2f} % (best {summary.best_test_error_percent:.2f} %), "
        f"train error {_number(summary.train_error_percent, 2)} %",
        f"{summary.samples_per_second:,.0f} images/s over {summary.train_seconds:.1f} s of training, "
        f"stages busy {busy}",
        f"{_millions(summary.parameters)} parameters, {_millions(summary.parameters_local_heads)} more in local heads",
        f"state {summary.state_sha256[:16]}",
    ]
    return lines if folder is None else [*lines, f"run folder {folder}"]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 10_000 else str(count)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _span(blocks: Sequence[int]) -> str:
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
