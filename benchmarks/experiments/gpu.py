"""What a GPU makes of all this: the same bits however it runs, the cost of a step and of a hand-over, real pipelines.

Needs a GPU and nothing else; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from benchmarks.experiments import throughput
from benchmarks.gpu import equality, handover, steps
from benchmarks.harness.report import Result, Row, Target, bars
from pipeline.errors import ConfigError

__all__ = ["PARTS", "run"]

Part = Callable[[bool], tuple[Sequence[Row], Sequence[Target]]]


def _pipelines(quick: bool) -> tuple[Sequence[Row], Sequence[Target]]:
    """The pipeline against DDP and torch's schedules, one process a GPU."""
    result = throughput.run(quick)
    return result.rows, result.targets


PARTS: Mapping[str, Part] = {
    "equality": equality.measure,
    "steps": partial(steps.measure, compiled=False),
    "handover": handover.measure,
    "pipelines": _pipelines,
    "compiled": partial(steps.measure, compiled=True),
}
"""What can be measured by itself; `compiled` is, only then."""

_DRAWN = ("milliseconds", "pipelined_over_alone", "samples_per_second", "digests")  # the first that there is


def run(quick: bool, part: str | None = None) -> Result:
    """Measure one part, or all but the compilation of everything.

    Raises ConfigError without a GPU, or where a part needs more of them.
    """
    if not torch.cuda.is_available():
        raise ConfigError(f"the experiment gpu needs a GPU, and torch {torch.__version__} finds none")
    rows: list[Row] = []
    targets: list[Target] = []
    several = torch.cuda.device_count() > 1
    if part == "pipelines" and not several:
        raise ConfigError("the part pipelines needs several GPUs, and there is one; leave it out")
    parts = [name for name in PARTS if name != "compiled" and (several or name != "pipelines")]
    for name in parts if part is None else [part]:
        more, wanted = PARTS[name](quick)
        rows += more
        targets += wanted
    drawn = next(name for name in _DRAWN if any(name in row.figures for row in rows))
    return Result(rows, targets, bars(drawn, rows))
