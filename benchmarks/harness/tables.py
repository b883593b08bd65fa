"""Markdown tables of kept results: what the documents quote comes from here, not from a keyboard.

`python -m benchmarks tables` prints each between the marks around it: `summary` in README.md, all others in
benchmarks/README.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.kept import read_whole
from pipeline.errors import DataError

__all__ = ["between_marks", "number", "tables"]


@dataclass(frozen=True)
class _Columns:
    """Which figures of an experiment are shown, and of which rows (a pattern on labels)."""

    figures: Mapping[str, str]  # figure and its heading
    rows: str = ".*"


_DIFFERENCES = ("minus_full_head", "minus_backprop")

_SHOWN = {
    "throughput": _Columns(
        {"samples_per_second": "images a second", "speed_ratio_to_backprop": "speed over backprop in one process"},
        rows="(?!.*: process )",
    ),
    "schedule": _Columns(
        {
            "utilisation_percent": "busy, %",
            "of_slowest_stage_percent": "of its slowest stage's rate, %",
            "ratio_to_1f1b": "speed over 1F1B",
        }
    ),
    "time-to-accuracy": _Columns(
        {
            "test_error_percent": "test error at the end, %",
            "minus_backprop": "mean minus backprop's ± standard error",
            "steps_to_80": "steps to the error that backprop has after 80 % of its run",
            "step_seconds": "seconds a step",
            "seconds_to_80": "seconds to that error",
            "million_multiply_accumulates": "million multiply-accumulates an image",
            "peak_megabytes": "megabytes at most",
            "time_of_one_device": "time to that error, of backprop on one device",
        }
    ),
    "heads": _Columns(
        {
            "test_error_percent": "test error, %",
            "minus_full_head": "mean minus the paper's head's ± standard error",
            "step_time_over_backprop": "step time over backprop",
        }
    ),
    "gpu": _Columns(
        {
            "milliseconds": "milliseconds a step",
            "of_captured_backprop": "of captured backprop",
            "of_plain_backprop": "of plain backprop",
            "kernel_milliseconds": "its kernels, ms",
            "launches": "launches",
        },
        rows="(back|pred)",
    ),
}

_FASTEST = ", torch's fastest schedule"

_BACKPROP = (
    ("backprop, one process", ""),
    ("backprop, DDP", ""),
    ("backprop, (GPipe|.*1F1B|.*ZeroBubble)(, .* microbatches)?", _FASTEST),
)

_SUMMARY = (
    *_BACKPROP,
    ("pred, pipeline", ""),
    ("predsim, cheap head, pipeline", ""),
)
"""Rows of the summary: a pattern on labels, of which the fastest row counts, and what is said of that row."""

_RACE = "cifar10-fastnet: "
"""What the labels of the race that the summary tells of begin with."""

_RACERS = (
    *_BACKPROP,
    ("(local SGD|DiLoCo), .*", ""),
    *((f"{segments}( early| late)? segments, .*, pipeline", "") for segments in (2, 4)),
    ("block, .*, pipeline", ""),
)
"""Patterns as above. Of several rows that counts which held-out samples say is the best, of equal ones the fastest; of
torch's schedules that which is at the mark first."""

_RACE_FIGURES = ("test_error_percent", "minus_backprop", "steps_to_80", "step_seconds", "seconds_to_80")


def tables(folder: Path, experiments: Sequence[str]) -> dict[str, str]:
    """All by the name of their marks: `summary`, `race`, `targets`, and one for each experiment that is shown.

    Raises DataError where a file is damaged, or there is none.
    """
    paths = {name: folder / f"{name}.json" for name in experiments}
    found = [
        read_whole(path, "results of an experiment", partial(_told, name))
        for name, path in paths.items()
        if path.exists()
    ]
    if not found:
        raise DataError(f"{folder} holds no results of an experiment; give a folder that does with --output")
    picked = {mark: text for one in found for mark, text in one.picked.items()}
    targets = "\n".join([*_head(["target", "wanted", "measured", "met", "experiment"]), *_in_order(found)])
    return {**picked, "targets": targets, **{mark: text for one in found for mark, text in one.shown.items()}}


def between_marks(text: str, name: str) -> str:
    """What stands in a document between `<!-- name -->` and `<!-- end name -->`."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end {name} -->", text, re.DOTALL)
    return "" if found is None else found.group(1)


def number(value: float | None) -> str:
    """Three significant digits, or whole numbers: 0.703, 12.4, 1,759; what was not finite is a dash."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class _Told:
    """What one experiment tells: rows picked for README.md, all rows, and a line of each target, by its name."""

    picked: Mapping[str, str]
    shown: Mapping[str, str]
    targets: Sequence[tuple[str, str]]


