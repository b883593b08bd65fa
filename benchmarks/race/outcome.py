"""What the race came to: rows, targets and pictures of curves and speeds. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from benchmarks.harness.figures import Difference, Figure, paired, ratio, summarize
from benchmarks.harness.report import Provenance, Row, Target, at_most
from benchmarks.race.curves import Curve
from benchmarks.race.emulated import Emulated
from benchmarks.race.entrants import Entrant
from benchmarks.race.ledger import Kept, Trained
from benchmarks.race.lines import BACKPROP, REPLICAS, Line
from benchmarks.race.speed import Speed
from benchmarks.race.tasks import Task

__all__ = [
    "SHARES",
    "Found",
    "curves_of",
    "final_errors",
    "rows_of",
    "steps_to",
    "targets_of",
    "wanted_errors",
]

K = TypeVar("K")

SHARES = (60, 80, 90)
"""Percent of backprop's run; the errors that it has there are what everybody's steps are counted to."""

_MAIN = 80


@dataclass(frozen=True)
class Found:
    """All that is known of a task."""

    task: Task
    kept: Mapping[Line, Kept]
    entrants: Sequence[Entrant]
    speeds: Mapping[str, Speed]
    timed: Provenance | None  # where and with what the speeds were measured
    works: Mapping[str, float]
    emulated: Sequence[Emulated]

    def runs(self, line: Line) -> Sequence[Trained]:
        """In order of seeds."""
        return self.kept[line].runs

    def gap(self, line: Line) -> Difference | None:
        """Final errors minus backprop's, seed by seed."""
        return paired(final_errors(self.runs(line)), final_errors(self.runs(BACKPROP)))


def final_errors(runs: Sequence[Trained]) -> dict[int, float]:
    """By seed, without tries."""
    return {run.seed: run.error for run in runs if run.seed is not None}


def wanted_errors(runs: Sequence[Trained]) -> dict[int, float]:
    """By share of the run in percent: the error at the look nearest to it, mean of the seeds.

    Not what a seed stays below from there on: one look at a high rate, off by ten points, would be everybody's mark.
    """
    looks = len(runs[0].curve.errors)
    at = {share: max(1, round(share / 100 * looks)) - 1 for share in SHARES}
    return {share: statistics.fmean(run.curve.errors[look] for run in runs) for share, look in at.items()}


def steps_to(curve: Curve, wanted: float) -> int | None:
    """Steps until the first look from which on the error is no greater; None where it ends above.

    At high rates errors jump from look to look, so that once below says little.
    """
    reached = None
    for step, error in zip(curve.steps[::-1], curve.errors[::-1], strict=True):
        if error > wanted:
            break
        reached = step
    return reached


def _all_steps(runs: Sequence[Trained], wanted: float) -> dict[int, float] | None:
    """By seed, or None if one of them does not reach the error."""
    steps = {run.seed: steps_to(run.curve, wanted) for run in runs if run.seed is not None}
    reached = {seed: float(one) for seed, one in steps.items() if one is not None}
    return reached if reached and len(reached) == len(steps) else None


def rows_of(found: Found) -> list[Row]:
    """One of each entrant that has been trained, and one of each emulated one."""
    backprop = found.runs(BACKPROP)
    if not backprop:
        return []
    wanted = wanted_errors(backprop)
    rows = [_row(found, entrant, wanted) for entrant in found.entrants if found.runs(entrant.line)]
    return [*rows, *(row for one in found.emulated if (row := _emulated_row(found, one, wanted)) is not None)]


