"""The control channel: small JSON messages between processes over a key-value store, heartbeats, failures.

Every wait polls, so that it ends as soon as a peer fails or falls silent. While a run is under way the thread that
trains does not wait for the store: it posts, and reads what the messenger, a thread of its own, has learnt.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

from pipeline.errors import ConfigError, DataError, PipelineError, StageFailure, first_line
from pipeline.learning.packet import Position
from pipeline.text import json_text
from pipeline.transport.mates import Mates, own_place
from pipeline.transport.messenger import Messenger
from pipeline.transport.watch import Beat, Watch

__all__ = ["Control", "known_to_all", "lost_connection"]

R = TypeVar("R")

_POLL_S = 0.02
_TURN_S = 0.25  # between two looks at the others
_REPORT_S = 2.0  # within which a process that ends says why, and a store answers
_PIECE = 1 << 20  # bytes of one value in the store, whose libuv backend closes a connection that sends over 8 MiB
_PIECES = "pieces"  # begins a value that lies in several places; no JSON begins so
_LONGEST = 10_000  # characters of a failure's message
_LOST = "Connection closed by peer|Connection reset by peer|Timed out waiting|pair closure|Broken pipe"
_KINDS: dict[str, type[PipelineError]] = {e.__name__: e for e in (ConfigError, DataError, StageFailure)}


class Control:
    """One process's end of the control channel.

    The first failure ends a generation: from then on everybody who waits in it gets that failure. A generation has
    rounds, one for each run: in a new round every name can be used again. All processes share the store; a peer that
    is silent for `timeout_s` seconds counts as lost; `describe` names a process for people.

    Attributes:
        at, waits_for: where the main thread is, and the process whose packet or room it waits for; peers see both.
        watches: the waits under way, for the messenger.
        interval_s: between two heartbeats.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        timeout_s: float,
        describe: Callable[[int], str] = "process {}".format,
        hears: Callable[[PipelineError], None] = lambda _: None,
    ) -> None:
        """`hears` is told, by any thread, of a failure that ends a generation and is not this process's own."""
        self.store, self.rank, self.world_size, self.timeout_s = store, rank, world_size, timeout_s
        self.describe, self._hears = describe, hears
        self.at = Position()
        self.waits_for: int | None = None
        self.watches: list[Watch] = []
        self.interval_s = min(1.0, timeout_s / 4)
        self._generation = self._versions = self._beats = 0
        self._beaten = -math.inf
        self._learnt: tuple[int, str, int] | None = None  # generation, message and process of the failure
        self._learning = threading.Lock()
        self._mates = Mates()
        self._messenger: Messenger | None = None
        self.advance()
        if world_size > 1:
            turn_s = min(_TURN_S, self.interval_s)
            self._messenger = Messenger(store, turn_s, self._write, self._turn, self._leave, self._lose_store)

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
        """The store below a name of this round, on a connection of its own; no wait in it outlasts a silent peer."""
        store = self.store.clone()
        store.set_timeout(timedelta(seconds=self.timeout_s + 3.0))
        return PrefixStore(self._key(name), store)

    def _key(self, name: str) -> str:
        return f"{self._generation}/{self._round}/{name}"

    def publish(self, key: str, value: Any) -> None:
        """Write a JSON value; a later one replaces it. What is not finite is read as None.

        Raises StageFailure if the store is gone, as peek and read.
        """
        with self._store_errors():
            self._write(self.store, self._key(key), value)

    def post(self, key: str, value: Any) -> None:
        """Publish without a wait for the store: the messenger writes soon, of a key's values at least the last.

        Raises StageFailure if it has learnt of one.
        """
        if self._messenger is None:
            self.publish(key, value)
            return
        self.raise_if_learnt()
        self._messenger.post(self._key(key), value)

    def _write(self, store: Store, key: str, value: Any) -> None:
        text = json_text(value)
        store.set(key, self._in_pieces(store, key, text) if len(text) > _PIECE else text)

    def _in_pieces(self, store: Store, key: str, text: str) -> str:
        """Write a long value in several places; what to write in its own one. Readers tell by the version whether all
        pieces belong to one value."""
        self._versions += 1
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        for number, piece in enumerate(pieces):
            store.set(f"{key}/{_PIECES}/{number}", f"{self._versions} {piece}")
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
        place = self._key(key)
        with Watch(self, rank) as watch:
            while (text := self._text(place)) is None:
                watch.check()
                time.sleep(_POLL_S)
        return json.loads(text)

    def meet(self, limit_s: float) -> None:
        """Wait until every process is here. Raises StageFailure if one does not come within `limit_s` seconds."""
        self.publish(f"here/{self.rank}", own_place())
        deadline = time.monotonic() + limit_s
        for rank in range(self.world_size):
            while (place := self.peek(f"here/{rank}")) is None:
                self.raise_if_failed()
                if time.monotonic() > deadline:
                    raise self.fail(
                        f"{self.describe(rank)} has not come within {limit_s:g} s; start all {self.world_size} "
                        "processes of the run"
                    )
                time.sleep(_POLL_S)
            self._mates.add(rank, place)

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
        """Report that this process failed; returns the error that ends the generation, the first one reported.

        Where the store does not answer, this one is that.
        """
        told: list[tuple[str, int] | RuntimeError] = []

        def tell() -> None:
            try:
                told.append(self._first(self.store, self._failure, message))
            except RuntimeError as error:
                told.append(error)

        if self._messenger is None:
            tell()
        else:
            teller = threading.Thread(target=tell, name="failure", daemon=True)
            teller.start()
            teller.join(_REPORT_S)
        found = told[0] if told else (message[:_LONGEST], self.rank)
        with self._store_errors():
            if isinstance(found, RuntimeError):
                raise found
        self._learn(self._generation, *found)
        return self._known(*found)

    def _first(self, store: Store, key: str, message: str) -> tuple[str, int]:
        """Report a failure; message and process of the first one reported."""
        mine = json_text({"rank": self.rank, "message": message[:_LONGEST]})
        first = json.loads(store.compare_set(key, "", mine))
        return first["message"], first["rank"]

    def raise_if_failed(self) -> None:
        """Raise the failure that any process has reported."""
        report = self._get(self._failure)
        if report is not None:
            raise self._known(report["message"], report["rank"])

    def raise_if_learnt(self) -> None:
        """Raise the failure that the messenger knows of; does not ask the store."""
        failure = self._failure_learnt()
        if failure is not None:
            raise failure

    def lost(self, rank: int | None, reason: str) -> PipelineError:
        """The error after a connection broke: the report of the process that failed, else that `rank` died.

        Where nobody can tell which process it was, `rank` is None.
        """
        deadline = time.monotonic() + _REPORT_S
        while time.monotonic() < deadline:
            failure = self._failure_learnt()
            if failure is not None:
                return failure
            time.sleep(_POLL_S)
        who = "a process" if rank is None else self.describe(rank)
        what = "does not answer" if "Timed out" in reason else "died"
        failure = self.fail(f"{who} {what}: {reason}; see its output above, then start the run anew")
        self._hears(failure)
        return failure

    @property
    def _failure(self) -> str:
        return f"{self._generation}/failure"

    @staticmethod
    def _known(message: str, rank: int) -> PipelineError:
        return _with_rank(StageFailure(message), rank)

    def _failure_learnt(self) -> PipelineError | None:
        learnt = self._learnt
        return self._known(*learnt[1:]) if learnt is not None and learnt[0] == self._generation else None

    def _learn(self, generation: int, message: str, rank: int) -> bool:
        """Keep the first failure of a generation; whether it was."""
        with self._learning:
            first = self._learnt is None or self._learnt[0] != generation
            if first:
                self._learnt = (generation, message, rank)
        return first

    def _hear(self, generation: int, message: str, rank: int) -> None:
        """The messenger has learnt of a failure."""
        if self._learn(generation, message, rank):
            self._hears(self._known(message, rank))

    def beat(self, rank: int) -> Beat | None:
        """The last heartbeat of a process; its count stands still when the process hangs."""
        with self._store_errors():
            return _beat(self.store, rank)

    def close(self) -> None:
        """Leave: what has been posted is written, the heartbeat ends, and the end of this process is no failure."""
        if self._messenger is not None:
            self._messenger.close(_REPORT_S)
        self._mates.close()

    def _turn(self, store: Store) -> None:
        """What the messenger does several times a second."""
        now = time.monotonic()
        if now - self._beaten >= self.interval_s:
            self._beaten, self._beats = now, self._beats + 1
            self._set_beat(store, self._beats)
        generation, key = self._generation, self._failure
        trouble = self._dead(store) or self._silent(store)
        if trouble is not None:
            self._hear(generation, *self._first(store, key, trouble))
        elif store.check([key]):
            report = json.loads(store.get(key))
            self._hear(generation, report["message"], report["rank"])

    def _dead(self, store: Store) -> str | None:
        """A process of this host that has ended without having left."""
        for rank, pid in self._mates.gone().items():
            beat = _beat(store, rank)
            if beat is None or beat.count > 0:
                what = f"died: its process {pid} is gone"
                return f"{self.describe(rank)} {what}; see its output above, then start the run anew"
        return None

    def _silent(self, store: Store) -> str | None:
        """What is wrong with a process that this one waits for."""
        for watch in tuple(self.watches):
            if watch.rank != self.rank and (trouble := watch.look(_beat(store, watch.rank))) is not None:
                return trouble
        return None

    def _set_beat(self, store: Store, count: int) -> None:
        store.set(f"beat/{self.rank}", json.dumps([count, self.at.epoch, self.at.step, self.waits_for]))

    def _leave(self, store: Store) -> None:
        """The messenger's last act."""
        self._set_beat(store, 0)

    def _lose_store(self, error: RuntimeError) -> None:
        self._hear(self._generation, self._without_store(error), self.rank)

    def _without_store(self, error: RuntimeError) -> str:
        return f"{self.describe(self.rank)} lost torchrun's store ({first_line(error)}); start the run anew"

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        """A store that cannot be reached means that torchrun, which hosts it, has died."""
        try:
            yield
        except PipelineError:
            raise
        except RuntimeError as error:
            raise self._known(self._without_store(error), self.rank) from error


def _beat(store: Store, rank: int) -> Beat | None:
    key = f"beat/{rank}"
    return Beat(*json.loads(store.get(key))) if store.check([key]) else None


def lost_connection(error: BaseException) -> bool:
    """Whether an error of torch.distributed means that another process is gone; it has no class for that."""
    return isinstance(error, RuntimeError) and re.search(_LOST, str(error)) is not None


def known_to_all(error: PipelineError) -> bool:
    """Whether the error came from the control channel, so that every process raises it."""
    return "rank" in vars(error)


def _with_rank(error: PipelineError, rank: int) -> PipelineError:
    error.rank = rank
    return error
