"""What the displays show: a run's records as text and tables. Pure functions."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from pipeline.config.catalog import CUSTOM
from pipeline.learning.scores import BlockScore
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.text import printable
from pipeline.transport.messages import StagePlan, StageStatus

__all__ = [
    "HEADINGS",
    "MARK",
    "closing",
    "closing_lines",
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
    "with_printable_names",
]

_WIDE = 100  # columns from which headings are written out
MARK = "<- network"
_NAME = 20  # columns of a block's name in the live view

HEADINGS = ("block", "layer", "stage", "loss", "train error", "test error")

_SHARES = {  # of a stage's time; glyphs differ because a terminal may have no colours
    "busy": ("\N{FULL BLOCK}", "green"),
    "wait in": ("\N{LIGHT SHADE}", "blue"),
    "wait out": ("\N{MEDIUM SHADE}", "yellow"),
}


def with_printable_names(plan: RunPlan) -> RunPlan:
    """`plan` with every name that a user has given made safe for a terminal."""
    stages = (replace(stage, names=tuple(map(printable, stage.names))) for stage in plan.stages)
    return replace(plan, dataset=printable(plan.dataset), model=printable(plan.model), stages=tuple(stages))


def title(plan: RunPlan) -> str:
    return f"{plan.model} on {plan.dataset}, {plan.loss}, seed {plan.seed}: {_size(plan)}"


def _size(plan: RunPlan) -> str:
    processes = plural(plan.processes, "process", "processes") + (f" ({plan.transport})" if plan.processes > 1 else "")
    batches = f"{plural(plan.steps_per_epoch, 'batch', 'batches')} of {plan.batch_size}"
    return f"{processes}, {plural(plan.epochs, 'epoch')} of {plan.samples_per_epoch:,} images in {batches}"


def header(plan: RunPlan) -> Text:
    model, dataset, loss = ((name, "bold") for name in (plan.model, plan.dataset, plan.loss))
    return Text.assemble(model, " on ", dataset, ", ", loss, f", seed {plan.seed}\n", (_size(plan), "dim"))


def plan_table(plan: RunPlan, width: int) -> Table:
    """The stages; what the narrow columns leave over goes to the blocks' names."""
    wide = ("stage", "process", "device", "threads", "parameters", "local heads", "cost")
    narrow = ("stage", "proc", "device", "thr", "params", "heads", "cost")
    headings = wide if width >= _WIDE else narrow
    rows = []
    for index, stage in enumerate(plan.stages):
        sizes = count(stage.parameters), count(stage.parameters_local_heads), percent(stage.cost_share)
        rows.append((str(index), str(stage.rank), stage.device, str(stage.threads), *sizes))
    taken = sum(2 + max(map(len, column)) for column in zip(headings, *rows, strict=True))
    columns = _columns(headings, left="device")
    table = _table(*columns[:4], "blocks", *columns[4:])
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
    done = plan.samples_before + last.samples
    rate = last.samples / last.seconds if last.seconds > 0 else 0.0
    speed, left = (f"{rate:,.0f}", _clock((total - done) / rate)) if rate > 0 else ("-", "-:--")
    epoch = f"epoch {min(last.epoch, plan.epochs)}/{plan.epochs}"  # done is where the next would begin
    phase = {"evaluate": "testing", "train": ""}.get(last.phase, last.phase)
    share = min(done / total, 1.0)
    text = f"{percent(share):>4}  {speed} images/s  {left} left  {phase:<8}"
    bar = ProgressBar(total=total, completed=share * total, width=max(8, min(60, width - len(epoch + text) - 5)))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(Text(epoch, style="bold"), bar, Text(text))
    return grid


def _stage_table(stages: Sequence[StageStatus], bar: int) -> Table:
    """How busy every stage is, and what it waits for."""
    colours = {heading: f"bold {colour}" for heading, (_, colour) in _SHARES.items()}
    parts = (Column(text, justify="right", no_wrap=True, header_style=style) for text, style in colours.items())
    table = _table(*_columns(["stage", ""], left=""), *parts, gap=1)
    for stage in stages:
        shares = (stage.busy_fraction, stage.wait_input_fraction, stage.wait_output_fraction)
        table.add_row(str(stage.stage), _share_bar(shares, bar), *map(percent, shares))
    return table


def _share_bar(shares: Sequence[float], width: int) -> Text:
    """One bar for the parts of a stage's time, blank for what is none of them."""
    bar, total = Text(), 0.0
    for (glyph, colour), share in zip(_SHARES.values(), shares, strict=True):
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
    name = [Column(no_wrap=True, max_width=_NAME)] if names else []
    loss = Column("loss", justify="right", min_width=7, no_wrap=True)
    table = _table(Column("block", justify="right"), *name, loss, *_columns(["error %"]), gap=1)
    for score in scores:
        named = [Text(names.get(score.block, ""), style="dim")] if names else []
        table.add_row(str(score.block), *named, _loss(score.loss), _error(score.error_percent))
    return table


