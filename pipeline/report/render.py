"""What the displays show: a run's records as text and tables. Pure functions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.learning.scores import BlockScore
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.transport.messages import StagePlan, StageStatus

__all__ = [
    "HEADINGS",
    "MARK",
    "closing",
    "closing_grid",
    "count",
    "epoch_line",
    "epoch_text",
    "header",
    "live_view",
    "percent",
    "plan_table",
    "plural",
    "score_rows",
    "score_table",
    "span_of",
    "stage_summary",
    "title",
]

_WIDE = 100  # columns from which headings are written out
MARK = "<- network"
_NAME = 20  # columns of a block's name in the live view

HEADINGS = ("block", "layer", "stage", "loss", "train error", "test error")

# Busy, waiting for input, waiting for output. Glyphs differ because a terminal may have no colours.
_SHARES = (("\N{FULL BLOCK}", "green"), ("\N{LIGHT SHADE}", "blue"), ("\N{MEDIUM SHADE}", "yellow"))


def title(plan: RunPlan) -> str:
    return f"{plan.model} on {plan.dataset}, {plan.loss}, seed {plan.seed}: {_processes(plan)}, {_work(plan)}"


def _processes(plan: RunPlan) -> str:
    return plural(plan.processes, "process", "processes") + (f" ({plan.transport})" if plan.processes > 1 else "")


def _work(plan: RunPlan) -> str:
    batches = f"{plural(plan.steps_per_epoch, 'batch', 'batches')} of {plan.batch_size}"
    return f"{plural(plan.epochs, 'epoch')} of {plan.samples_per_epoch:,} images in {batches}"


def header(plan: RunPlan) -> list[Text]:
    first = Text.assemble(
        (plan.model, "bold"), " on ", (plan.dataset, "bold"), ", ", (plan.loss, "bold"), f", seed {plan.seed}"
    )
    return [first, Text(f"{_processes(plan)}, {_work(plan)}", style="dim")]


def plan_table(plan: RunPlan, width: int) -> Table:
    """The stages; what the narrow columns leave over goes to the blocks' names."""
    wide = width >= _WIDE
    headings = (
        ("stage", "process", "device", "threads", "parameters", "local heads", "cost")
        if wide
        else ("stage", "proc", "device", "thr", "params", "heads", "cost")
    )
    rows = [
        (
            str(index),
            str(stage.rank),
            stage.device,
            str(stage.threads),
            count(stage.parameters),
            count(stage.parameters_local_heads),
            percent(stage.cost_share),
        )
        for index, stage in enumerate(plan.stages)
    ]
    taken = sum(2 + max(map(len, column)) for column in zip(headings, *rows, strict=True))
    table = _table()
    for index, heading in enumerate(headings):
        if index == 4:
            table.add_column("blocks")
        table.add_column(heading, justify="left" if heading == "device" else "right", no_wrap=True)
    lines = max(3, 24 // len(plan.stages))
    for row, stage in zip(rows, plan.stages, strict=True):
        blocks = _block_list(stage.blocks, stage.names, max(12, width - taken - 2), lines)
        table.add_row(*row[:4], blocks, *row[4:])
    return table


def _block_list(blocks: Sequence[int], names: Sequence[str], width: int, lines: int) -> str:
    """Such as "0 conv 1-32; 1 conv 32-64, pool", in lines that break between blocks."""
    items = [f"{index} {name}".replace(" ", "\N{NO-BREAK SPACE}") for index, name in zip(blocks, names, strict=True)]
    found = textwrap.wrap("; ".join(items), width, max_lines=lines, placeholder=" …")
    return "\n".join(found).replace("\N{NO-BREAK SPACE}", " ")


def live_view(plan: RunPlan, told: Sequence[StageStatus], width: int, height: int) -> RenderableType:
    """Bar on top; below it the stages, and beside them the blocks."""
    states = {index: _untold(index, stage) for index, stage in enumerate(plan.stages)}
    stages = list((states | {state.stage: state for state in told}).values())
    scores = [score for stage in stages for score in stage.blocks]
    names = {index: name for stage in plan.stages for index, name in zip(stage.blocks, stage.names, strict=True)}
    bar = 16 if width >= _WIDE else 6
    room = width - bar - 30  # what the stages' numbers and the gaps take
    sides = Table.grid(padding=(0, 2, 0, 0))
    sides.add_row(_stage_table(stages, bar), *_block_tables(scores, names, room, max(4, height - 4)))
    return Group(_progress(plan, stages[-1], width), sides)


def _untold(index: int, stage: StagePlan) -> StageStatus:
    """A stage that has not reported yet."""
    blocks = tuple(BlockScore(block, None, None) for block in stage.blocks)
    return StageStatus(index, "starting", 1, 0, 0, 0.0, math.nan, math.nan, math.nan, blocks)


def _progress(plan: RunPlan, last: StageStatus, width: int) -> RenderableType:
    """Bar of the whole run, rate, time left: as the last stage sees it."""
    total = max(plan.epochs * plan.samples_per_epoch, 1)
    rate = _ratio(last.samples, last.seconds)
    left = _clock((total - last.samples) / rate) if rate > 0 else "-:--"
    speed = f"{rate:,.0f}" if rate > 0 else "-"
    epoch = f"epoch {last.epoch}/{plan.epochs}"
    phase = {"evaluate": "testing", "train": ""}.get(last.phase, last.phase)
    share = min(last.samples / total, 1.0)
    text = f"{percent(share):>4}  {speed} images/s  {left} left  {phase:<8}"
    grid = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=total, completed=share * total, width=max(8, min(60, width - len(epoch + text) - 5)))
    grid.add_row(Text(epoch, style="bold"), bar, Text(text))
    return grid


