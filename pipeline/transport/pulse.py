"""A process among the others: its heartbeat, what it knows of theirs, and of the failure that ends the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from pipeline.errors import PipelineError, first_line
from pipeline.learning.packet import Position
from pipeline.transport.mates import Mates
from pipeline.transport.verdict import Verdict, known, read_report, report
from pipeline.transport.watch import Beat, Watch, read_beat

__all__ = ["Pulse", "failure_key"]


class Pulse:
    """What the messenger does with the store several times a second, and what other threads read of that.

    Attributes:
        at, waits_for: where the main thread is, and the process whose packet or room it waits for; peers see both.
        watches: the waits under way, for the messenger.
    """

    def __init__(
        self, rank: int, timeout_s: float, describe: Callable[[int], str], hears: Callable[[PipelineError], None]
    ) -> None:
        self.rank, self.timeout_s, self.describe, self._hears = rank, timeout_s, describe, hears
        self.at = Position()
        self.waits_for: int | None = None
        self.watches: list[Watch] = []
        self._interval_s = min(1.0, timeout_s / 4)
        self._generation = -1  # before the first no turn is taken
        self._beats, self._beaten = 0, -math.inf
        self._verdict, self._mates = Verdict(), Mates()

    def raise_if_learnt(self) -> None:
        """Raise the failure that the messenger knows of; does not ask the store."""
        failure = self._verdict.of(self._generation)
        if failure is not None:
            raise failure

    def unanswered(self) -> PipelineError:
        """The error of one who has heard nothing from the store, nor from those it waits for, within the timeout."""
        return self._given_up(self._without_answers())

    def _turn(self, store: Store) -> None:
        """What the messenger does several times a second."""
        generation, now = self._generation, time.monotonic()
        if generation < 0:
            return
        if now - self._beaten >= self._interval_s:
            self._beaten, self._beats = now, self._beats + 1
            self._set_beat(store, self._beats)
        key, trouble = failure_key(generation), self._dead(store) or self._silent(store)
        if trouble is not None:
            self._hear(generation, store.compare_set(key, "", report(trouble, self.rank)))
        elif store.check([key]):
            self._hear(generation, store.get(key))

    def _hear(self, generation: int, told: bytes) -> None:
        """The messenger has learnt of a failure."""
        message, rank = read_report(told)
        if self._verdict.learn(generation, message, rank):
            self._hears(known(message, rank))

    def _dead(self, store: Store) -> str | None:
        """A process of this host that has ended without having left."""
        for rank, pid in self._mates.gone().items():
            beat = read_beat(store, rank)
            if beat is None or beat.count > 0:
                what = f"died: its process {pid} is gone"
                return f"{self.describe(rank)} {what}; see its output above, then start the run anew"
        return None

    def _silent(self, store: Store) -> str | None:
        """What is wrong with a process that this one waits for."""
        for watch in tuple(self.watches):
            if watch.rank != self.rank and (trouble := watch.look(read_beat(store, watch.rank))) is not None:
                return trouble
        return None

    def _set_beat(self, store: Store, count: int) -> None:
        store.set(f"beat/{self.rank}", Beat(count, self.at.epoch, self.at.step, self.waits_for).text())

    def _leave(self, store: Store) -> None:
        """The messenger's last act."""
        self._set_beat(store, 0)

    def _given_up(self, message: str) -> PipelineError:
        """Without the store nobody can agree on who tells: of the processes of this host the first that is left."""
        rank = min([self.rank, *self._mates.left()])
        self._verdict.learn(max(0, self._generation), message, rank)
        failure = known(message, rank)
        self._hears(failure)
        return failure

    def _without_store(self, error: RuntimeError) -> str:
        return f"{self.describe(self.rank)} lost torchrun's store ({first_line(error)}); start the run anew"

    def _without_answers(self) -> str:
        return (
            f"torchrun's store has not answered {self.describe(self.rank)} for {self.timeout_s:g} s; look at the "
            "process and the machine that MASTER_ADDR names, or raise --timeout if it was only suspended"
        )


def failure_key(generation: int) -> str:
    """Where the failure that ends a generation lies in the store."""
    return f"{generation}/failure"
