"""What is trained next: pure functions of what is kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from benchmarks.race.ledger import Job, Kept
from benchmarks.race.lines import Line, lines, local_line, with_segments
from benchmarks.race.tasks import HEADS, Task
from pipeline.config.schema import RunConfig

__all__ = ["all_lines", "best_head", "config_of", "epochs_left", "ready"]


def best_head(task: Task, read: Callable[[Line], Kept]) -> str | None:
    """The head with the least error after equal epochs with two segments; None until all runs of all have ended."""
    errors = {}
    for head in HEADS:
        runs = read(local_line(task, 2, head)).runs
        if len(runs) < task.seeds:
            return None
        errors[head] = statistics.fmean(run.error for run in runs)
    return min(errors, key=lambda head: errors[head])


def all_lines(task: Task, read: Callable[[Line], Kept]) -> list[Line]:
    """All that are known so far."""
    head = best_head(task, read)
    return [*lines(task), *(with_segments(task, head) if head is not None else ())]


def ready(task: Task, kept: Mapping[Line, Kept], busy: Collection[Job] = ()) -> list[Job]:
    """What can be trained now, the first one first: tries, then the first runs of all lines, the second, ...

    Settings are chosen when all tries of a line have ended; the heads' factor is tried at the best rate.
    """
    jobs = [job for line, found in kept.items() for job in _of_line(task, line, found)]
    return sorted((job for job in jobs if job not in busy), key=lambda job: job.seed or 0)


def _of_line(task: Task, line: Line, kept: Kept) -> Sequence[Job]:
    tried = {(one.lr, one.head_lr) for one in kept.tries}
    first = task.head_rates[0]
    rates = [Job(line, lr, first) for lr in task.rates if (lr, first) not in tried]
    if rates:
        return rates
    at_first = Kept(tuple(one for one in kept.tries if one.head_lr == first))
    lr, _ = at_first.choice()
    factors = [Job(line, lr, factor) for factor in task.head_rates if line.is_local and (lr, factor) not in tried]
    if factors:
        return factors
    made = {run.seed for run in kept.runs}
    return [Job(line, *kept.choice(), seed) for seed in range(1, task.seeds + 1) if seed not in made]


def epochs_left(task: Task, kept: Mapping[Line, Kept]) -> int:
    """Of all tries and runs that are still to come, lines that are not known yet among them."""
    unknown = 0 if best_head(task, lambda line: kept.get(line, Kept())) is not None else len(task.segments)
    tries = {True: len(task.rates) + len(task.head_rates) - 1, False: len(task.rates)}
    wanted = sum(tries[line.is_local] for line in kept) + tries[True] * unknown
    tries_left = wanted - sum(len(found.tries) for found in kept.values())
    runs_left = task.seeds * (len(kept) + unknown) - sum(len(found.runs) for found in kept.values())
    return tries_left * task.tuning_epochs + runs_left * task.config.train.epochs


def config_of(task: Task, job: Job) -> RunConfig:
    """What a job trains."""
    base = task.tuning if job.seed is None else task.config
    return job.line.applied(base, job.lr, job.head_lr, job.seed or 1)
