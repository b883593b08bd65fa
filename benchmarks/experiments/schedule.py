"""How busy 2 to 16 stages stay, ours and those of torch's pipeline schedules, alike, unlike and disturbed. Emulated.

The stages sleep instead of computing, so that all of them fit on few cores; processes, queues and messages are real.
Work is equal everywhere: a batch costs every stage the same seconds, a third of them for the forward. What a local
head costs on top is left out: where it adds a share h to the work of a stage, divide the ratios by 1 + h. Ours has no
microbatches: a stage works on one whole batch at a time, and holds its activations where a schedule holds those of
some microbatches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from benchmarks.contenders.torch_schedules import CHUNKS
from benchmarks.emulation.load import Load, Turn, Window, ideal_utilisation, summed
from benchmarks.emulation.ours import run_ours
from benchmarks.emulation.schedules import Scheduled
from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.figures import Figure, ratio, summarize
from benchmarks.harness.pictures import Curves
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Result, Row, Target, at_least

__all__ = ["OURS", "Contest", "Method", "Outcome", "compete", "contests", "judge", "run"]


@dataclass(frozen=True)
class Method:
    """Ours with a queue depth, or one of torch's schedules by its name."""

    schedule: str | None = None
    queue_depth: int = 4

    @property
    def label(self) -> str:
        """For tables."""
        return f"ours, queue depth {self.queue_depth}" if self.schedule is None else self.schedule


@dataclass(frozen=True)
class Contest:
    """Methods that take turns on the same load.

    Attributes:
        name: balanced, jitter, or one slow stage.
        load: what the batches cost.
        microbatches: of the schedules.
        methods: who takes part.
        window: batches that are measured in a turn.
        rounds: turns of every method.
    """

    name: str
    load: Load
    microbatches: int
    methods: tuple[Method, ...]
    window: Window
    rounds: int

    def label(self, method: Method) -> str:
        """Of a row."""
        return f"emulated, {self.load.stages} stages, {self.name}: {method.label}"


@dataclass(frozen=True)
class Outcome:
    """What the turns of one method came to, round by round."""

    rates: list[float]  # batches a second
    busy: list[float]  # percent
    of_slowest: list[float]  # percent of what the stage with most to do could deliver


_Outcomes = dict[Method, Outcome]

OURS, ONE_F_ONE_B = Method(), Method("1F1B")
_ALL = (OURS, *(Method(name) for name in CHUNKS))
_SOME = (OURS, ONE_F_ONE_B, Method("ZBVZeroBubble"))

_FULL = (
    # Seconds of a batch such that an action of a schedule lasts 7 ms at least, 15 ms without chunks.
    Contest("balanced", Load(2, 0.36), 4, _ALL, Window(2, 4), 5),
    Contest("balanced", Load(4, 0.72), 8, _ALL, Window(2, 4), 5),
    Contest("one stage 1.5x slower", Load(4, 0.36, slow_stage=2), 8, _SOME, Window(2, 4), 5),
    # The queues need some batches to fill; what a jitter costs shows over many.
    Contest("jitter", Load(4, 0.36, jitter=True), 8, (OURS, ONE_F_ONE_B), Window(12, 36), 5),
    Contest("balanced", Load(8, 0.96), 16, _ALL, Window(2, 3), 5),
    Contest("balanced", Load(16, 0.6), 32, (OURS,), Window(2, 4), 5),
)
_QUICK = (
    Contest("balanced", Load(4, 0.18), 8, _ALL, Window(1, 2), 3),
    Contest("one stage 1.5x slower", Load(4, 0.18, slow_stage=2), 8, (OURS, ONE_F_ONE_B), Window(1, 2), 3),
    Contest("jitter", Load(4, 0.12, jitter=True), 8, (OURS, ONE_F_ONE_B), Window(2, 8), 3),
    Contest("balanced", Load(8, 0.18), 16, (OURS, ONE_F_ONE_B), Window(1, 2), 3),
)


def contests(quick: bool) -> tuple[Contest, ...]:
    """Everything that is measured, by number of stages."""
    return _QUICK if quick else _FULL


def run(quick: bool) -> Result:
    """Let the methods take turns: 4 and 8 stages in quick form, 2 to 16 else."""
    chosen = contests(quick)
    found: dict[Contest, _Outcomes] = {}
    for stages in shown(sorted({contest.load.stages for contest in chosen}), "numbers of stages"):
        with Crew(stages) as crew:
            for contest in (c for c in chosen if c.load.stages == stages):
                found[contest] = judge(contest, crew.call(compete, contest))
    rows = [row for contest, outcomes in found.items() for row in _rows(contest, outcomes)]
    return Result(rows, _targets(found), _picture(found))


