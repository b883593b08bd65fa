"""Process 0's view of the run: shows and writes down what the stages report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from pipeline.config.schema import TrainConfig
from pipeline.learning.packet import Packet
from pipeline.learning.stage import Trainable
from pipeline.report.attempt import attempt
from pipeline.report.display import Display
from pipeline.report.records import EpochRecord, merge_epoch
from pipeline.report.run_folder import RunFolder
from pipeline.runtime.saver import Saver
from pipeline.runtime.telemetry import Observer
from pipeline.transport.messages import StageEpoch, StageStatus

__all__ = ["Collector"]


@dataclass(frozen=True)
class Collector(Observer):
    """Joins the stages' parts of every epoch, and lets snapshots be saved.

    Metrics that cannot be written are told, and tried again later.
    """

    config: TrainConfig  # learning rates
    steps_per_epoch: int
    display: Display
    folder: RunFolder | None  # takes the epochs; None writes nothing
    records: list[EpochRecord] = field(default_factory=list)
    saver: Saver | None = None  # takes the snapshots

    def snapshot(self, packet: Packet, stages: Sequence[Trainable], seconds: float) -> None:
        if self.saver is not None:
            self.saver.take(packet.at, stages, seconds)

    def check(self) -> None:
        if self.saver is not None:
            self.saver.check()

    def status(self, stages: Sequence[StageStatus]) -> None:
        self.display.status(stages)

    def epoch(self, epoch: int, parts: Sequence[StageEpoch]) -> None:
        last = self.config.rate(epoch, epoch * self.steps_per_epoch - 1, self.steps_per_epoch)
        record = merge_epoch(epoch, last, parts)
        self.records.append(record)
        notes = [] if self.folder is None else attempt("metrics.jsonl", partial(self.folder.append, record))
        self.display.epoch(record)
        if record.test_error_percent is not None and math.isnan(record.test_error_percent):
            notes.append(f"epoch {epoch} has no test error: the outputs for the test data are not finite")
        for note in notes:
            self.display.note(note)
