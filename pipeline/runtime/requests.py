"""What is asked of a run from outside, such as by a signal: to save, or to save and end; what it says to that side."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from pipeline.errors import PipelineError
from pipeline.transport.control import Control
from pipeline.transport.topics import Topic

__all__ = ["Requests", "Switch"]

_ASKED = Topic("asked", list)


class Switch:
    """On or off, for handlers of signals to turn: an event of threading has a lock, which the thread that is
    interrupted may hold, and then waits for without end."""

    def __init__(self) -> None:
        self._on = False

    def set(self) -> None:
        """Turn it on."""
        self._on = True

    def clear(self) -> None:
        """Turn it off."""
        self._on = False

    def is_set(self) -> bool:
        """Whether it is on."""
        return self._on


@dataclass(frozen=True)
class Requests:
    """Set from any thread, or by a signal handler; heeded at the next step, wherever in the run it was asked.

    Attributes:
        failures: what ends the run is the first of them, known before the thread that trains comes to raise it.
    """

    save: Switch = field(default_factory=Switch)  # and go on
    stop: Switch = field(default_factory=Switch)  # after a save
    heard: threading.Event = field(default_factory=threading.Event)  # the run has begun, and heeds them
    failures: list[PipelineError] = field(default_factory=list)
    failed: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: PipelineError) -> None:
        """The run has failed, in this process or another one."""
        self.failures.append(error)
        self.failed.set()

    def tell(self, control: Control) -> None:
        """Let process 0 know what has been asked of this one; it feeds the first stage."""
        if self.stop.is_set() or self.save.is_set():
            _ASKED.post(control, control.rank, [self.stop.is_set()])
            self.save.clear()

    def hear(self, control: Control) -> None:
        """What has been asked of others; each of them once."""
        for rank in range(1, control.world_size):
            asked = _ASKED.peek(control, rank)
            if asked:
                (self.stop if asked[0] else self.save).set()
                _ASKED.publish(control, rank, [])
