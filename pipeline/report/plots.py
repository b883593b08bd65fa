"""Pictures: error curves and timelines. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from pipeline.report.records import EpochRecord
from pipeline.report.trace import tracks_of
from pipeline.spans import Span
from pipeline.text import printable

__all__ = ["save_curves", "save_timeline"]

# What comes in is blue, what goes out orange, weights change in green.
_COLOURS = {
    "wait input": "#deebf7",
    "receive": "#8fbfe0",
    "forward": "#2b7bba",
    "step": "#12857a",
    "update": "#31a354",
    "wait gradient": "#fde0dd",
    "wait output": "#fee6ce",
    "send": "#fd9a4d",
    "evaluate": "#756bb1",
}
_RED = "#c0392b"  # the network's test error
_LABELS = {"step": "forward + update"}
_WORK = ("forward", "step", "update")
_BATCHES = 7  # how many batches a timeline shows
_CANDIDATES = 100  # windows of a long trace that are compared

_Values = Sequence[float | None] | None


def save_curves(records: Sequence[EpochRecord], path: str | Path, title: str) -> None:
    """Errors against the epoch: of the network, and of every block's own classifier beside its local loss."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")  # no global state knows it
    network, errors, losses = figure.subplots(1, 3)
    figure.suptitle(_drawable(title), parse_math=False, fontsize=12)
    _draw(network, records, lambda r: [r.train_error_percent], {"training (running)": "#8c8c8c"})
    _draw(network, records, lambda r: [r.test_error_percent], {"test": _RED})
    _finish_axes(network, "the network", "error %")
    if network.lines:
        network.legend(fontsize=8, frameon=False)

    tested = any(value is not None for r in records for value in r.block_test_error_percent or ())
    colours = _block_colours(max((len(r.block_loss) for r in records), default=0))
    kind = "block_test_error_percent" if tested else "block_train_error_percent"
    _draw(errors, records, attrgetter(kind), colours)
    _finish_axes(errors, f"every block's own classifier, {'test' if tested else 'training'}", "error %")
    _draw(losses, records, attrgetter("block_loss"), colours)
    _finish_axes(losses, "every block's local loss", "loss", logarithmic=True)
    lines = {line.get_label(): line for axes in (errors, losses) for line in axes.lines}
    shown = [label for label in colours if label in lines]  # blocks without values are left out
    if shown:
        figure.legend([lines[label] for label in shown], shown, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, format="png", dpi=120)


def _drawable(text: str) -> str:
    """With a question mark for what the font has no sign for; matplotlib would warn of each."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(one if font.get_char_index(ord(one)) else "?" for one in printable(text))


def _draw(
    axes: Any, records: Sequence[EpochRecord], values: Callable[[EpochRecord], _Values], colours: Mapping[str, Any]
) -> None:
    """One line for each label, in its colour, through the epochs that have a value."""
    for index, (label, colour) in enumerate(colours.items()):
        points = [(r.epoch, found[index]) for r in records if (found := values(r)) is not None]
        seen = [(epoch, value) for epoch, value in points if value is not None and math.isfinite(value)]
        if not seen:
            continue
        if len(colours) == 1:
            label = f"{label}, last {seen[-1][1]:.2f} %"
        marker = "o" if len(seen) <= 30 else ""
        axes.plot(*zip(*seen, strict=True), "-", color=colour, marker=marker, markersize=3, linewidth=1.4, label=label)


def _finish_axes(axes: Any, title: str, label: str, *, logarithmic: bool = False) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3, which="both" if logarithmic else "major", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    heights = [float(value) for line in axes.lines for value in line.get_ydata()]
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if len({value for line in axes.lines for value in line.get_xdata()}) == 1:
        axes.margins(x=10)  # else the axis of a single epoch has fractions of it
    if not heights:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color="#8c8c8c")
    elif not logarithmic:
        axes.set_ylim(bottom=0, top=max(1.05 * max(heights), 1e-3))
    elif min(heights) > 0:
        _logarithmic(axes)


def _logarithmic(axes: Any) -> None:
    """Logarithmic height with plain numbers; between the powers of ten only where few of these are in sight."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    between = (2, 5) if high / low > 5 else (1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axes.yaxis.get_minor_locator().set_params(subs=between)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if high / low < 200 else "")
    axes.tick_params(axis="y", which="minor", labelsize=8)


def _block_colours(count: int) -> dict[str, Any]:
    """Early blocks light, late ones dark, the output layer in the colour of the network's test error."""
    from matplotlib import colormaps

    palette, hidden = colormaps["viridis_r"], count - 1
    colours = {f"block {index}": palette(0.1 + 0.9 * index / max(hidden - 1, 1)) for index in range(hidden)}
    return colours | ({"output layer": _RED} if count else {})