def _stage_table(stages: Sequence[StageStatus], bar: int) -> Table:
    """How busy every stage is, and what it waits for."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("stage", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading, (_, colour) in zip(("busy", "wait in", "wait out"), _SHARES, strict=True):
        table.add_column(heading, justify="right", no_wrap=True, header_style=f"bold {colour}")
    for stage in stages:
        shares = (stage.busy_fraction, stage.wait_input_fraction, stage.wait_output_fraction)
        table.add_row(str(stage.stage), _share_bar(shares, bar), *map(percent, shares))
    return table


def _share_bar(shares: Sequence[float], width: int) -> Text:
    """One bar for the parts of a stage's time, blank for what is none of them."""
    bar, total = Text(), 0.0
    for (glyph, colour), share in zip(_SHARES, shares, strict=True):
        total = min(1.0, total + (share if math.isfinite(share) and share > 0 else 0.0))
        bar.append(glyph * (round(total * width) - len(bar)), style=colour)
    return bar.append(" " * (width - len(bar)))


def _block_tables(scores: Sequence[BlockScore], names: dict[int, str], room: int, rows: int) -> list[Table]:
    """Local loss and error of every block: beside each other what is too high, without names what is too wide."""
    bare, gap = 21, 2  # columns of a table without names, and between tables
    parts = max(1, math.ceil(len(scores) / rows))
    named = parts * (bare + 1 + _NAME + gap) - gap <= room
    if not named:
        parts = min(parts, max(1, (room + gap) // (bare + gap)))
    high = min(rows, math.ceil(len(scores) / parts))
    tables = [_block_table(scores[i * high : (i + 1) * high], names if named else {}) for i in range(parts)]
    if parts * high < len(scores):
        tables[-1].add_row("…")
    return tables


def _block_table(scores: Sequence[BlockScore], names: dict[int, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("block", justify="right")
    if names:
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=_NAME)
    table.add_column("loss", justify="right", min_width=7, no_wrap=True)
    table.add_column("error %", justify="right", no_wrap=True)
    for score in scores:
        name = [Text(names.get(score.block, ""), style="dim")] if names else []
        table.add_row(str(score.block), *name, _loss(score.loss), _error(score.error_percent))
    return table


def epoch_line(record: EpochRecord, epochs: int) -> str:
    tested = record.test_error_percent is not None
    return (
        f"epoch {record.epoch}/{epochs}: {record.seconds:.1f} s, lr {record.lr:.4g}, "
        f"train error {_error(record.train_error_percent)} %"
        + (f", test error {_error(record.test_error_percent)} %" if tested else "")
    )


def epoch_text(record: EpochRecord, epochs: int) -> Text:
    line = Text.assemble(
        ("epoch ", "dim"),
        f"{record.epoch:>{len(str(epochs))}}/{epochs}",
        f"{record.seconds:>8.1f} s",
        ("  lr ", "dim"),
        f"{record.lr:<9.4g}",
        (" train error ", "dim"),
        f"{_error(record.train_error_percent):>6} %",
    )
    if record.test_error_percent is not None:
        line.append("  test error ", "dim").append(f"{_error(record.test_error_percent):>6} %", "bold")
    return line


def score_rows(summary: Summary, last: EpochRecord | None, names: Sequence[str]) -> list[tuple[str, ...]]:
    """One row for each block's own classifier; loss and training error are the last epoch's."""
    homes = {block: str(index) for index, stage in enumerate(summary.stage) for block in stage.blocks}
    empty = (None,) * len(names)
    losses, errors = (last.block_loss, last.block_train_error_percent) if last else (empty, empty)
    columns = zip(names, losses, errors, summary.block_test_error_percent, strict=True)
    return [
        (str(index), name, homes.get(index, "-"), _loss(loss), _error(train, " %"), _error(test, " %"))
        for index, (name, loss, train, test) in enumerate(columns)
    ]


def score_table(summary: Summary, last: EpochRecord | None, names: Sequence[str]) -> Table:
    table = _table(title="every block's own classifier; the output layer's is the network's")
    for heading in HEADINGS:
        left = heading == "layer"
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True)
    rows = score_rows(summary, last, names)
    for row in rows[:-1]:
        table.add_row(*row)
    for row in rows[-1:]:
        table.add_row(*row, MARK, style="bold")
    return table


def stage_summary(summary: Summary) -> Table:
    """Every stage over the whole run."""
    table = _table(title="every stage")
    for heading in ("stage", "device", "blocks", "busy", "waited for input", "for output", "peak memory", "sent"):
        table.add_column(heading, justify="left" if heading == "device" else "right")
    for index, stage in enumerate(summary.stage):
        waits = (f"{stage.wait_input_s:,.1f} s", f"{stage.wait_output_s:,.1f} s")
        sizes = (_bytes(stage.peak_memory_bytes), _bytes(stage.bytes_sent))
        table.add_row(str(index), stage.device, span_of(stage.blocks), percent(stage.busy_fraction), *waits, *sizes)
    return table


def closing(summary: Summary, folder: str | None) -> list[tuple[str, str]]:
    lines = [
        (
            "test error",
            f"{_error(summary.test_error_percent)} % (best {_error(summary.best_test_error_percent)} %, "
            f"training {_error(summary.train_error_percent)} %)",
        ),
        ("speed", f"{summary.samples_per_second:,.0f} images/s, {summary.train_seconds:,.1f} s of training"),
        ("parameters", f"{count(summary.parameters)}, {count(summary.parameters_local_heads)} more in local heads"),
        ("state", summary.state_sha256[:16]),
    ]
    return lines if folder is None else [*lines, ("run folder", folder)]


def closing_grid(summary: Summary, folder: str | None) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, text in closing(summary, folder):
        style = "bold" if label == "test error" else ""
        grid.add_row(Text(label, style="dim"), Text(text, style=style, overflow="fold"))
    return grid


def _table(title: str | None = None) -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="dim")


def _number(value: float | None, text: str) -> str:
    return "-" if value is None else format(value, text)


def _error(value: float | None, unit: str = "") -> str:
    return _number(value, ".2f") + ("" if value is None or math.isnan(value) else unit)


def _loss(value: float | None) -> str:
    return _number(value, ".4f" if value is None or abs(value) < 100 else ".4g")


def percent(fraction: float) -> str:
    return f"{fraction:.0%}" if math.isfinite(fraction) else "-"


def _ratio(samples: int, seconds: float) -> float:
    return samples / seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def count(value: int) -> str:
    return f"{value / 1e6:.2f}M" if value >= 10_000 else f"{value:,}"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _bytes(count: float) -> str:
    if count <= 0:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def span_of(blocks: Sequence[int]) -> str:
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]}-{blocks[-1]}"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds > 1e7:
        return "-:--"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