def _told(name: str, report: Mapping[str, Any]) -> _Told:
    pick = _PICKED.get(name)
    picked = {} if pick is None else {pick[0]: pick[1](report)}
    shown = {name: _rows(report, _SHOWN[name])} if name in _SHOWN else {}
    return _Told(picked, shown, [(target["name"], _target(target, name)) for target in report["targets"]])


def _summary(speed: Mapping[str, Any]) -> str:
    """Speed of a few methods."""
    lines = _head(["", f"images a second, {speed['rows'][0]['model']}", "of backprop in one process"])
    rows = {row["label"]: row for row in speed["rows"]}
    for label, remark in _best(rows, _SUMMARY, lambda row: -float(row["samples_per_second"]["median"])):
        cells = [rows[label]["samples_per_second"], rows[label]["speed_ratio_to_backprop"]]
        lines.append(f"| {label}{remark} | {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def _race(accuracy: Mapping[str, Any]) -> str:
    """The best of each kind."""
    known = {row["label"].removeprefix(_RACE): row for row in accuracy["rows"] if row["label"].startswith(_RACE)}
    headings = _SHOWN["time-to-accuracy"].figures
    lines = _head(["", *(headings[figure] for figure in _RACE_FIGURES)])
    for label, remark in _best(known, _RACERS, _worth):
        cells = [_figure(known[label], figure) for figure in _RACE_FIGURES]
        lines.append(f"| {label}{remark} | {' | '.join(cells)} |")
    return "\n".join(lines)


_PICKED: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "throughput": ("summary", _summary),
    "time-to-accuracy": ("race", _race),
}
"""By experiment, the mark and the table of a few of its rows."""


def _best(
    rows: Mapping[str, Mapping[str, Any]],
    patterns: Sequence[tuple[str, str]],
    worth: Callable[[Mapping[str, Any]], Any],
) -> Iterator[tuple[str, str]]:
    """Label and remark of the row with the least worth that fits each pattern; the first of equal ones."""
    for pattern, remark in patterns:
        labels = [label for label in rows if re.fullmatch(pattern, label)]
        if labels:
            more = _of_those_timed([rows[label] for label in labels]) if remark == _FASTEST else ""
            yield min(labels, key=lambda label: worth(rows[label])), remark + more


def _of_those_timed(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows the fastest one is the fastest of; nothing where all are timed."""
    timed = sum(any(figure in row for figure in ("step_seconds", "samples_per_second")) for row in rows)
    return "" if timed == len(rows) else f" ({timed} of {len(rows)} timed)"


def _worth(row: Mapping[str, Any]) -> tuple[float, float]:
    """The less the better: held-out error, and seconds of a step if they have been measured."""
    if row["label"].endswith(" microbatches"):
        return _median(row, "seconds_to_80"), 0.0
    return row["held_out_error_percent"], _median(row, "step_seconds")


def _median(row: Mapping[str, Any], figure: str) -> float:
    """Infinite where there is none."""
    return float(row.get(figure, {"median": math.inf})["median"])


def _head(headings: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(headings)} |", f"| {' | '.join('---' for _ in headings)} |"]


def _target(target: Mapping[str, Any], name: str) -> str:
    verdict = "yes" if target["met"] else "**no**"
    return f"| {target['name']} | {target['wanted']} | {number(target['measured'])} | {verdict} | {name} |"


def _in_order(found: Sequence[_Told]) -> list[str]:
    """Lines of the targets of all experiments."""
    targets = [target for one in found for target in one.targets]
    return [line for _, line in sorted(targets, key=lambda target: _order(target[0]))]


def _order(name: str) -> tuple[int, str]:
    """Numbered targets first, in order; the text decides among equals only where there is no number."""
    found = re.match(r"(\d+)\.", name)
    return (int(found.group(1)), "") if found else (99, name)


def _rows(report: Mapping[str, Any], columns: _Columns) -> str:
    """Without columns that no row has anything in."""
    rows = [row for row in report["rows"] if re.match(columns.rows, row["label"])]
    figures = [figure for figure in columns.figures if any(figure in row for row in rows)]
    lines = _head(["", *(columns.figures[figure] for figure in figures)])
    for row in rows:
        if any(figure in row for figure in figures):
            cells = [_figure(row, figure) for figure in figures]
            lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(row: Mapping[str, Any], figure: str) -> str:
    if figure in _DIFFERENCES and figure in row:
        return f"{row[figure]:+.2f} ± {row['standard_error']:.2f}"
    return _cell(row.get(figure))


def _cell(figure: Mapping[str, float] | float | None) -> str:
    if figure is None:
        return ""
    if isinstance(figure, int | float):
        return number(figure)
    if figure["n"] == 1:
        return number(figure["median"])
    return f"{number(figure['median'])} ({number(figure['minimum'])} to {number(figure['maximum'])})"
