"""Trains what is missing, a training on each core."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from benchmarks.harness.crew import Crew
from benchmarks.race.curves import Curve, train_curve
from benchmarks.race.ledger import Job, Kept, Ledger
from benchmarks.race.lines import Line
from benchmarks.race.order import all_lines, config_of, epochs_left, ready
from benchmarks.race.tasks import Task

__all__ = ["train_all"]

_LIMIT_S = 4 * 3600.0
_WAIT_S = 60.0


class _Work:
    """What the threads share: which jobs are under way, and whether any more shall begin."""

    def __init__(self, task: Task, ledger: Ledger, told: Callable[[Job, Curve, int], None]) -> None:
        self.task, self.ledger, self.told = task, ledger, told
        self._busy: set[Job] = set()
        self._crews: set[Crew] = set()
        self._stopped = self._at_once = False
        self._changed = threading.Condition()
        self.error: BaseException | None = None  # the first

    def run(self, core: int) -> None:
        """Do jobs on a core until there are none, or one has failed anywhere."""
        try:
            while (job := self._next()) is not None:
                self._done(job, self._train(job, core))
        except BaseException as error:
            with self._changed:
                self.error = self.error or error
            self.stop()

    def stop(self, *, at_once: bool = False) -> None:
        """Begin no other job; `at_once` ends those under way, too."""
        with self._changed:
            self._stopped = True
            self._at_once |= at_once
            self._changed.notify_all()
            for crew in self._crews if at_once else ():
                crew.abort()

    def _train(self, job: Job, core: int) -> Curve:
        with Crew(1, available=[core], limit_s=_LIMIT_S) as crew:
            with self._changed:
                self._crews.add(crew)
                if self._at_once:
                    crew.abort()
            try:
                return crew.call(train_curve, job.line, config_of(self.task, job), self.task.looks)[0]
            finally:
                with self._changed:
                    self._crews.discard(crew)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._stopped:
                left = self._ready()
                if left:
                    self._busy.add(left[0])
                    return left[0]
                if not self._busy:
                    return None
                self._changed.wait(_WAIT_S)  # what is under way may let others begin
        return None

    def _ready(self) -> Sequence[Job]:
        return ready(self.task, self._kept(), self._busy)

    def _kept(self) -> Mapping[Line, Kept]:
        return {line: self.ledger.read(line) for line in all_lines(self.task, self.ledger.read)}

    def _done(self, job: Job, curve: Curve) -> None:
        with self._changed:
            self.ledger.add(job, curve)
            self._busy.discard(job)
            self.told(job, curve, epochs_left(self.task, self._kept()))
            self._changed.notify_all()


def train_all(task: Task, ledger: Ledger, cores: Sequence[int], told: Callable[[Job, Curve, int], None]) -> None:
    """Train what the ledger does not have yet, each job in a process of its own on one of `cores`.

    `told` learns of what has ended, and how many epochs of others are left. Raises what the first failing job raised,
    after those under way have ended.
    """
    work = _Work(task, ledger, told)
    with ThreadPoolExecutor(len(cores)) as pool:
        futures = [pool.submit(work.run, core) for core in cores]
        try:
            wait(futures)
        except BaseException:  # an interrupt, which is for this thread alone
            work.stop(at_once=True)
            raise
    if work.error is not None:
        raise work.error