def compete(member: Member, contest: Contest) -> list[list[Turn]]:
    """What this process sees of a contest: in every round one turn of every method, after one for warming up."""
    load, window = contest.load, contest.window
    names = [method.schedule for method in contest.methods if method.schedule is not None]
    scheduled = {name: Scheduled(member, load, name, contest.microbatches) for name in names}

    def turn(method: Method, number: int, window: Window) -> Turn:
        dist.barrier()
        if method.schedule is None:
            return run_ours(member, load, method.queue_depth, number, window)
        return scheduled[method.schedule].run(number, window)

    for method in contest.methods:
        turn(method, 0, Window(1, 1))
    return [[turn(method, number, window) for method in contest.methods] for number in range(1, contest.rounds + 1)]


def judge(contest: Contest, seen: Sequence[Sequence[Sequence[Turn]]]) -> _Outcomes:
    """From what every process saw, by process, round and method, to what counts."""
    load, window = contest.load, contest.window
    outcomes = {}
    for position, method in enumerate(contest.methods):
        turns = [[process[number][position] for process in seen] for number in range(contest.rounds)]
        rates, busy = zip(*(summed(turn, window) for turn in turns), strict=True)
        limits = [load.slowest_rate(number, window) for number in range(1, contest.rounds + 1)]
        of_slowest = [100.0 * rate / limit for rate, limit in zip(rates, limits, strict=True)]
        outcomes[method] = Outcome(list(rates), list(busy), of_slowest)
    return outcomes


def _rows(contest: Contest, outcomes: _Outcomes) -> list[Row]:
    return [
        Row(contest.label(method), _settings(contest, method), _figures(contest, outcomes, method))
        for method in outcomes
    ]


def _settings(contest: Contest, method: Method) -> dict[str, Any]:
    ours = method.schedule is None
    return {
        "emulated": True,
        "scenario": contest.name,
        "stages": contest.load.stages,
        "method": method.label,
        "microbatches": 1 if ours else contest.microbatches,
        "queue_depth": method.queue_depth if ours else None,
        "batch_seconds": contest.load.batch_s,
        "batches_per_turn": contest.window.count,
        "ideal_utilisation_percent": _ideal_percent(contest, method),
    }


def _ideal_percent(contest: Contest, method: Method) -> float | None:
    """Only where all batches and stages are alike is there a formula."""
    if contest.name != "balanced":
        return None
    ideal = ideal_utilisation(method.schedule, contest.load.stages, contest.microbatches)
    return None if ideal is None else 100.0 * ideal


def _figures(contest: Contest, outcomes: _Outcomes, method: Method) -> dict[str, Figure]:
    mine = outcomes[method]
    figures = {
        "batches_per_second": summarize(mine.rates),
        "utilisation_percent": summarize(mine.busy),
        "of_slowest_stage_percent": summarize(mine.of_slowest),
    }
    ideal = _ideal_percent(contest, method)
    if ideal is not None:
        figures["of_ideal_percent"] = summarize([100.0 * percent / ideal for percent in mine.of_slowest])
    if ONE_F_ONE_B in outcomes:
        figures["ratio_to_1f1b"] = ratio(mine.rates, outcomes[ONE_F_ONE_B].rates)
    return figures


def _targets(found: dict[Contest, _Outcomes]) -> list[Target]:
    of = {(contest.load.stages, contest.name): (contest, outcomes) for contest, outcomes in found.items()}
    contest, four = of[4, "balanced"]
    _, eight = of[8, "balanced"]
    _, jitter = of[4, "jitter"]
    best = max((m for m in four if m.label.endswith("ZeroBubble")), key=lambda m: summarize(four[m].rates).median)
    ideal = ideal_utilisation("1F1B", 4, contest.microbatches)
    assert ideal is not None
    of_ideal = summarize([rate * contest.load.batch_s / ideal for rate in four[OURS].rates])
    name = "4. emulated, {} stages: {}".format
    return [
        at_least(name(4, "percent busy"), 97, summarize(four[OURS].busy)),
        at_least(name(8, "percent busy"), 95, summarize(eight[OURS].busy)),
        at_least(name(4, "throughput to the ideal of 1F1B"), 1.32, of_ideal),
        at_least(name(4, "throughput to 1F1B"), 1.35, ratio(four[OURS].rates, four[ONE_F_ONE_B].rates)),
        at_least(name(4, f"throughput to {best.label}"), 1.0, ratio(four[OURS].rates, four[best].rates)),
        at_least(name(4, "throughput to 1F1B, jitter"), 1.4, ratio(jitter[OURS].rates, jitter[ONE_F_ONE_B].rates)),
    ]


def _picture(found: dict[Contest, _Outcomes]) -> Curves:
    """Equal stages: utilisation as measured and as it would be if messages took no time."""
    measured: dict[str, list[tuple[float, float]]] = {}
    ideals: dict[str, list[tuple[float, float]]] = {}
    for contest, outcomes in found.items():
        for method, outcome in outcomes.items():
            ideal = _ideal_percent(contest, method)
            if ideal is not None:
                measured.setdefault(method.label, []).append((contest.load.stages, summarize(outcome.busy).median))
                ideals.setdefault(method.label, []).append((contest.load.stages, ideal))
    panels = {"emulated stages, measured": measured, "ideal, messages take no time": ideals}
    return Curves("emulated stages", "utilisation in percent", panels)
