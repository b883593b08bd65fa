"""Trains what is missing, a training on each core."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness.jobs import Core, work_off
from benchmarks.harness.report import Provenance, provenance
from benchmarks.race.curves import Curve, train_curve
from benchmarks.race.ledger import Job, Kept, Ledger
from benchmarks.race.lines import Line
from benchmarks.race.order import all_kept, config_of, epochs_left, ready
from benchmarks.race.tasks import Task

__all__ = ["train_all"]

_LIMIT_S = 4 * 3600.0


def train_all(task: Task, ledger: Ledger, cores: Sequence[int], told: Callable[[Job, Curve, int], None]) -> None:
    """Train what the ledger does not have yet, each job in a process of its own on one of `cores`.

    `told` learns of what has ended, and how many epochs of others are left. Raises what the first failing job raised,
    after those under way have ended.
    """

    def kept() -> Mapping[Line, Kept]:
        return all_kept(task, ledger.read)

    def train(job: Job, core: Core) -> tuple[Provenance, Curve]:
        origin = provenance()
        return origin, core.call(train_curve, job.line, config_of(task, job), task.looks)

    def done(job: Job, made: tuple[Provenance, Curve]) -> None:
        origin, curve = made
        ledger.add(job, curve, origin)
        told(job, curve, epochs_left(task, kept()))

    work_off(cores, _LIMIT_S, ready=lambda busy: ready(task, kept(), busy), do=train, done=done)
