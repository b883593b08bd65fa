"""What a process makes of the heartbeat of another one while it waits for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torch.distributed.distributed_c10d import Store

from pipeline.transport.silence import Silence

if TYPE_CHECKING:
    from pipeline.transport.control import Control

__all__ = ["Beat", "Watch", "read_beat", "watching"]


@dataclass(frozen=True)
class Beat:
    """What a process last said of itself: how often it has, where its run is, and on whom its main thread waits."""

    count: int  # 0 after it has left
    epoch: int
    step: int
    waits_for: int | None

    def text(self) -> str:
        """As it lies in the store."""
        return json.dumps([self.count, self.epoch, self.step, self.waits_for])


def read_beat(store: Store, rank: int) -> Beat | None:
    """The last heartbeat of a process; None before the first, and where it is none that a process has written."""
    key = f"beat/{rank}"
    if not store.check([key]):
        return None
    try:
        count, epoch, step, waits_for = json.loads(store.get(key))
    except (ValueError, TypeError, RecursionError):
        return None
    whole = all(type(number) is int for number in (count, epoch, step))
    return Beat(count, epoch, step, waits_for) if whole and type(waits_for) in {int, type(None)} else None


class Watch:
    """Notices that a peer falls silent, or is deadlocked with this process, while this process waits for it.

    with Watch(control, peer) as watch:
        while ...: watch.check()

    The messenger looks at the peer's heartbeat. A store that does not answer is nobody's silence: it is waited out,
    but no longer than `timeout_s` by one who has heard of nothing else in that time.
    """

    def __init__(self, control: Control, rank: int) -> None:
        self.control, self.rank = control, rank
        self._beat: Beat | None = None
        self._beats, self._lock, self._store = Silence(), Silence(), Silence()

    def __enter__(self) -> Self:
        self.control.watches.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.control.watches.remove(self)

    def check(self) -> None:
        """Raise StageFailure if the peer, any process or the store is known to be lost; does not ask the store."""
        self.control.raise_if_learnt()
        if self._store.look(self.control.answers) > self.control.timeout_s:
            raise self.control.unanswered()

    def look(self, beat: Beat | None) -> str | None:
        """The messenger's part: take a heartbeat in; what is wrong with the peer, if anything is."""
        control = self.control
        silent_s = self._beats.look(beat)
        self._beat = beat
        place = None
        if beat is not None and beat.waits_for == control.rank and control.waits_for == self.rank:
            place = (beat.epoch, beat.step)
        locked_s = self._lock.look(place)
        if silent_s > control.timeout_s:
            return self._silent()
        return self._deadlocked() if place is not None and locked_s > control.timeout_s else None

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
