"""One plan's training: a process that is started, watched and ended here, and what its run folder tells then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.report import Provenance
from benchmarks.harness.settings import RESOLVED
from benchmarks.paper.results import Run
from benchmarks.paper.rows import Plan, changes
from pipeline.config.toml import read_toml, to_toml
from pipeline.errors import PipelineError, first_line
from pipeline.text import brief

__all__ = ["Progress", "Stopped", "TrainingFailed", "harvest", "train"]

_LAUNCH = Path(__file__).resolve().parents[2] / "launch"
_POLL_S = 0.5
_END_S = 180.0  # for a checkpoint, once the training is to stop


class TrainingFailed(PipelineError):
    """A training ended before its last epoch; the message is its own."""


class Stopped(PipelineError):
    """The runner was asked to end; the training has saved where it was."""


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epochs: that have ended, those of earlier sittings with them.
        epoch_seconds: what one takes; None before the first has ended.
        test_error_percent: after the last evaluation.
    """

    epochs: int
    epoch_seconds: float | None = None
    test_error_percent: float | None = None


def train(plan: Plan, folder: Path, processes: int, watch: Callable[[Progress], None]) -> None:
    """Train a plan in its run folder, from its newest checkpoint if there is one, until it has ended.

    `watch` is told how far it is about twice a second. SIGINT and SIGTERM end it with a checkpoint.

    Raises:
        TrainingFailed: with the training's own words.
        Stopped: by a signal.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    asked, log = folder.with_name(f"{folder.name}.toml"), folder.with_name(f"{folder.name}.log")
    asked.write_text(to_toml(plan.config), encoding="utf-8")
    with log.open("wb") as written, _signals() as signals:
        process = subprocess.Popen(
            _command(asked, folder, processes),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's interrupt comes by way of this process, once
        )
        try:
            status = _wait(process, folder, signals, watch)
        finally:
            _end(process)
    if signals:
        raise Stopped(f"{plan.row}, seed {plan.seed}: stopped; the same command goes on from there")
    if status:
        raise TrainingFailed(_reason(log, status))


def _command(asked: Path, folder: Path, processes: int) -> list[str]:
    flags = ["--config", str(asked), "--output", str(folder), "--resume", "auto", "--quiet"]
    if processes > 1:
        return [sys.executable, str(_LAUNCH / "local.py"), "--processes", str(processes), *flags]
    return [sys.executable, str(_LAUNCH / "pipeline_train.py"), *flags]


@contextlib.contextmanager
def _signals() -> Any:
    """The signals that came meanwhile, instead of what they do otherwise."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    try:
        yield came
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _wait(
    process: subprocess.Popen[bytes], folder: Path, signals: Sequence[int], watch: Callable[[Progress], None]
) -> int:
    seen = _Seen(folder / "metrics.jsonl")
    while process.poll() is None and not signals:
        watch(seen.progress())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
    return process.returncode or 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to save and leave, and see that it does."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _reason(log: Path, status: int) -> str:
    """The line of ours in what a training printed, else its last one."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return told[-1] if told else brief((lines or [f"it ended with status {status}"])[-1])


class _Seen:
    """What a run folder's metrics tell while they grow; epochs that end under this watch are timed by it."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, -1
        self._told = Progress(0)
        self._first: tuple[int, float] | None = None  # epochs, and when

    def progress(self) -> Progress:
        with contextlib.suppress(OSError, LookupError, TypeError):  # what is damaged is told when it is harvested
            if self._path.stat().st_size != self._size:
                self._size = self._path.stat().st_size
                self._told = self._read()
        return self._told

    def _read(self) -> Progress:
        records = _records(self._path)
        if not records:
            return Progress(0)
        count, now = len(records), time.monotonic()
        if self._first is None or count < self._first[0]:
            self._first = count, now
        timed, since = count - self._first[0], now - self._first[1]
        errors = [one["test_error_percent"] for one in records if one["test_error_percent"] is not None]
        return Progress(count, since / timed if timed else records[-1]["seconds"], errors[-1] if errors else None)


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def harvest(plan: Plan, folder: Path, command: str, origin: Provenance) -> Run | None:
    """What the run folder of a plan tells of a training that has ended; None where none has.

    Args:
        plan: that was trained.
        folder: of the run.
        command: that the run is kept with.
        origin: where and with what it was trained, likewise.

    Raises TrainingFailed where it is damaged, or holds another run than the plan's.
    """
    if not (folder / "summary.json").exists():
        return None
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        found = _other(plan, folder, summary)
        run = None if found else _run(plan, folder, summary, command, origin)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise TrainingFailed(f"{folder} is damaged ({brief(first_line(error))}); remove it") from error
    if found:
        raise TrainingFailed(f"{folder} holds another run ({brief(str(found))}); remove it")
    return run


def _other(plan: Plan, folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a run folder holds that is not as planned."""
    config = read_toml(folder / "config.toml")
    found = {**changes(plan.config, config), "epochs": summary["epochs"], "seed": config.train.seed}
    wanted = {"epochs": plan.epochs, "seed": plan.seed}
    return {name: value for name, value in found.items() if wanted.get(name) != value and name not in RESOLVED}


def _run(plan: Plan, folder: Path, summary: Mapping[str, Any], command: str, origin: Provenance) -> Run:
    records = _records(folder / "metrics.jsonl")
    return Run(
        seed=plan.seed,
        **{name: summary[name] for name in _SUMMED},
        threads=[stage["threads"] for stage in summary["stage"]],
        device=summary["stage"][0]["device"],
        precision=plan.config.train.precision,
        train_curve=[round(one["train_error_percent"], 4) for one in records],
        test_curve=[one["test_error_percent"] for one in records],
        command=command,
        machine=origin.machine,
        versions=origin.versions,
        commit=origin.commit,
    )


_SUMMED = (
    *("test_error_percent", "best_test_error_percent", "train_error_percent", "block_test_error_percent"),
    *("train_seconds", "processes", "state_sha256"),
)
