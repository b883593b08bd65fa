"""What is measured of a run: live status, epoch records, the summary. Plain data and pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.transport.messages import StageEpoch, StagePlan, StageSummary

__all__ = ["EpochRecord", "RunPlan", "Summary", "merge_epoch"]


@dataclass(frozen=True)
class RunPlan:
    """All a display needs before training starts."""

    dataset: str
    model: str
    loss: str
    seed: int
    epochs: int
    steps_per_epoch: int
    samples_per_epoch: int
    batch_size: int
    processes: int
    transport: str  # such as "gloo", "nccl", "in process"
    stages: tuple[StagePlan, ...]
    samples_before: int = 0  # that a run which goes on has trained before
    notes: tuple[str, ...] = ()  # said at start: of the data, and what the promise of exactness does not cover


@dataclass(frozen=True)
class EpochRecord:
    """One line of metrics.jsonl."""

    epoch: int
    seconds: float
    lr: float
    train_error_percent: float  # running, dropout on
    test_error_percent: float | None  # nan where the network's outputs were not finite
    block_loss: tuple[float | None, ...]
    block_train_error_percent: tuple[float | None, ...]
    block_test_error_percent: tuple[float | None, ...] | None
    stage: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What summary.json holds."""

    schema: int = 1
    dataset: str
    model: str
    loss: str
    seed: int
    epochs: int
    steps: int
    batch_size: int
    processes: int
    stages: int
    threads: int
    parameters: int
    parameters_local_heads: int
    train_error_percent: float
    test_error_percent: float
    best_test_error_percent: float
    block_test_error_percent: tuple[float | None, ...]
    train_seconds: float
    samples_per_second: float
    weights_sha256: str
    state_sha256: str
    stage: tuple[StageSummary, ...]
    versions: dict[str, str] = field(default_factory=dict)


def merge_epoch(epoch: int, lr: float, parts: Sequence[StageEpoch]) -> EpochRecord:
    """Join the stages' parts of one epoch; the last stage owns the output layer and the clock."""
    parts = sorted(parts, key=lambda part: part.stage)
    train = [score for part in parts for score in part.train]
    test = None if parts[-1].test is None else [score for part in parts for score in part.test or ()]
    assert train[-1].error_percent is not None, "the output layer has scores, and its losses were finite"
    keys = ("stage", "busy_fraction", "wait_input_s", "wait_output_s")
    return EpochRecord(
        epoch=epoch,
        seconds=parts[-1].seconds,
        lr=lr,
        train_error_percent=train[-1].error_percent,
        test_error_percent=None if test is None else _number(test[-1].error_percent),
        block_loss=tuple(score.loss for score in train),
        block_train_error_percent=tuple(score.error_percent for score in train),
        block_test_error_percent=None if test is None else tuple(score.error_percent for score in test),
        stage=tuple({key: getattr(part, key) for key in keys} for part in parts),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
