"""Made-up records of a run, for the tests of displays and pictures."""

from __future__ import annotations

import itertools

from pipeline.metrics import (
    BlockScore,
    EpochRecord,
    RunPlan,
    StagePlan,
    StageStatus,
    StageSummary,
    Summary,
)

__all__ = ["epoch", "names", "plan", "status", "summary"]


def names(blocks: int) -> list[str]:
    return [f"conv {2**i}-{2 ** (i + 1)}" for i in range(blocks - 1)] + ["output 64-10"]


def _members(stages: int, blocks: int) -> list[tuple[int, ...]]:
    cuts = [blocks * i // stages for i in range(stages + 1)]
    return [tuple(range(a, b)) for a, b in itertools.pairwise(cuts)]


def plan(stages: int = 2, blocks: int = 5) -> RunPlan:
    made = tuple(
        StagePlan(i, "cpu", 1, own, tuple(names(blocks)[b] for b in own), 1_000_000, 2_000_000, 1 / stages)
        for i, own in enumerate(_members(stages, blocks))
    )
    return RunPlan("cifar10", "vgg8b", "predsim", 1, 3, 10, 1280, 128, stages, "gloo", made, ("mind the gap",))


def status(stages: int = 2, blocks: int = 5, *, samples: int = 640, loss: float | None = 0.5) -> list[StageStatus]:
    return [
        StageStatus(
            stage=i,
            phase="train",
            epoch=1,
            step=5,
            samples=samples,
            seconds=2.0,
            busy_fraction=0.8,
            wait_input_fraction=0.15,
            wait_output_fraction=0.05,
            blocks=tuple(BlockScore(b, loss, None if b == 0 else 12.5) for b in own),
        )
        for i, own in enumerate(_members(stages, blocks))
    ]


def epoch(number: int = 1, blocks: int = 5, *, test: float | None = 7.5) -> EpochRecord:
    errors = (None, *(10.0 - i for i in range(blocks - 1)))
    return EpochRecord(
        epoch=number,
        seconds=4.0,
        lr=5e-4,
        train_error_percent=20.0 / number,
        test_error_percent=test,
        block_loss=(0.5,) * blocks,
        block_train_error_percent=errors,
        block_test_error_percent=None if test is None else errors,
        stage=(),
    )


def summary(stages: int = 2, blocks: int = 5) -> Summary:
    return Summary(
        dataset="cifar10",
        model="vgg8b",
        loss="predsim",
        seed=1,
        epochs=3,
        steps=30,
        batch_size=128,
        processes=stages,
        stages=stages,
        threads=1,
        parameters=8_900_000,
        parameters_local_heads=9_590_000,
        train_error_percent=9.0,
        test_error_percent=7.5,
        best_test_error_percent=7.25,
        block_test_error_percent=(None, *(10.0 - i for i in range(blocks - 1))),
        train_seconds=12.0,
        samples_per_second=320.0,
        weights_sha256="0" * 64,
        state_sha256="abcd" * 16,
        stage=tuple(
            StageSummary(i, "cpu", own, 4_450_000, 0.8, 1.0, 0.5, 10**8, 10**6)
            for i, own in enumerate(_members(stages, blocks))
        ),
    )
