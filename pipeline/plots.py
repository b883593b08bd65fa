"""Pictures: error curves and timelines. matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.metrics import EpochRecord
from pipeline.trace import Span

__all__ = ["save_curves", "save_timeline"]

_COLOURS = {
    "receive": "#9ecae1",
    "forward": "#3182bd",
    "step": "#41ab5d",
    "update": "#e6550d",
    "send": "#fdae6b",
    "evaluate": "#756bb1",
    "wait input": "#ededed",
    "wait output": "#d9d9d9",
    "wait gradient": "#d9d9d9",
}
_BATCHES = 7  # how many batches a timeline shows


def save_curves(records: Sequence[EpochRecord], path: str | Path, title: str) -> None:
    """Training and test error of the network, and the error of every block's own classifier, against the epoch."""
    figure, (network, blocks) = _figure(columns=2, width=11, height=4.2)
    epochs = [record.epoch for record in records]
    network.plot(epochs, [record.train_error_percent for record in records], "o-", markersize=3, label="training")
    tested = [record for record in records if record.test_error_percent is not None]
    network.plot([r.epoch for r in tested], [r.test_error_percent for r in tested], "s-", markersize=3, label="test")
    network.set_title(title)
    _draw_blocks(blocks, tested)
    for axes in (network, blocks):
        axes.set_xlabel("epoch")
        axes.set_ylabel("error %")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _draw_blocks(axes: Any, tested: Sequence[EpochRecord]) -> None:
    """One line for each block that has a classifier, early blocks light, late ones dark."""
    from matplotlib import colormaps

    axes.set_title("test error of each block's own classifier")
    count = len(tested[0].block_test_error_percent or ()) if tested else 0
    for block in range(count):
        points = [(r.epoch, (r.block_test_error_percent or ())[block]) for r in tested]
        seen = [(epoch, error) for epoch, error in points if error is not None]
        if seen:
            label = "output layer" if block == count - 1 else f"block {block}"
            colour = colormaps["viridis_r"](0.15 + 0.85 * block / max(count - 1, 1))
            axes.plot(*zip(*seen, strict=True), "-", color=colour, linewidth=1.4, marker=".", label=label)


def save_timeline(spans: Sequence[Span], path: str | Path) -> None:
    """What every stage does while a few batches pass, from the middle of the training part of a trace."""
    shown = _window(spans)
    stages = sorted({span.stage for span in spans})
    figure, (axes,) = _figure(columns=1, width=11, height=1.2 + 0.75 * max(len(stages), 1))
    start = min((span.start_ns for span in shown), default=0)
    for span in shown:
        row, height = (span.stage - 0.12, 0.5) if span.lane == "compute" else (span.stage + 0.29, 0.18)
        left, width = (span.start_ns - start) / 1e6, span.duration_ns / 1e6
        axes.barh(row, width, left=left, height=height, color=_COLOURS.get(span.name, "black"), linewidth=0)
        if span.name in ("forward", "update", "step"):
            axes.text(
                left + width / 2,
                row,
                str(span.step),
                ha="center",
                va="center",
                fontsize=6,
                color="white",
                clip_on=True,
            )
    axes.set_yticks(stages, [f"stage {stage}" for stage in stages])
    axes.set_ylim(max(stages, default=0) + 0.6, -0.6)
    axes.set_xlabel("ms (numbers: batch)")
    names = [name for name in _COLOURS if any(span.name == name for span in shown)]
    handles = [_patch(name) for name in names]
    axes.legend(
        handles,
        names,
        fontsize=7,
        ncols=max(len(names), 1),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


def _window(spans: Sequence[Span]) -> list[Span]:
    """The spans during which the last stage works on a few batches in the middle of training."""
    last = max((span.stage for span in spans), default=0)
    work = [s for s in spans if s.stage == last and s.kind == "train" and s.name in ("step", "update", "forward")]
    steps = sorted({span.step for span in work})
    middle = steps[max(0, len(steps) // 2 - _BATCHES) :][:_BATCHES]
    inside = [span for span in work if span.step in middle]
    begin = min((span.start_ns for span in inside), default=0)
    end = max((span.end_ns for span in inside), default=0)
    return [span for span in spans if span.end_ns > begin and span.start_ns < end]


def _figure(*, columns: int, width: float, height: float) -> tuple[Any, tuple[Any, ...]]:
    """A figure that no global state knows, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, tuple(figure.add_subplot(1, columns, column + 1) for column in range(columns))


def _patch(name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=_COLOURS[name])
