"""A run in one process: opened, run from any position, aborted; then another session may be opened.

    with Session(stages, topology, config, control, links) as session:    meet the neighbours, open the queues
        session.run(feed, start)                                          until the stop packet has gone through

Left well, every queue has given its threads and its link back. Left by an error, or aborted by another thread, it has
too, and whoever waits for this process knows why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self

from pipeline.config.schema import TrainConfig
from pipeline.errors import PipelineError
from pipeline.learning.packet import Packet, Position
from pipeline.learning.stage import Trainable
from pipeline.runtime.channels import Links, connect
from pipeline.runtime.failures import failures_told
from pipeline.runtime.policy import Ports, locked, unlocked
from pipeline.runtime.requests import Requests
from pipeline.runtime.stopwatch import Stopwatch
from pipeline.runtime.telemetry import Gatherer, Observer, Telemetry
from pipeline.runtime.topology import Topology
from pipeline.runtime.worker import Worker
from pipeline.spans import Recorder
from pipeline.transport.control import Control

__all__ = ["Session", "Timetable"]


class Timetable(Protocol):
    """What the first stage is fed; `Feed` is the one of training."""

    def packets(self, start: Position) -> Iterator[Packet]:
        """Everything from a position to the stop packet."""


@dataclass(eq=False)
class Session:
    """One run in one process.

    Attributes:
        ports: once it is open.
        watch, telemetry: what has been measured so far.
    """

    stages: Sequence[Trainable]  # that this process runs, in order
    topology: Topology  # of all stages
    config: TrainConfig  # how packets travel, and whether the stages take turns
    control: Control
    links: Links  # makes the transport; not used in one process
    observer: Observer | None = None  # without one nothing is gathered
    recorder: Recorder | None = None  # takes the spans
    requests: Requests = field(default_factory=Requests)  # from outside; those of all processes reach process 0

    def __post_init__(self) -> None:
        self.watch = Stopwatch([stage.index for stage in self.stages], self.recorder or Recorder(enabled=False))
        self.telemetry = Telemetry(self.stages, self.watch, self.control)
        self.ports: Ports | None = None
        self._gatherer: Gatherer | None = None

    def __enter__(self) -> Self:
        self.control.renew()
        with failures_told(self.control):
            recorder = self.watch.recorder
            self.ports = connect(self.stages, self.topology, self.config, self.control, self.links, recorder)
        return self

    def run(self, feed: Timetable | None, start: Position = Position(), epoch_s: float = 0.0) -> None:  # noqa: B008
        """Work until the stop packet has gone through; raises what `pipeline.train` raises under way.

        Only the process of the first stage gives a feed. The stages have the state of a snapshot at `start`, and
        its epoch has been trained for `epoch_s`.
        """
        with failures_told(self.control):
            worker = self.begin(feed, start, epoch_s)
            while worker.step():
                if self.control.rank > 0:
                    self.requests.tell(self.control)
            self.finish()

    def begin(self, feed: Timetable | None, start: Position = Position(), epoch_s: float = 0.0) -> Worker:  # noqa: B008
        """The loop, for whoever steps it himself."""
        assert self.ports is not None, "the session is open"
        if self.ports.inbox is not None:
            take = self.ports.inbox.get
        else:
            assert feed is not None, "the first stage is fed"
            take = partial(self._fed, feed.packets(start))
        if self.observer is not None and self.control.rank == 0:
            self._gatherer = Gatherer(self.control, self.topology, self.observer, start.epoch, self.requests)
        self.requests.heard.set()
        policy = locked if self.config.backpropagates else unlocked
        telemetry, observer = self.telemetry.start(epoch_s), self.observer or Observer()
        return Worker(self.stages, take, self.ports, policy, self.watch, telemetry, observer)

    def _fed(self, packets: Iterator[Packet]) -> Packet:
        """The next packet, unless something beside the training has gone wrong."""
        if self._gatherer is not None:
            self._gatherer.check()
        if self.observer is not None:
            self.observer.check()
        return next(packets)

    def finish(self) -> None:
        """After the last step: wait until the observer knows everything."""
        if self._gatherer is not None:
            self._gatherer.finish()

    def abort(self) -> None:
        """End the run at once, here and in all processes that wait for this one; from any thread."""
        with contextlib.suppress(PipelineError):  # the store may be gone, too
            self.control.fail(f"{self.control.describe(self.control.rank)} was aborted")
        queues = self.ports.queues if self.ports is not None else []
        for queue in queues:
            queue.end()
        for queue in queues:
            queue.release()
        if self._gatherer is not None:
            self._gatherer.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
            return
        assert self.ports is not None
        try:
            for queue in self.ports.queues:
                queue.close()
        except BaseException:
            self.abort()
            raise
