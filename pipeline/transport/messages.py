"""What stages tell process 0, as plain data, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.learning.scores import BlockScore

__all__ = ["StageEpoch", "StagePlan", "StageStatus", "StageSummary"]


@dataclass(frozen=True)
class StagePlan:
    """A stage as laid out at start."""

    rank: int  # process that runs it
    device: str
    threads: int
    blocks: tuple[int, ...]
    names: tuple[str, ...]  # one per block, such as "conv 3-32"
    parameters: int  # of the inference network
    parameters_local_heads: int
    cost_share: float  # fraction of the network's cost, all stages add up to 1


@dataclass(frozen=True)
class StageStatus:
    """Where a stage is right now; published about twice a second."""

    stage: int
    phase: str  # "train", "evaluate" or "done"
    epoch: int  # from 1
    step: int  # batches of this epoch done
    samples: int  # trained since start
    seconds: float  # since training started
    busy_fraction: float
    wait_input_fraction: float
    wait_output_fraction: float
    blocks: tuple[BlockScore, ...]


@dataclass(frozen=True)
class StageEpoch:
    """One stage's part of an epoch."""

    stage: int
    seconds: float  # training time on this stage's clock, evaluation excluded
    busy_fraction: float
    wait_input_s: float
    wait_output_s: float
    train: tuple[BlockScore, ...]
    test: tuple[BlockScore, ...] | None  # None where the epoch was not evaluated


@dataclass(frozen=True)
class StageSummary:
    """One stage over the whole run."""

    rank: int
    device: str
    threads: int
    blocks: tuple[int, ...]
    parameters: int
    busy_fraction: float
    wait_input_s: float
    wait_output_s: float
    peak_memory_bytes: int
    bytes_sent: int