def _row(found: Found, entrant: Entrant, wanted: Mapping[int, float]) -> Row:
    runs, speed = found.runs(entrant.line), found.speeds.get(entrant.label)
    best = found.kept[entrant.line].best()
    settings: dict[str, object] = {
        "task": found.task.name,
        "line": entrant.line.name,
        "processes": entrant.method.processes,
        "seeds": len(runs),
        "lr": best.lr,
        "head_lr": best.head_lr if entrant.line.is_local else None,
        "held_out_error_percent": best.error,
        "million_multiply_accumulates": found.works[entrant.label] / 1e6,
        "peak_megabytes": None if speed is None else speed.megabytes,
        "joules_a_step": None if speed is None else speed.joules,
        "wanted_errors": {str(share): error for share, error in wanted.items()},
    }
    gap = found.gap(entrant.line)
    if gap is not None and entrant.line != BACKPROP:
        settings |= {"minus_backprop": gap.mean, "standard_error": gap.standard_error}
    figures = {"test_error_percent": summarize([run.error for run in runs])}
    if speed is not None:
        figures["step_seconds"] = summarize(speed.seconds)
        settings["timed"] = None if found.timed is None else asdict(found.timed)
    for share, error in wanted.items():
        steps = _all_steps(runs, error)
        if steps is None:
            continue
        figures[f"steps_to_{share}"] = summarize(list(steps.values()))
        if speed is not None:
            figures[f"seconds_to_{share}"] = summarize([*_times(steps, speed.seconds).values()])
    return Row(f"{found.task.name}: {entrant.label}", settings, figures)


def _emulated_row(found: Found, one: Emulated, wanted: Mapping[int, float]) -> Row | None:
    """Time to backprop's error, over that of backprop on one device; None for a line that has not been trained."""
    runs = next((found.runs(line) for line in found.kept if line.name == one.line), ())
    if not runs:
        return None
    figures = {"steps_of_one_device": summarize(one.steps)}
    steps, reference = _all_steps(runs, wanted[_MAIN]), _all_steps(found.runs(BACKPROP), wanted[_MAIN])
    if steps is not None and reference is not None:
        whole = statistics.fmean(reference.values())
        figures["time_of_one_device"] = summarize([time / whole for time in _times(steps, one.steps).values()])
    settings = {"task": found.task.name, "line": one.line, "emulated": True, "devices": one.devices}
    return Row(f"{found.task.name}: emulated, {one.devices} devices: {one.label}", settings, figures)


def targets_of(found: Found) -> list[Target]:
    """What was to be reached, of what is known."""
    if not found.runs(BACKPROP):
        return []
    return [*_of_errors(found), *_of_times(found), *_of_blocks(found)]


def _chosen(found: Found, *cuts: str) -> Line | None:
    """Of the lines that are cut in some ways, that with the best try: held-out samples choose, not the test set."""
    known = {line: kept for line, kept in found.kept.items() if line.name.startswith(cuts) and kept.runs}
    return min(known, key=lambda line: known[line].best().error, default=None)


def _of_errors(found: Found) -> list[Target]:
    """The chosen head's error after equal epochs against backprop's, wherever the cuts are."""
    targets = []
    for segments, most in ((2, 0.3), (4, 1.0)):
        line = _chosen(found, *(f"{segments}{where} segments" for where in ("", " early", " late")))
        gap = None if line is None else found.gap(line)
        if line is not None and gap is not None:
            name = f"1. {found.task.name}: {line.name}: test error minus backprop's, points ± {gap.standard_error:.2f}"
            targets.append(at_most(name, most, summarize([gap.mean])))
    return targets


def _of_times(found: Found) -> list[Target]:
    """A pipeline of two segments with the chosen head, to the error of backprop at 80 % of its run.

    Of several cuts that whose steps are the shortest: there the two processes are equally busy.
    """
    line = _chosen(found, "2 segments")
    if line is None:
        return []
    cuts = [e for e in found.entrants if e.method.processes > 1 and _is_cut_of(e.line, line) and found.runs(e.line)]
    ours = min(cuts, key=lambda entrant: _pace(found, entrant), default=None)
    if ours is None:
        return []
    taken = _seconds(found, ours)
    times = {entrant: seconds for entrant in found.entrants if (seconds := _seconds(found, entrant)) is not None}
    opponents = (
        (
            f"the best pipelined backprop{_of_those_timed(found)}",
            0.75,
            [t for e, t in times.items() if e.is_pipelined_backprop],
        ),
        ("DDP", 0.9, [t for e, t in times.items() if e.line == REPLICAS]),
        ("backprop in one process", 1.0, [t for e, t in times.items() if e.method.kind == "backprop"]),
    )
    told = f"2. {found.task.name}: time to {_mark(found)}, {ours.label}, over "
    targets = []
    for name, most, against in opponents:
        if not against:
            continue
        if taken is None:
            targets.append(Target(told + name, f"at most {most:g}", math.inf, False))
        else:
            best = min(against, key=lambda times: statistics.median(times.values()))
            targets.append(at_most(told + name, most, _over(taken, best)))
    return targets


