"""The control channel: small JSON messages between processes over a key-value store, heartbeats, failures.

Nothing here is in the hot path. Every wait polls, so that it ends as soon as a peer fails or falls silent.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

from pipeline.errors import ConfigError, DataError, PipelineError, StageFailure, first_line
from pipeline.learning.packet import Position
from pipeline.text import json_text

__all__ = ["Beat", "Control", "Watch", "known_to_all", "lost_connection"]

R = TypeVar("R")

_POLL_S = 0.02
_REPORT_S = 2.0  # within which a process that ends says why
_PIECE = 1 << 20  # bytes of one value in the store, whose libuv backend closes a connection that sends over 8 MiB
_PIECES = "pieces"  # begins a value that lies in several places; no JSON begins so
_LONGEST = 10_000  # characters of a failure's message
_LOST = "Connection closed by peer|Connection reset by peer|Timed out waiting|pair closure|Broken pipe"
_KINDS: dict[str, type[PipelineError]] = {e.__name__: e for e in (ConfigError, DataError, StageFailure)}


@dataclass(frozen=True)
class Beat:
    """What a process last said of itself: how often it has, where its run is, and on whom its main thread waits."""

    count: int
    epoch: int
    step: int
    waits_for: int | None


class Control:
    """One process's end of the control channel.

    The first failure ends a generation: from then on everybody who waits in it gets that failure. A generation has
    rounds, one for each run: in a new round every name can be used again. All processes share the store; a peer that
    is silent for `timeout_s` seconds counts as lost; `describe` names a process for people.

    Attributes:
        at, waits_for: where the main thread is, and the process whose packet or room it waits for; peers see both.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        timeout_s: float,
        describe: Callable[[int], str] = "process {}".format,
    ) -> None:
        self.store, self.rank, self.world_size, self.timeout_s = store, rank, world_size, timeout_s
        self.describe = describe
        self.at = Position()
        self.waits_for: int | None = None
        self._generation = self._versions = 0
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self.advance()
        if world_size > 1:
            self._heart.start()

    def advance(self) -> None:
        """Leave the generations that have failed behind; every process calls it, to go on after a failure."""
        with self._store_errors():
            while self.store.check([self._failure]):
                self._generation += 1
        self.renew()

    def renew(self) -> None:
        """Begin the next round of this generation, in which all names are new; every process calls it."""
        self._turns = Counter[str]()
        with self._store_errors():
            self._round = self.store.add(f"{self._generation}/rounds/{self.rank}", 1)

    def scoped(self, name: str) -> Store:
        """The store below a name of this round, on a connection of its own."""
        return PrefixStore(self._key(name), self.store.clone())

    def _key(self, name: str) -> str:
        return f"{self._generation}/{self._round}/{name}"

    def publish(self, key: str, value: Any) -> None:
        """Write a JSON value; a later one replaces it. What is not finite is read as None.

        Raises StageFailure if the store is gone, as peek and read.
        """
        text, key = json_text(value), self._key(key)
        with self._store_errors():
            if len(text) > _PIECE:
                text = self._in_pieces(key, text)
            self.store.set(key, text)

    def _in_pieces(self, key: str, text: str) -> str:
        """Write a long value in several places; what to write in its own one. Readers tell by the version whether all
        pieces belong to one value."""
        self._versions += 1
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        for number, piece in enumerate(pieces):
            self.store.set(f"{key}/{_PIECES}/{number}", f"{self._versions} {piece}")
        return f"{_PIECES} {self._versions} {len(pieces)}"

    def peek(self, key: str) -> Any:
        """The value of a key, or None if nobody has published it yet."""
        return self._get(self._key(key))

    def _get(self, key: str) -> Any:
        text = self._text(key)
        return None if text is None else json.loads(text)

    def _text(self, key: str) -> str | None:
        """What lies under a key, or None if nobody has written it yet, or somebody is writing it anew."""
        with self._store_errors():
            if not self.store.check([key]):
                return None
            text = self.store.get(key).decode()
            if not text.startswith(_PIECES):
                return text
            _, version, count = text.split()
            places = [f"{key}/{_PIECES}/{number}" for number in range(int(count))]
            found = [self.store.get(place).decode().partition(" ") for place in places]
        return "".join(piece for _, _, piece in found) if all(of == version for of, _, _ in found) else None

    def read(self, key: str, rank: int) -> Any:
        """Wait for a value that `rank` publishes. Raises StageFailure if that process fails or falls silent."""
        watch, place = Watch(self, rank), self._key(key)
        while (text := self._text(place)) is None:
            watch.check()
            time.sleep(_POLL_S)
        return json.loads(text)

    def meet(self, limit_s: float) -> None:
        """Wait until every process is here. Raises StageFailure if one does not come within `limit_s` seconds."""
        self.publish(f"here/{self.rank}", True)
        deadline = time.monotonic() + limit_s
        for rank in range(self.world_size):
            while self.peek(f"here/{rank}") is None:
                self.raise_if_failed()
                if time.monotonic() > deadline:
                    raise self.fail(
                        f"{self.describe(rank)} has not come within {limit_s:g} s; start all {self.world_size} "
                        "processes of the run"
                    )
                time.sleep(_POLL_S)

    def together(self, name: str, act: Callable[[], R]) -> R:
        """Run `act` in every process; if it fails in one, raise that error in all.

        The error carries `rank`, the process it came from, which is the one to print it.
        """
        error: PipelineError | None = None
        try:
            result = act()
        except (ConfigError, DataError) as caught:
            error = caught
        self._turns[name] += 1
        told = f"together/{name}/{self._turns[name]}"
        self.publish(f"{told}/{self.rank}", None if error is None else [type(error).__name__, str(error)])
        reports = [self.read(f"{told}/{rank}", rank) for rank in range(self.world_size)]
        first = next((rank for rank, report in enumerate(reports) if report is not None), None)
        if first is None:
            return result
        self._wait_until_all_know(f"{told}/known", first)
        kind, message = reports[first]
        raise _with_rank(_KINDS[kind](message), first) from error

    def _wait_until_all_know(self, name: str, first: int) -> None:
        """Process `first` will print the error and exit, which ends the others: they must have read it before."""
        self.publish(f"{name}/{self.rank}", True)
        deadline = time.monotonic() + _REPORT_S
        others = [self._key(f"{name}/{rank}") for rank in range(self.world_size)]
        while self.rank == first and not self.store.check(others) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def fail(self, message: str) -> PipelineError:
        """Report that this process failed; returns the error that ends the generation, the first one reported."""
        mine = json_text({"rank": self.rank, "message": message[:_LONGEST]})
        with self._store_errors():
            first = json.loads(self.store.compare_set(self._failure, "", mine))
        return _with_rank(StageFailure(first["message"]), first["rank"])

    def raise_if_failed(self) -> None:
        """Raise the failure that any process has reported."""
        failure = self._reported()
        if failure is not None:
            raise failure

    def lost(self, rank: int | None, reason: str) -> PipelineError:
        """The error after a connection broke: the report of the process that failed, else that `rank` died.

        Where nobody can tell which process it was, `rank` is None.
        """
        deadline = time.monotonic() + _REPORT_S
        while time.monotonic() < deadline:
            failure = self._reported()
            if failure is not None:
                return failure
            time.sleep(_POLL_S)
        who = "a process" if rank is None else self.describe(rank)
        what = "does not answer" if "Timed out" in reason else "died"
        return self.fail(f"{who} {what}: {reason}; see its output above, then start the run anew")

    @property
    def _failure(self) -> str:
        return f"{self._generation}/failure"

    def _reported(self) -> PipelineError | None:
        report = self._get(self._failure)
        return None if report is None else _with_rank(StageFailure(report["message"]), report["rank"])

    def beat(self, rank: int) -> Beat | None:
        """The last heartbeat of a process; its count stands still when the process hangs."""
        beat = self._get(f"beat/{rank}")
        return None if beat is None else Beat(*beat)

    def close(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        if self._heart.is_alive():
            self._heart.join(timeout=5.0)

    def _keep_beating(self) -> None:
        interval, count = min(1.0, self.timeout_s / 4), 0
        store = self.store.clone()  # the main thread may block in a call of its own
        while not self._stop.wait(interval):
            count += 1
            try:
                store.set(f"beat/{self.rank}", json.dumps([count, self.at.epoch, self.at.step, self.waits_for]))
            except RuntimeError:
                return  # the store is gone; the next wait of this process says so

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        """A store that cannot be reached means that torchrun, which hosts it, has died."""
        try:
            yield
        except PipelineError:
            raise
        except RuntimeError as error:
            reason = f"{self.describe(self.rank)} lost torchrun's store ({first_line(error)}); start the run anew"
            raise _with_rank(StageFailure(reason), self.rank) from error


class Watch:
    """Notices a peer that fails, falls silent, or is deadlocked with this process, while this process waits for it."""

    def __init__(self, control: Control, rank: int) -> None:
        self.control, self.rank = control, rank
        self._beat: Beat | None = None
        self._locked_at: tuple[int, int] | None = None
        self._beaten = self._locked = self._checked = time.monotonic()

    def check(self) -> None:
        """Raise StageFailure if the peer is lost; asks the store at most four times a second."""
        control, now = self.control, time.monotonic()
        if self.rank == control.rank or now - self._checked < 0.25:
            return
        self._checked = now
        control.raise_if_failed()
        beat = control.beat(self.rank)
        if beat != self._beat:
            self._beat, self._beaten = beat, now
        if now - self._beaten > control.timeout_s:
            raise control.fail(self._silent())
        place = None
        if beat is not None and beat.waits_for == control.rank and control.waits_for == self.rank:
            place = (beat.epoch, beat.step)
        if place != self._locked_at or place is None:
            self._locked_at, self._locked = place, now
        if now - self._locked > control.timeout_s:
            raise control.fail(self._deadlocked())

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


def lost_connection(error: BaseException) -> bool:
    """Whether an error of torch.distributed means that another process is gone; it has no class for that."""
    return isinstance(error, RuntimeError) and re.search(_LOST, str(error)) is not None


def known_to_all(error: PipelineError) -> bool:
    """Whether the error came from the control channel, so that every process raises it."""
    return "rank" in vars(error)


def _with_rank(error: PipelineError, rank: int) -> PipelineError:
    error.rank = rank
    return error
