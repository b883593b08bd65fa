"""A made-up run, told to displays, and what they write of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise

from rich.console import Console, RenderableType

from pipeline.learning.scores import BlockScore
from pipeline.report.display import Display, PlainDisplay
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.transport.messages import StagePlan, StageStatus, StageSummary

__all__ = ["CODE", "Run", "drawn", "made_up", "plain", "show", "terminal", "written"]

CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Run:
    """All that a display is told of a made-up run."""

    plan: RunPlan
    states: tuple[StageStatus, ...]
    record: EpochRecord
    summary: Summary

    @property
    def names(self) -> list[str]:
        return [name for stage in self.plan.stages for name in stage.names]


def made_up(blocks: int = 8, stages: int = 4, *, missing: bool = False) -> Run:
    """A run; `missing` leaves out or spoils whatever can be."""
    cuts = [round(index * blocks / stages) for index in range(stages + 1)]
    members = [tuple(range(a, b)) for a, b in pairwise(cuts)]
    names = [*(f"conv 512-{500 + index}, pool" for index in range(blocks - 1)), "output 1024-10"]
    plan = RunPlan(
        dataset="digits",
        model="vgg8b",
        loss="predsim",
        seed=1,
        epochs=12,
        steps_per_epoch=12,
        samples_per_epoch=1437,
        batch_size=128,
        processes=stages,
        transport="gloo",
        stages=tuple(
            StagePlan(i, "cuda:1" if i else "cpu", 2, m, tuple(names[b] for b in m), 890_000, 300, 1 / stages)
            for i, m in enumerate(members)
        ),
        notes=("a :smile: note with [bold]brackets[/bold]",),
    )
    odd = [math.nan, None, math.inf]
    losses = [odd[b % 3] if missing else 12.3456 / (b + 1) for b in range(blocks)]
    errors = [odd[b % 3] if missing else 80.0 / (b + 1) for b in range(blocks)]
    fraction = math.nan if missing else 0.9
    states = tuple(
        StageStatus(
            stage=index,
            phase="train",
            epoch=3,
            step=7,
            samples=0 if missing else 3000,
            seconds=math.nan if missing else 2.5,
            busy_fraction=fraction,
            wait_input_fraction=0.06,
            wait_output_fraction=0.03,
            blocks=tuple(BlockScore(b, losses[b], errors[b]) for b in m),
        )
        for index, m in enumerate(members)
    )
    tested = None if missing else tuple(errors)
    last = math.nan if missing else 4.32
    record = EpochRecord(3, 1.94, 1.25e-4, last, None if missing else 3.06, tuple(losses), tuple(errors), tested, ())
    summary = Summary(
        dataset="digits",
        model="vgg8b",
        loss="predsim",
        seed=1,
        epochs=12,
        steps=144,
        batch_size=128,
        processes=stages,
        stages=stages,
        threads=2,
        parameters=8_900_000,
        parameters_local_heads=640_000,
        train_error_percent=last,
        test_error_percent=last,
        best_test_error_percent=1.94,
        block_test_error_percent=tuple(errors),
        train_seconds=71.3,
        samples_per_second=2412.3,
        weights_sha256="ab" * 32,
        state_sha256="cd" * 32,
        stage=tuple(
            StageSummary(i, "cpu", 2, m, 1, fraction, 1.25, 12.5, 0 if missing else 412_000_000, 45_678_901_234)
            for i, m in enumerate(members)
        ),
    )
    return Run(plan, states, record, summary)


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(file=StringIO(), width=width, height=height, force_terminal=True, color_system="truecolor")


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def drawn(view: RenderableType, width: int = 80) -> list[str]:
    """The lines of a view, without colours."""
    console = Console(file=StringIO(), width=width)
    console.print(view)
    return [line.rstrip() for line in written(console).splitlines()]


def show(shown: Display, run: Run, folder: str | None = "runs/x") -> None:
    shown.start(run.plan)
    shown.status([])
    shown.status(run.states)
    shown.epoch(run.record)
    shown.note("half way")
    shown.finish(run.summary, folder, run.names)
    shown.close()
    shown.close()


def plain(run: Run, folder: str | None = "runs/x") -> list[str]:
    console = Console(file=StringIO(), width=80)
    show(PlainDisplay(console), run, folder)
    return written(console).splitlines()
