"""An evaluation as lines of text, which any terminal, pipe or file takes: pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.learning.exit_figures import Confusion
from pipeline.report.exit_records import Evaluated
from pipeline.report.render import MARK, plural

__all__ = ["evaluation_lines"]

_COST = "cost: multiply-accumulates of a sample, relative to the network alone"


def evaluation_lines(found: Evaluated) -> Iterator[str]:
    """All tables of an evaluation, an empty line between two."""
    samples = plural(found.samples, "test image")
    yield f"{found.model} on {found.dataset}, {found.loss}: {samples}, on {found.device}"
    yield ""
    yield f"every exit alone; {_COST}"
    rows = [
        (str(each.exit), str(each.block), each.layer, f"{each.error_percent:.2f}", f"{each.cost:.3f}")
        for each in found.exits
    ]
    *hidden, output = _aligned(("exit", "block", "layer", "error %", "cost"), rows, left=2)
    yield from [*hidden, f"{output}  {MARK}"]
    yield ""
    yield "averaged probabilities of the last exits"
    averages = [(str(n), f"{error:.2f}") for n, error in enumerate(found.average_error_percent, 1)]
    yield from _aligned(("last", "error %"), averages)
    yield ""
    yield "every image leaves at the first exit whose greatest probability is at least the threshold"
    tried = [(f"{each.threshold:g}", f"{each.error_percent:.2f}", f"{each.cost:.3f}") for each in found.thresholds]
    yield from _aligned(("threshold", "error %", "cost"), tried)
    if found.confusion is not None:
        yield ""
        yield from _confusion_lines(found.confusion)


def _confusion_lines(confusion: Confusion) -> Iterator[str]:
    yield "images of each class (row) that the network takes for each class (column)"
    headings = ("class", *(str(k) for k in range(len(confusion.matrix))), "error %")
    errors = ("-" if error is None else f"{error:.2f}" for error in confusion.error_percent)
    lines = zip(confusion.matrix, errors, strict=True)
    yield from _aligned(headings, [(str(k), *map(str, row), error) for k, (row, error) in enumerate(lines)])


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int | None = None) -> list[str]:
    """Headings and rows in columns, numbers to the right; column `left` has words."""
    table = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = ["<" if column == left else ">" for column in range(len(headings))]
    return ["  ".join(f"{text:{s}{w}}" for text, s, w in zip(row, sides, widths, strict=True)) for row in table]
