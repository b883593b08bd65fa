"""Process 0's view of the run: gathers what the stages report, shows it and writes it down, in a thread of its own."""

from __future__ import annotations

import threading

from pipeline.config.schema import TrainConfig
from pipeline.report.display import Display
from pipeline.report.records import EpochRecord, merge_epoch
from pipeline.report.run_folder import RunFolder
from pipeline.transport.control import Control, Watch
from pipeline.transport.messages import stage_epoch_from, stage_status_from

__all__ = ["Monitor"]

_REFRESH_S = 0.3


class Monitor:
    """Collects epoch reports and states of `stages` stages until every epoch is complete.

    Args:
        control: where the stages publish.
        stages: number of stages.
        config: epochs and learning rates.
        display: shows states and epochs.
        folder: takes the epochs; None writes nothing.
    """

    def __init__(
        self, control: Control, stages: int, config: TrainConfig, display: Display, folder: RunFolder | None
    ) -> None:
        self.control, self.stages, self.config = control, stages, config
        self.display, self.folder = display, folder
        self.records: list[EpochRecord] = []
        self._stop = threading.Event()
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def finish(self) -> list[EpochRecord]:
        """Wait for the last epoch's report of every stage; returns all epochs."""
        watches = [Watch(self.control, rank) for rank in range(self.control.world_size)]
        while self._thread.is_alive():
            self._thread.join(_REFRESH_S)
            for watch in watches:
                watch.check()
        if self._broken is not None:
            raise self._broken
        return self.records

    def cancel(self) -> None:
        """Stop watching after a failure."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        try:
            while len(self.records) < self.config.epochs and not self._stop.is_set():
                self._gather()
                self._stop.wait(_REFRESH_S)
        except BaseException as error:  # raised again in the main thread
            self._broken = error

    def _gather(self) -> None:
        states = [self.control.peek(f"status/{stage}") for stage in range(self.stages)]
        self.display.status([stage_status_from(state) for state in states if state is not None])
        while len(self.records) < self.config.epochs:
            epoch = len(self.records) + 1
            parts = [self.control.peek(f"epoch/{epoch}/{stage}") for stage in range(self.stages)]
            if any(part is None for part in parts):
                return
            lr = self.config.learning_rate(epoch)
            record = merge_epoch(epoch, lr, [stage_epoch_from(part) for part in parts])
            self.records.append(record)
            if self.folder is not None:
                self.folder.append(record)
            self.display.epoch(record)
