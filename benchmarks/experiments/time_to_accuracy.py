"""Time to accuracy: local losses against everything that a user would pick instead, on the same cores, tuned alike.

Error is a matter of steps, and seconds of a step are measured apart: ways to train that compute the same share one
curve. Every line is tried with the same learning rates on nine tenths of the training samples and judged by the rest,
then trained with several seeds. All of it takes hours; what is done is kept in files, and the same command goes on.

    curves     tries and runs, one on each core
    speed      seconds of a step, memory and joules of every entrant, in turn: nothing else may run beside it
               (a round of everyone is kept, and gone on with by the same code on the same machine)
    emulated   seconds of a step on devices that sleep
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from benchmarks.harness.crew import cores
from benchmarks.harness.pictures import Curves
from benchmarks.harness.report import Provenance, Result, provenance
from benchmarks.race.curves import Curve
from benchmarks.race.emulated import emulate, keep_emulated, read_emulated
from benchmarks.race.entrants import entrants
from benchmarks.race.ledger import Job, Ledger
from benchmarks.race.lines import Line
from benchmarks.race.order import all_kept, all_lines, config_of, ready
from benchmarks.race.outcome import Found, curves_of, rows_of, targets_of
from benchmarks.race.speed import Begun, Speed, measure_all, work_of
from benchmarks.race.speed_files import keep_begun, keep_speeds, read_begun, read_speeds
from benchmarks.race.tasks import Task, tasks
from benchmarks.race.training import train_all
from pipeline.errors import DataError

__all__ = ["PARTS", "curves_missing", "run"]

PARTS = ("curves", "speed", "emulated")
_KEPT, _SPEED, _EMULATED = "time-to-accuracy", "speed.json", "emulated.json"
_ROUNDS = {True: 1, False: 5}


def run(quick: bool, data_dir: str, folder: Path, part: str | None = None) -> Result:
    """Do what is missing of the part, or of all, and tell all that is known.

    Args:
        quick: handwritten digits and minutes.
        data_dir: root in torchvision's layout.
        folder: of results; what is kept lies below it.
        part: one of `PARTS` alone.

    Raises DataError where what is kept cannot be read or is of other settings, or there is nothing to tell yet.
    """
    kept, found = folder / _KEPT, []
    for task in tasks(quick, data_dir):
        ledger = Ledger(kept, task)
        if part in (None, "curves"):
            train_all(task, ledger, cores(), _Teller(task, len(cores())))
        found.append(_measured(task, ledger, kept / task.name, quick, part))
    rows = [row for one in found for row in rows_of(one)]
    if not rows:
        raise DataError("no run of backprop is kept yet, so that nothing can be told; --part curves makes some")
    targets = [target for one in found for target in targets_of(one)]
    panels = {one.task.name: curves_of(one) for one in found}
    return Result(rows, targets, Curves("steps", "test error, %, mean of the seeds", panels))


def curves_missing(data_dir: str, folder: Path) -> bool:
    """Whether there is anything left to train. Raises DataError as `run`."""
    kept = folder / _KEPT
    return any(ready(task, all_kept(task, Ledger(kept, task).read), ()) for task in tasks(False, data_dir))


def _measured(task: Task, ledger: Ledger, folder: Path, quick: bool, part: str | None) -> Found:
    """What is kept of a task, after what the part asks for has been measured.

    Measured again only if it is asked for alone, or is incomplete, or, of seconds, has come from another machine.
    """
    known = all_lines(task, ledger.read)
    everyone, (speeds, timed) = entrants(task, known), read_speeds(folder / _SPEED, task, known)
    here = provenance()
    elsewhere = timed is not None and timed.machine != here.machine
    if part == "speed" or (part is None and (elsewhere or any(one.label not in speeds for one in everyone))):
        speeds, timed = _timed(task, known, folder / _SPEED, _ROUNDS[quick], here), here
    emulated = read_emulated(folder / _EMULATED, task, known)
    missing = {line.name for line in known if line.is_local} - {one.line for one in emulated}
    if part == "emulated" or (part is None and missing):
        here = provenance()
        emulated = emulate(task, known, _ROUNDS[quick])
        keep_emulated(folder / _EMULATED, task, known, emulated, here)
    works = {entrant.label: work_of(task, entrant) for entrant in everyone}
    return Found(task, {line: ledger.read(line) for line in known}, everyone, speeds, timed, works, emulated)


def _timed(task: Task, known: Sequence[Line], path: Path, rounds: int, here: Provenance) -> dict[str, Speed]:
    """Speeds of everyone, measured now, kept at `path`; rounds of a command that was stopped here are gone on with."""

    def keep(begun: Begun) -> None:
        keep_begun(path, task, known, begun, here)

    everyone = entrants(task, known)
    begun = read_begun(path, task, known, everyone, here)
    speeds = measure_all(task, everyone, rounds, begun, keep)
    keep_speeds(path, task, known, speeds, here)
    return speeds


class _Teller:
    """Says what has been trained, and how long the rest will take at the pace so far."""

    def __init__(self, task: Task, at_once: int) -> None:
        self._task, self._at_once = task, at_once
        self._console = Console(stderr=True)
        self._seconds, self._epochs = 0.0, 0

    def __call__(self, job: Job, curve: Curve, epochs_left: int) -> None:
        self._seconds += curve.seconds
        self._epochs += config_of(self._task, job).train.epochs
        left = timedelta(seconds=round(epochs_left * self._seconds / self._epochs / self._at_once))
        what = "try" if job.seed is None else f"seed {job.seed}"
        rates = f"lr {job.lr:g}" + (f", heads {job.head_lr:g}" if job.line.is_local else "")
        told = f"{job.line.name}, {what}, {rates}: {curve.errors[-1]:.2f} %; about {left} left of {self._task.name}"
        self._console.print(told, highlight=False, soft_wrap=True)