def _is_cut_of(one: Line, line: Line) -> bool:
    """Whether it has as many segments, with the same head."""
    heads = (tuple(dict(each.overrides).get(name) for name in ("classifier", "loss")) for each in (one, line))
    return one.segments == line.segments and len(set(heads)) == 1


def _pace(found: Found, entrant: Entrant) -> float:
    """Seconds of a step; endless where it is not timed."""
    speed = found.speeds.get(entrant.label)
    return math.inf if speed is None else statistics.median(speed.seconds)


def _of_those_timed(found: Found) -> str:
    """How many schedules the best one is the best of; nothing where all that have been trained are timed."""
    labels = [e.label for e in found.entrants if e.is_pipelined_backprop and found.runs(e.line)]
    timed = sum(label in found.speeds for label in labels)
    return "" if timed == len(labels) else f" ({timed} of {len(labels)} timed)"


def _of_blocks(found: Found) -> list[Target]:
    """Every block alone with the head that is the least work: steps, and seconds in one process."""
    blocks = [e for e in found.entrants if e.line.name.startswith("block") and found.runs(e.line)]
    if not blocks:
        return []
    line = min(blocks, key=lambda entrant: found.works[entrant.label]).line
    wanted = wanted_errors(found.runs(BACKPROP))[_MAIN]
    steps, reference = (_all_steps(found.runs(one), wanted) for one in (line, BACKPROP))
    told = f"3. {found.task.name}: {line.name}: {{}} to {_mark(found)}, over {{}}".format
    if steps is None or reference is None:
        return [Target(told("steps", "backprop's"), "at most 1.25", math.inf, False)]
    targets = [at_most(told("steps", "backprop's"), 1.25, _over(steps, reference))]
    alone = [e for e in found.entrants if e.method.processes == 1 and e.method.kind in ("ours", "backprop")]
    ours, theirs = (
        next((t for e in alone if e.line == one and (t := _seconds(found, e)) is not None), None)
        for one in (line, BACKPROP)
    )
    if ours is not None and theirs is not None:
        targets.append(at_most(told("seconds", "one process of backprop"), 0.9, _over(ours, theirs)))
    return targets


def _mark(found: Found) -> str:
    error = wanted_errors(found.runs(BACKPROP))[_MAIN]
    return f"the {error:.2f} % that backprop has after {_MAIN} % of its run"


def _times(steps: Mapping[int, float], paces: Sequence[float]) -> dict[tuple[int, int], float]:
    """Of so many steps of each seed at the pace of every round, by seed and round: both have their spread."""
    return {(seed, turn): count * pace for seed, count in steps.items() for turn, pace in enumerate(paces)}


def _seconds(found: Found, entrant: Entrant) -> dict[tuple[int, int], float] | None:
    """To the error of backprop at 80 % of its run, as `_times`; None where a seed does not reach it, or untimed."""
    speed = found.speeds.get(entrant.label)
    steps = _all_steps(found.runs(entrant.line), wanted_errors(found.runs(BACKPROP))[_MAIN])
    if speed is None or steps is None:
        return None
    return _times(steps, speed.seconds)


def _over(values: Mapping[K, float], references: Mapping[K, float]) -> Figure:
    """Over those of the same seeds, and rounds, one by one; the ratio of the means where fewer than two are common."""
    common = [key for key in values if key in references]
    if len(common) >= 2:
        return ratio([values[key] for key in common], [references[key] for key in common])
    return summarize([statistics.fmean(values.values()) / statistics.fmean(references.values())])


def curves_of(found: Found) -> dict[str, list[tuple[float, float]]]:
    """By line: points (steps, mean error of all seeds)."""
    curves = {}
    for line in found.kept:
        runs = found.runs(line)
        if runs:
            errors = zip(*(run.curve.errors for run in runs), strict=True)
            curves[line.name] = [
                (float(step), statistics.fmean(error)) for step, error in zip(runs[0].curve.steps, errors, strict=True)
            ]
    return curves
