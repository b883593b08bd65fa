"""Process 0's view of the run: shows and writes down what the stages report."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.schema import TrainConfig
from pipeline.report.display import Display
from pipeline.report.records import EpochRecord, merge_epoch
from pipeline.report.run_folder import RunFolder
from pipeline.runtime.telemetry import Observer
from pipeline.transport.messages import StageEpoch, StageStatus

__all__ = ["Collector"]


class Collector(Observer):
    """Joins the stages' parts of every epoch.

    Args:
        config: learning rates.
        display: shows states and epochs.
        folder: takes the epochs; None writes nothing.
    """

    def __init__(self, config: TrainConfig, display: Display, folder: RunFolder | None) -> None:
        self.config, self.display, self.folder = config, display, folder
        self.records: list[EpochRecord] = []

    def status(self, stages: Sequence[StageStatus]) -> None:
        """Show it."""
        self.display.status(stages)

    def epoch(self, epoch: int, parts: Sequence[StageEpoch]) -> None:
        """Write it down and show it."""
        record = merge_epoch(epoch, self.config.learning_rate(epoch), parts)
        self.records.append(record)
        if self.folder is not None:
            self.folder.append(record)
        self.display.epoch(record)
