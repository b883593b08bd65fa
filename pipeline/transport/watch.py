"""What a process makes of the heartbeat of another one while it waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pipeline.transport.control import Control

__all__ = ["Beat", "Watch", "watching"]


@dataclass(frozen=True)
class Beat:
    """What a process last said of itself: how often it has, where its run is, and on whom its main thread waits."""

    count: int  # 0 after it has left
    epoch: int
    step: int
    waits_for: int | None


class Watch:
    """Notices that a peer falls silent, or is deadlocked with this process, while this process waits for it.

    with Watch(control, peer) as watch:
        while ...: watch.check()

    The messenger looks at the peer's heartbeat. Only what passes from one look to the next counts as silence, and no
    more of it than a beat's interval: a store that does not answer is nobody's silence, nor is a pause of all.
    """

    def __init__(self, control: Control, rank: int) -> None:
        self.control, self.rank = control, rank
        self._beat: Beat | None = None
        self._locked_at: tuple[int, int] | None = None
        self._looked: float | None = None
        self._silent_s = self._locked_s = 0.0

    def __enter__(self) -> Self:
        self.control.watches.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.control.watches.remove(self)

    def check(self) -> None:
        """Raise StageFailure if the peer, or any process, is known to be lost; does not ask the store."""
        self.control.raise_if_learnt()

    def look(self, beat: Beat | None) -> str | None:
        """The messenger's part: take a heartbeat in; what is wrong with the peer, if anything is."""
        control, now = self.control, time.monotonic()
        passed_s = 0.0 if self._looked is None else min(now - self._looked, control.interval_s)
        self._looked = now
        self._silent_s = self._silent_s + passed_s if beat == self._beat else 0.0
        self._beat = beat
        place = None
        if beat is not None and beat.waits_for == control.rank and control.waits_for == self.rank:
            place = (beat.epoch, beat.step)
        self._locked_s = self._locked_s + passed_s if place is not None and place == self._locked_at else 0.0
        self._locked_at = place
        if self._silent_s > control.timeout_s:
            return self._silent()
        return self._deadlocked() if self._locked_s > control.timeout_s else None

    def _silent(self) -> str:
        where = "" if self._beat is None else f" (it was at step {self._beat.step} of the run)"
        return (
            f"{self.control.describe(self.rank)} has been silent for {self.control.timeout_s:g} s, seen from "
            f"{self.control.describe(self.control.rank)}{where}; look at its machine, or raise --timeout if it was "
            "only suspended"
        )

    def _deadlocked(self) -> str:
        us, them = (self.control.describe(rank) for rank in (self.control.rank, self.rank))
        return (
            f"{us} at step {self.control.at.step} and {them} at step {self._beat.step if self._beat else 0} have "
            f"waited for each other for {self.control.timeout_s:g} s: nothing comes through between them; look at "
            "the network between their machines, or raise --timeout"
        )


@contextmanager
def watching(control: Control) -> Iterator[Watch]:
    """While this process waits for all others; each of them is looked at."""
    with ExitStack() as stack:
        for rank in range(control.world_size):
            watch = stack.enter_context(Watch(control, rank))
        yield watch