def epoch_line(record: EpochRecord, epochs: int) -> str:
    test = "" if record.test_error_percent is None else f", test error {_error(record.test_error_percent)} %"
    line = f"epoch {record.epoch}/{epochs}: {record.seconds:.1f} s, lr {record.lr:.4g}, train error "
    return line + f"{_error(record.train_error_percent)} %{test}"


def epoch_text(record: EpochRecord, epochs: int) -> Text:
    line = f"[dim]epoch [/]{record.epoch:>{len(str(epochs))}}/{epochs}{record.seconds:>8.1f} s[dim]  lr [/]"
    line += f"{record.lr:<9.4g}[dim] train error [/]{_error(record.train_error_percent):>6} %"
    if record.test_error_percent is not None:
        line += f"[dim]  test error [/][bold]{_error(record.test_error_percent):>6} %[/]"
    return Text.from_markup(line)


def score_rows(summary: Summary, last: EpochRecord | None, names: Sequence[str]) -> list[tuple[str, ...]]:
    """One row for each block's own classifier; loss and training error are the last epoch's."""
    homes = {block: str(index) for index, stage in enumerate(summary.stage) for block in stage.blocks}
    nothing = (None,) * len(names)
    losses, errors = (last.block_loss, last.block_train_error_percent) if last else (nothing, nothing)
    columns = zip(names, losses, errors, summary.block_test_error_percent, strict=True)
    return [
        (str(index), name, homes.get(index, "-"), _loss(loss), _error(train, " %"), _error(test, " %"))
        for index, (name, loss, train, test) in enumerate(columns)
    ]


def score_table(summary: Summary, last: EpochRecord | None, names: Sequence[str]) -> Table:
    title = "every block's own classifier; the output layer's is the network's"
    table = _table(*_columns([*HEADINGS, ""], left="layer"), title=title)
    *hidden, output = score_rows(summary, last, names)
    for row in hidden:
        table.add_row(*row)
    table.add_row(*output, MARK, style="bold")
    return table


def stage_summary(summary: Summary) -> Table:
    headings = ("stage", "device", "blocks", "busy", "waited for input", "for output", "peak memory", "sent")
    table = _table(*_columns(headings, left="device", no_wrap=False), title="every stage")
    for index, stage in enumerate(summary.stage):
        waits = (f"{stage.wait_input_s:,.1f} s", f"{stage.wait_output_s:,.1f} s")
        sizes = (_bytes(stage.peak_memory_bytes), _bytes(stage.bytes_sent))
        table.add_row(str(index), stage.device, span_of(stage.blocks), percent(stage.busy_fraction), *waits, *sizes)
    return table


def closing(summary: Summary, folder: str | None) -> list[tuple[str, str]]:
    best, training = _error(summary.best_test_error_percent), _error(summary.train_error_percent)
    lines = [
        ("test error", f"{_error(summary.test_error_percent)} % (best {best} %, training {training} %)"),
        ("speed", f"{summary.samples_per_second:,.0f} images/s, {summary.train_seconds:,.1f} s of training"),
        ("parameters", f"{count(summary.parameters)}, {count(summary.parameters_local_heads)} more in local heads"),
        ("state", summary.state_sha256[:16]),
    ]
    if folder is None:
        return lines
    more = ", blocks" if summary.model == CUSTOM else ""
    call = f"pipeline.load_model({json.dumps(folder, ensure_ascii=False)}{more})"
    return [*lines, ("run folder", folder), ("weights", call)]


def closing_lines(summary: Summary, folder: str | None) -> list[Text]:
    """Likewise, aligned; a line is to be printed whole, however long, as the last one is there to be copied."""
    pairs = closing(summary, folder)
    widest = max(len(label) for label, _ in pairs)
    styles = {"test error": "bold"}
    return [
        Text.assemble((f"{label:{widest}}  ", "dim"), (printable(text), styles.get(label, "")))
        for label, text in pairs
    ]


def _table(*columns: Column | str, gap: int = 2, title: str | None = None) -> Table:
    padding = (0, gap, 0, 0)
    return Table(
        *columns, box=None, pad_edge=False, padding=padding, title=title, title_justify="left", title_style="dim"
    )


def _columns(headings: Sequence[str], *, left: str | None = None, no_wrap: bool = True) -> list[Column]:
    """Columns of numbers, to the right, and one of words."""
    return [Column(text, justify="left" if text == left else "right", no_wrap=no_wrap) for text in headings]


def _error(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:.2f}" + ("" if math.isnan(value) else unit)


def _loss(value: float | None) -> str:
    return "-" if value is None else format(value, ".4f" if abs(value) < 100 else ".4g")


def percent(fraction: float) -> str:
    return f"{fraction:.0%}" if math.isfinite(fraction) else "-"


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
