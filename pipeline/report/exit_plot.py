"""The picture of an evaluation: error against cost. matplotlib is imported when it is drawn."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.exit_records import Evaluated

__all__ = ["save_exits"]

_GREY, _BLUE, _RED = "#8c8c8c", "#2b7bba", "#c0392b"  # red is the whole network, as in the curves


def save_exits(found: Evaluated, path: str | Path) -> None:
    """Every exit alone, the whole network, and the thresholds, joined, by the average cost of a sample."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")  # no global state knows it
    axes = figure.subplots()
    title = f"{found.model} on {found.dataset}, {found.loss}: {found.samples:,} test images"
    axes.set_title(title, fontsize=10, parse_math=False)
    *hidden, output = found.exits
    tried = sorted((each.cost, each.error_percent, each.threshold) for each in found.thresholds)
    if tried:
        costs, errors, thresholds = zip(*tried, strict=True)
        label = f"leaving at a threshold, {min(thresholds):g} to {max(thresholds):g}"
        axes.plot(costs, errors, "-o", color=_BLUE, markersize=4, linewidth=1.4, label=label)
    if hidden:
        places = [each.cost for each in hidden], [each.error_percent for each in hidden]
        axes.plot(*places, "s", color=_GREY, markersize=5, label="an exit alone, by block")
    for each in hidden:
        place = (each.cost, each.error_percent)
        axes.annotate(str(each.block), place, xytext=(5, 4), textcoords="offset points", fontsize=8, color=_GREY)
    label = f"the whole network, {output.error_percent:.2f} %"
    axes.plot([output.cost], [output.error_percent], "*", color=_RED, markersize=12, label=label)
    axes.set_xlabel("multiply-accumulates of a sample, relative to the network alone")
    axes.set_ylabel("test error %")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0, top=max(1.05 * max(each.error_percent for each in found.exits), 1e-3))
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png", dpi=130)
