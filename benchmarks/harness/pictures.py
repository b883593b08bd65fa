"""Pictures of results: bars with whiskers, or curves. Data in, file out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.harness.figures import Figure

__all__ = ["Bars", "Curves", "Picture", "draw"]


@dataclass(frozen=True)
class Bars:
    """Medians as bars, least to greatest as whiskers. `mark` draws a line at a reference value."""

    label: str
    figures: Mapping[str, Figure]
    mark: float | None = None


@dataclass(frozen=True)
class Curves:
    """Panels side by side, by title; in each the curves, by label, as points (x, y)."""

    x_label: str
    y_label: str
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
    logarithmic: bool = False


Picture = Bars | Curves


def draw(name: str, picture: Picture, path: Path) -> None:
    """Write the picture of an experiment to a file."""
    with matplotlib.rc_context({"font.size": 9}):
        canvas = _bars(name, picture) if isinstance(picture, Bars) else _curves(name, picture)
        canvas.savefig(path, dpi=150)


def _bars(name: str, picture: Bars) -> Canvas:
    figures = list(picture.figures.values())
    canvas = Canvas(figsize=(7, 1.2 + 0.4 * len(figures)), layout="constrained")
    axes = canvas.add_subplot()
    spread = [[f.median - f.minimum for f in figures], [f.maximum - f.median for f in figures]]
    axes.barh(list(picture.figures), [f.median for f in figures], xerr=spread, capsize=3)
    if picture.mark is not None:
        axes.axvline(picture.mark, color="black", linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel(picture.label)
    axes.set_title(f"{name}: median, least and greatest of n = {_span(f.n for f in figures)}")
    return canvas


def _curves(name: str, picture: Curves) -> Canvas:
    count = len(picture.panels)
    canvas = Canvas(figsize=(max(7.0, 4.5 * count), 4), layout="constrained")
    for axes, (title, curves) in zip(canvas.subplots(1, count, squeeze=False)[0], picture.panels.items(), strict=True):
        _panel(axes, title, curves, picture)
    canvas.suptitle(name)
    return canvas


def _panel(axes: Axes, title: str, curves: Mapping[str, Sequence[tuple[float, float]]], picture: Curves) -> None:
    for index, (label, points) in enumerate(curves.items()):
        style = "-" if index < 10 else "--"  # the colours repeat after ten
        axes.plot([x for x, _ in points], [y for _, y in points], style, marker="o", markersize=3, label=label)
    if picture.logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.y_label)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _span(counts: Iterable[int]) -> str:
    """`5`, or `5 to 15`."""
    known = sorted(counts)
    return " to ".join(str(n) for n in sorted({known[0], known[-1]}))
