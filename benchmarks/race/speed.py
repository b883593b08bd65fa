"""Seconds of a step of every entrant, on the same cores, in turn; what a step takes else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.contenders.arithmetic import counted
from benchmarks.contenders.captured import warming_steps
from benchmarks.contenders.common import Trained, common_device
from benchmarks.contenders.footprint import joules, peak_memory
from benchmarks.contenders.methods import Method, split_of
from benchmarks.harness.crew import Crew
from benchmarks.harness.progress import shown
from benchmarks.race.entrants import PROCESSES, Entrant
from benchmarks.race.tasks import Task
from pipeline.config.schema import RunConfig, override

__all__ = ["Begun", "Round", "Speed", "Split", "measure_all", "timed", "with_averages", "work_of"]

Split = tuple[int, ...] | None

_QUEUE_DEPTH = 2
_NEVER = 10**9  # steps


@dataclass(frozen=True)
class Speed:
    """What an entrant's steps take.

    Attributes:
        seconds: of a step, in every round.
        megabytes: the sum of what its processes held at most, each with torch and all that it read.
        joules: of a step, by the machine's own meters; None where it has none.
    """

    seconds: tuple[float, ...]
    megabytes: float
    joules: float | None


@dataclass(frozen=True)
class Round:
    """A step of everyone, measured in turn: seconds and joules by label; no joules where the meters do not tell."""

    seconds: Mapping[str, float]
    joules: Mapping[str, float]


@dataclass(frozen=True)
class Begun:
    """What is measured of everyone so far: the splits found at first, by label, and rounds."""

    splits: Mapping[str, Split]
    rounds: tuple[Round, ...] = ()


def timed(task: Task, epochs: int = 2) -> RunConfig:
    """Epochs of a few steps, of which the first warms up; queues hold few, so that no stage is far ahead of others."""
    batch = task.config.train.batch_size
    values = {"epochs": epochs, "eval_every": epochs, "train_limit": task.timed_steps * batch, "test_limit": batch}
    return override(task.config, {**values, "queue_depth": _QUEUE_DEPTH})


def _here(task: Task, epochs: int = 2) -> RunConfig:
    """`timed`, on the devices that this machine has for everyone, in as many steps as it takes to warm up there."""
    values = {"device": common_device(PROCESSES), "train_limit": _steps(task) * task.config.train.batch_size}
    return override(timed(task, epochs), values)


def _steps(task: Task) -> int:
    """Of an epoch that is timed."""
    return warming_steps(task.timed_steps, common_device(PROCESSES))


class _Bench:
    """Trains methods of a task for a few steps, in crews that stay."""

    def __init__(self, task: Task, crews: Mapping[int, Crew]) -> None:
        self._task, self._crews = task, crews

    def split(self, method: Method) -> Split:
        """As the method's own first run finds it."""
        return split_of(self._train(method, 2))

    def measure(self, entrants: Iterable[Entrant], splits: Mapping[str, Split]) -> Round:
        """Everyone in turn."""
        seconds, used = dict[str, float](), dict[str, float]()
        for entrant in entrants:
            split = splits[entrant.label]
            seconds[entrant.label] = with_averages(entrant.method, partial(self._seconds, split=split))
            spent = math.nan if joules() is None else with_averages(entrant.method, partial(self._joules, split=split))
            used |= {} if math.isnan(spent) else {entrant.label: spent}
        return Round(seconds, used)

    def _train(self, method: Method, epochs: int, split: Split = None) -> Sequence[Trained]:
        return method.train(self._crews[method.processes], method.configured(_here(self._task, epochs), split))

    def _seconds(self, method: Method, split: Split) -> float:
        """Of a step."""
        return max(one.seconds[-1] for one in self._train(method, 2, split)) / _steps(self._task)

    def _joules(self, method: Method, split: Split) -> float:
        """Of a step: what another epoch takes, so that start and data fall out. NaN where the meters do not tell."""
        one, two = self._used(method, 1, split), self._used(method, 2, split)
        return (two - one) / _steps(self._task)

    def _used(self, method: Method, epochs: int, split: Split) -> float:
        before = joules()
        self._train(method, epochs, split)
        after = joules()
        return math.nan if before is None or after is None or after < before else after - before


def measure_all(
    task: Task,
    all_entrants: Sequence[Entrant],
    rounds: int,
    begun: Begun | None = None,
    keep: Callable[[Begun], None] = lambda begun: None,
) -> dict[str, Speed]:
    """By label; rounds of all entrants, after one that warms up and finds the splits.

    Args:
        task: raced over.
        all_entrants: measured in turn.
        rounds: of all.
        begun: what an earlier call has kept of the same entrants, to be gone on with.
        keep: called with all that has been measured so far, after the first round, and every further one.
    """
    with Crew(1) as solo, Crew(PROCESSES) as team:
        bench = _Bench(task, {1: solo, PROCESSES: team})
        if begun is None:
            warming = shown(list(all_entrants), f"{task.name}: splits of everyone")
            begun = Begun({entrant.label: bench.split(entrant.method) for entrant in warming})
            keep(begun)
        for turn in range(len(begun.rounds), rounds):
            everyone = shown(list(all_entrants), f"{task.name}: steps of everyone, round {turn + 1} of {rounds}")
            begun = replace(begun, rounds=(*begun.rounds, bench.measure(everyone, begun.splits)))
            keep(begun)
    everyone = shown(list(all_entrants), f"{task.name}: memory of everyone")
    return {entrant.label: _speed(task, entrant, begun) for entrant in everyone}


def _speed(task: Task, entrant: Entrant, begun: Begun) -> Speed:
    """Of the rounds, and the memory, which is measured here."""
    label, method = entrant.label, entrant.method
    held = sum(peak_memory(_averaging(method), method.configured(_here(task), begun.splits[label])))
    used = [turn.joules[label] for turn in begun.rounds if label in turn.joules]
    seconds = tuple(turn.seconds[label] for turn in begun.rounds)
    return Speed(seconds, held, statistics.median(used) if used else None)


def with_averages(method: Method, measured: Callable[[Method], float]) -> float:
    """What a step takes, with its share of an average of replicas where there are any: too rare for a few steps."""
    if method.kind != "averaged":
        return measured(method)
    never, always = measured(replace(method, every=_NEVER)), measured(_averaging(method))
    return never + (always - never) / method.every


def _averaging(method: Method) -> Method:
    """With an average after every step, where there are any: what that holds counts, however rare it is."""
    return replace(method, every=1) if method.kind == "averaged" else method


def work_of(task: Task, entrant: Entrant) -> float:
    """Multiply-accumulates of a training sample: forward, backward, local heads, and what is computed again."""
    shapes, costs = counted(override(task.config, dict(entrant.line.overrides)))
    again = sum(shape.macs for shape in shapes) if entrant.method.kind == "checkpointed" else 0
    return sum(costs) + again
