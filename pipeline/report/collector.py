"""Process 0's view of the run: shows and writes down what the stages report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.config.schema import TrainConfig
from pipeline.report.display import Display
from pipeline.report.records import EpochRecord, merge_epoch
from pipeline.report.run_folder import RunFolder
from pipeline.runtime.telemetry import Observer
from pipeline.transport.messages import StageEpoch, StageStatus

__all__ = ["Collector"]


@dataclass(frozen=True)
class Collector(Observer):
    """Joins the stages' parts of every epoch."""

    config: TrainConfig  # learning rates
    display: Display
    folder: RunFolder | None  # takes the epochs; None writes nothing
    records: list[EpochRecord] = field(default_factory=list)

    def status(self, stages: Sequence[StageStatus]) -> None:
        self.display.status(stages)

    def epoch(self, epoch: int, parts: Sequence[StageEpoch]) -> None:
        record = merge_epoch(epoch, self.config.learning_rate(epoch), parts)
        self.records.append(record)
        if self.folder is not None:
            self.folder.append(record)
        self.display.epoch(record)
