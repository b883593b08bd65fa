"""What is trained next: pure functions of what is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from benchmarks.race.ledger import Job, Kept
from benchmarks.race.lines import BACKPROP, Line, lines, local_line, with_segments
from benchmarks.race.tasks import Task
from pipeline.config.schema import RunConfig

__all__ = ["all_kept", "all_lines", "best_head", "config_of", "epochs_left", "ready"]


def best_head(task: Task, read: Callable[[Line], Kept]) -> str | None:
    """The head whose best try with two segments is the best; None until all tries of all have ended.

    Held-out samples decide, not the test set.
    """
    found = {head: read(local_line(task, 2, head)) for head in task.heads}
    if any(_tries_of(task, local_line(task, 2, head), kept) for head, kept in found.items()):
        return None
    return min(found, key=lambda head: found[head].best().error)


def all_lines(task: Task, read: Callable[[Line], Kept]) -> list[Line]:
    """All that are known so far."""
    head = best_head(task, read)
    return [*lines(task), *(with_segments(task, head) if head is not None else ())]


def all_kept(task: Task, read: Callable[[Line], Kept]) -> dict[Line, Kept]:
    """What is kept of every line."""
    return {line: read(line) for line in all_lines(task, read)}


def ready(task: Task, kept: Mapping[Line, Kept], busy: Collection[Job] = ()) -> list[Job]:
    """What can be trained now, the first one first: the lines of the first rank, then those of the next.

    Within a rank tries come first, then the first runs of all lines, the second, ...

    Settings are chosen when all tries of a line have ended; the best rate is tried with other factors for the heads,
    or where there are none moved a little.
    """
    jobs = [job for line, found in kept.items() for job in _of_line(task, line, found)]
    return sorted((job for job in jobs if job not in busy), key=lambda job: (_rank(job.line), job.seed or 0))


def _rank(line: Line) -> int:
    """Segments against backprop first, as it takes hours until all others are known; then backprop as it is split,
    every block by itself, and replicas that meet now and then."""
    if line == BACKPROP or line.segments is not None:
        return 0
    if line.is_local:
        return 2
    return 1 if line.every is None else 3


def _of_line(task: Task, line: Line, kept: Kept) -> Sequence[Job]:
    tries = _tries_of(task, line, kept)
    if tries:
        return tries
    best = kept.best()
    made = {run.seed for run in kept.runs}
    return [Job(line, best.lr, best.head_lr, seed) for seed in range(1, task.seeds + 1) if seed not in made]


def _tries_of(task: Task, line: Line, kept: Kept) -> Sequence[Job]:
    """Those that can be made now; none are left when there are none."""
    tried = {(one.lr, one.head_lr) for one in kept.tries}
    first = task.head_rates[0] if line.is_local else 1.0
    rates = [Job(line, lr, first) for lr in task.rates if (lr, first) not in tried]
    if rates:
        return rates
    best = Kept(tuple(one for one in kept.tries if one.lr in task.rates and one.head_lr == first)).best().lr
    further = (
        [Job(line, best, factor) for factor in task.head_rates[1:]]
        if line.is_local
        else [Job(line, best * factor, first) for factor in task.fine_rates]
    )
    return [job for job in further if (job.lr, job.head_lr) not in tried]


def epochs_left(task: Task, kept: Mapping[Line, Kept]) -> int:
    """Of all tries and runs that are still to come, lines that are not known yet among them."""
    head = best_head(task, lambda line: kept.get(line, Kept()))
    unknown = 0 if head is not None else len(with_segments(task, task.heads[0]))
    tries = {
        True: len(task.rates) + len(task.head_rates) - 1,
        False: len(task.rates) + len(task.fine_rates),
    }
    wanted = sum(tries[line.is_local] for line in kept) + tries[True] * unknown
    tries_left = wanted - sum(len(found.tries) for found in kept.values())
    runs_left = task.seeds * (len(kept) + unknown) - sum(len(found.runs) for found in kept.values())
    return tries_left * task.tuning_epochs + runs_left * task.config.train.epochs


def config_of(task: Task, job: Job) -> RunConfig:
    """What a job trains."""
    base = task.tuning if job.seed is None else task.config
    return job.line.applied(base, job.lr, job.head_lr, job.seed or 1)
