"""Emulated stages: what they share. They sleep where a stage would compute, so that many fit on few cores.

A batch costs every stage the same number of seconds, however it is trained: a third for the forward, two for the
backward, which where it is split are one for the gradient of the input and one for that of the weights.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.seeding import derive_seed

__all__ = ["BATCH", "SHAPE", "Load", "Turn", "Window", "Work", "ideal_utilisation", "summed"]

BATCH = 32
SHAPE = (16, 8, 8)  # of one sample's activation, float32: 128 KiB a batch really travel

_JITTER = 0.1  # of the batches
_JITTER_FACTOR = 5.0


@dataclass(frozen=True)
class Load:
    """What the batches cost.

    Attributes:
        stages: how many share the work.
        batch_s: seconds that one stage works on one batch.
        slow_stage: one that takes 1.5 times as long.
        jitter: whether 10 % of the batches take 5 times as long at one random stage.
        weights: of the stages, in parts of `batch_s`; all are 1 without.
    """

    stages: int
    batch_s: float
    slow_stage: int | None = None
    jitter: bool = False
    weights: tuple[float, ...] | None = None

    def factor(self, turn: int, batch: int, stage: int) -> float:
        """How many times `batch_s` a batch costs a stage; the same for every method in the same turn."""
        slow = (1.5 if stage == self.slow_stage else 1.0) * (1.0 if self.weights is None else self.weights[stage])
        return slow * _JITTER_FACTOR if stage == self.struck(turn, batch) else slow

    def struck(self, turn: int, batch: int) -> int | None:
        """The stage at which the jitter strikes a batch, if it does."""
        chance = random.Random(derive_seed("jitter", turn, batch))
        strikes, stage = chance.random() < _JITTER, chance.randrange(self.stages)
        return stage if self.jitter and strikes else None

    def slowest_rate(self, turn: int, window: Window) -> float:
        """Batches a second of the stage with most to do: what nobody can exceed."""
        sums = (sum(self.factor(turn, batch, s) for batch in window.batches) for s in range(self.stages))
        return window.count / (self.batch_s * max(sums))


@dataclass(frozen=True)
class Window:
    """The batches of a turn that are measured: `count` of them after `warm_up` others."""

    warm_up: int
    count: int

    @property
    def batches(self) -> range:
        """Their numbers."""
        return range(self.warm_up, self.warm_up + self.count)


@dataclass(frozen=True)
class Turn:
    """What one process saw of the measured batches.

    Attributes:
        seconds: from the end of the last batch of the warm-up to the end of the last one measured, at this process.
        slept_s: that it slept for them, by the clock.
    """

    seconds: float
    slept_s: float


class Work:
    """The sleeping of one stage, measured.

    Args:
        load: of the pipeline.
        stage: which of its stages.
        turn: keys the jitter.
    """

    def __init__(self, load: Load, stage: int, turn: int) -> None:
        self.load, self.stage, self.turn = load, stage, turn
        self.slept_s = 0.0
        self._done: dict[int, tuple[float, float]] = {}  # batch: when, seconds slept until then

    def sleep(self, batch: int, share: float) -> None:
        """Work on a share of what the stage has to do for a batch."""
        start = time.perf_counter()
        time.sleep(share * self.load.batch_s * self.load.factor(self.turn, batch, self.stage))
        self.slept_s += time.perf_counter() - start

    def finish(self, batch: int) -> None:
        """Note that a batch is done."""
        self._done[batch] = time.perf_counter(), self.slept_s

    def measured(self, window: Window) -> Turn:
        """What the window's batches took."""
        (start, before), (end, after) = (self._done[batch] for batch in (window.warm_up - 1, window.batches[-1]))
        return Turn(end - start, after - before)


def summed(turns: Sequence[Turn], window: Window) -> tuple[float, float]:
    """Batches a second and utilisation in percent of one turn, from what its processes saw.

    The last process's clock counts. A process that ran ahead into the queues gains nothing by it: what counts is how
    long it slept for the measured batches, not when.
    """
    seconds = turns[-1].seconds
    slept = sum(turn.slept_s for turn in turns) / len(turns)
    return window.count / seconds, 100.0 * slept / seconds


def ideal_utilisation(schedule: str | None, stages: int, microbatches: int) -> float | None:
    """The busy fraction of equal stages if messages took no time; None is ours, which has no microbatches.

    Without a formula (zero-bubble schedules with fewer than 2 microbatches a stage) it is None.
    """
    fill = stages - 1
    if schedule is None:
        return 1.0
    if schedule in ("GPipe", "1F1B"):
        return microbatches / (microbatches + fill)
    if schedule == "Interleaved1F1B":
        return 2 * microbatches / (2 * microbatches + fill)
    return 6 * microbatches / (6 * microbatches + fill) if microbatches >= 2 * stages else None
