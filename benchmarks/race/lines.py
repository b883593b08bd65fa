"""Ways to learn. Each has one curve of error against steps, whoever computes it, and in however many processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from benchmarks.race.tasks import Task
from pipeline.config.schema import RunConfig, override

__all__ = ["AVERAGING", "BACKPROP", "MICROBATCHED", "REPLICAS", "Line", "lines", "local_line", "with_segments"]

AVERAGING = (30, 100)
"""Steps between averages of the replicas' weights."""

_MICROBATCHES = (2, 4, 8)  # more fill a pipeline better, and cost more messages and smaller batch norms
_REPLICAS = 2

_Segments = int | tuple[int, ...] | None  # their number, or the blocks of each; None is every block by itself


@dataclass(frozen=True)
class Line:
    """A way to learn.

    Attributes:
        name: for tables and files.
        overrides: fields of the configuration, as (name, value), apart from the rates.
        parts: that a batch is cut into, each with a forward and backward of its own.
        replicas: whether each part has a network of its own (batch norms at least), not only its turn.
        every: steps between averages of the replicas' weights; None where their gradients are averaged every step.
        diloco: whether the averages are steps of an outer optimizer, as in DiLoCo.
    """

    name: str
    overrides: tuple[tuple[str, object], ...] = field(default=())
    parts: int = 1
    replicas: bool = False
    every: int | None = None
    diloco: bool = False

    @property
    def is_local(self) -> bool:
        """Whether it has local heads."""
        return bool(self.overrides)

    @property
    def segments(self) -> int | None:
        """Parts of the network with a local loss each; None where every block is one, and for global backprop."""
        return _count(cast("_Segments", dict(self.overrides).get("segments")))

    @property
    def is_microbatched(self) -> bool:
        """Whether it is what pipelines of backprop learn."""
        return self.parts > 1 and not self.replicas

    def applied(self, config: RunConfig, lr: float, head_lr: float, seed: int) -> RunConfig:
        """A task's configuration as this line trains it."""
        local = {"head_lr": head_lr} if self.is_local else {}
        return override(config, {**dict(self.overrides), **local, "lr": lr, "seed": seed})


BACKPROP = Line("backprop")
MICROBATCHED = tuple(Line(f"backprop, {count} microbatches", parts=count) for count in _MICROBATCHES)
REPLICAS = Line(f"backprop, {_REPLICAS} replicas", parts=_REPLICAS, replicas=True)


def local_line(
    task: Task, segments: _Segments, head: str, first_cut_after: int | None = None, where: str = ""
) -> Line:
    """Local losses: so many segments, or of so many blocks each, or every block one, with a head.

    A number of them is cut as their arithmetic balances them, the first not before so many blocks; `where` a cut is
    that arithmetic would not make, for people.
    """
    cut = "block" if segments is None else f"{_count(segments)}{where and f' {where}'} segments"
    overrides: dict[str, object] = {"segments": segments, "first_cut_after": first_cut_after, "head_start": "random"}
    if head == "predsim":
        overrides |= {"loss": "predsim", "similarity_head": task.similarity_head, "beta": task.beta}
    else:
        overrides |= {"loss": "pred", "classifier": head}
    return Line(f"{cut}, {head}", tuple(overrides.items()))


def _count(segments: _Segments) -> int | None:
    return len(segments) if isinstance(segments, tuple) else segments


def lines(task: Task) -> list[Line]:
    """All that can be trained before anything is known."""
    averaged = [
        Line(f"{name}, every {every} steps", (), _REPLICAS, replicas=True, every=every, diloco=diloco)
        for name, diloco in (("local SGD", False), ("DiLoCo", True))
        for every in AVERAGING
    ]
    local = [local_line(task, segments, head) for segments in (2, None) for head in task.heads]
    return [BACKPROP, *MICROBATCHED, REPLICAS, *local, *averaged]


def with_segments(task: Task, head: str) -> Sequence[Line]:
    """More segments, and other cuts, with the head that has proved best for two."""
    cut = [local_line(task, segments, head, first_cut_after, where) for where, segments, first_cut_after in task.cuts]
    return [*cut, *(local_line(task, count, head) for count in task.segments)]