def save_timeline(spans: Sequence[Span], path: str | Path) -> None:
    """What every stage does while a few batches pass, from the middle of the training part of a trace."""
    from matplotlib.figure import Figure

    begin_ns, end_ns = _window(spans)
    shown = [span for span in spans if span.end_ns > begin_ns and span.start_ns < end_ns]
    stages = sorted({span.stage for span in spans})
    figure = Figure(figsize=(12, 1.1 + 0.8 * max(len(stages), 1)), layout="constrained")
    axes = figure.subplots()
    _draw_spans(axes, shown, begin_ns, end_ns)
    axes.set_yticks(stages, [f"stage {stage}" for stage in stages])
    axes.set_ylim(max(stages, default=0) + 0.55, min(stages, default=0) - 0.55)
    axes.set_xlim(0, max((end_ns - begin_ns) / 1e6, 1e-3))
    axes.set_xlabel("ms   (numbers are batches; thin bars are transfers)")
    axes.spines[["top", "right"]].set_visible(False)
    _legend_of_spans(axes, {span.name for span in shown})
    figure.savefig(path, format="png", dpi=130)


def _draw_spans(axes: Any, spans: Sequence[Span], begin_ns: int, end_ns: int) -> None:
    placed = tracks_of(spans)
    tracks = Counter((stage, lane) for stage, lane, _ in {(s.stage, s.lane, track) for track, s in placed})
    for track, span in placed:
        top, height = _row(span, track, tracks[span.stage, span.lane])
        left, right = ((min(max(t, begin_ns), end_ns) - begin_ns) / 1e6 for t in (span.start_ns, span.end_ns))
        share = (right - left) * 1e6 / (end_ns - begin_ns)
        edge = 0.4 if share > 0.004 else 0.0  # it would hide short ones
        style = {"color": _COLOURS.get(span.name, "black"), "edgecolor": "white", "linewidth": edge}
        axes.barh(top, right - left, height, left, align="edge", **style)
        if span.name in _WORK and share > 0.013:
            place = (left + right) / 2, top + height / 2
            axes.text(*place, str(span.step), ha="center", va="center", fontsize=7, color="white")


def _row(span: Span, track: int, tracks: int) -> tuple[float, float]:
    """Top and height of a bar: work above, below it what is received, then what is sent, overlapping ones stacked."""
    if span.lane == "compute":
        return span.stage - 0.42, 0.5
    top, whole = (0.11, 0.10) if span.lane == "receive" else (0.22, 0.20)
    return span.stage + top + whole * track / tracks, whole / tracks


def _legend_of_spans(axes: Any, names: set[str]) -> None:
    from matplotlib.patches import Patch

    shown = [name for name in _COLOURS if name in names]
    handles = [Patch(facecolor=_COLOURS[name], label=_LABELS.get(name, name)) for name in shown]
    if handles:
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
        axes.legend(handles=handles, ncols=len(handles), fontsize=8, frameon=False, **place)


def _window(spans: Sequence[Span]) -> tuple[int, int]:
    """Begin and end in ns of a few training batches of the last stage: near the middle, with little evaluation."""
    last = max((span.stage for span in spans), default=0)
    work = [s for s in spans if s.stage == last and s.kind == "train" and s.name in _WORK]
    if not work:
        return _extent(spans)
    by_step: dict[int, list[Span]] = defaultdict(list)
    for span in work:
        by_step[span.step].append(span)
    steps = [by_step[step] for step in sorted(by_step)]
    starts = sorted(range(max(1, len(steps) - _BATCHES + 1)), key=lambda i: abs(2 * i + _BATCHES - len(steps)))
    windows = [_extent(chain.from_iterable(steps[i : i + _BATCHES])) for i in starts[:_CANDIDATES]]
    tests = [span for span in spans if span.name == "evaluate"]
    return min(windows, key=lambda window: _overlap_ns(tests, *window))  # the first of the best is nearest the middle


def _extent(spans: Iterable[Span]) -> tuple[int, int]:
    times = [(span.start_ns, span.end_ns) for span in spans]
    return min((start for start, _ in times), default=0), max((end for _, end in times), default=0)


def _overlap_ns(spans: Sequence[Span], begin_ns: int, end_ns: int) -> int:
    return sum(max(0, min(span.end_ns, end_ns) - max(span.start_ns, begin_ns)) for span in spans)
