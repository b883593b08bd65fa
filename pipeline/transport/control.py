"""The control channel: small JSON messages between processes over a key-value store, heartbeats, failures.

Every wait polls, so that it ends as soon as a peer fails or falls silent. Where there are several processes one
thread, the messenger, talks to the store: the thread that trains posts, and reads what the messenger has learnt.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

from pipeline.errors import ConfigError, DataError, PipelineError, StageFailure, first_line
from pipeline.transport.mates import own_place
from pipeline.transport.messenger import Messenger, UnansweredError
from pipeline.transport.pulse import Pulse, failure_key
from pipeline.transport.silence import Silence
from pipeline.transport.values import Values
from pipeline.transport.verdict import known, read_report, report
from pipeline.transport.watch import Beat, Watch, read_beat

__all__ = ["Control"]

R = TypeVar("R")

_POLL_S = 0.02
_RARELY = 25  # polls to a look at what takes its time
_TURN_S = 0.25  # between two looks at the others
_REPORT_S = 2.0  # within which a process that ends says why, and a store answers
_KINDS: dict[str, type[PipelineError]] = {e.__name__: e for e in (ConfigError, DataError, StageFailure)}


class Control(Pulse):
    """One process's end of the control channel.

    The first failure ends a generation: from then on everybody who waits in it gets that failure. A generation has
    rounds, one for each run: in a new round every name can be used again. All processes share the store; a peer that
    is silent for `timeout_s` seconds counts as lost; `describe` names a process for people.
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
        super().__init__(rank, timeout_s, describe, hears)
        self.store, self.world_size, self._values = store, world_size, Values()
        self._messenger: Messenger | None = None
        if world_size > 1:
            turn_s = min(_TURN_S, self._interval_s)
            self._messenger = Messenger(store, turn_s, self._turn, self._leave, self._lose_store)
        try:
            self.advance()
        except PipelineError:
            self.close()
            raise

    def advance(self) -> None:
        """Leave the generations that have failed behind; every process calls it, to go on after a failure."""
        generation = max(0, self._generation)
        while self._has_failed(generation):
            generation += 1
        self._generation = generation
        self.renew()

    def _has_failed(self, generation: int) -> bool:
        return self._ask(lambda store: store.check([failure_key(generation)]))

    def renew(self) -> None:
        """Begin the next round of this generation, in which all names are new; every process calls it."""
        self._turns = Counter[str]()
        self._round = self._ask(lambda store: store.add(f"{self._generation}/rounds/{self.rank}", 1))

    def scoped(self, name: str) -> Store:
        """The store below a name of this round, on a connection of its own; no wait in it outlasts a silent peer."""
        store: Store = self._ask(lambda store: store.clone())
        store.set_timeout(timedelta(seconds=self.timeout_s + 3.0))
        return PrefixStore(self._key(name), store)

    @property
    def answers(self) -> int | float:
        """Stands still while the store does not answer."""
        return time.monotonic() if self._messenger is None else self._messenger.answers

    def _key(self, name: str) -> str:
        return f"{self._generation}/{self._round}/{name}"

    def publish(self, key: str, value: Any) -> None:
        """Write a JSON value; a later one replaces it. What is not finite is read as None.

        Raises StageFailure if the store is gone, as peek and read.
        """
        place = self._key(key)
        self._ask(lambda store: self._values.put(store, place, value))

    def post(self, key: str, value: Any) -> None:
        """Publish without a wait for the store: the messenger writes soon, of a key's values at least the last.

        Raises StageFailure if it has learnt of one.
        """
        place = self._key(key)
        if self._messenger is None:
            self._values.put(self.store, place, value)
            return
        self.raise_if_learnt()
        self._messenger.post(place, lambda store: self._values.put(store, place, value))

    def peek(self, key: str) -> Any:
        """The value of a key, or None if nobody has published it yet."""
        place = self._key(key)
        text = self._ask(lambda store: self._values.text(store, place))
        return None if text is None else self.whole(key, lambda: json.loads(text))

    def read(self, key: str, rank: int) -> Any:
        """Wait for a value that `rank` publishes. Raises StageFailure if that process fails or falls silent."""
        place = self._key(key)
        with Watch(self, rank) as watch:
            while (text := self._ask(lambda store: self._values.text(store, place))) is None:
                watch.check()
                time.sleep(_POLL_S)
        return self.whole(key, lambda: json.loads(text))

    def whole(self, key: str, make: Callable[[], R]) -> R:
        """What `make` makes of a value; raises StageFailure where it cannot, as that is nothing we have written."""
        try:
            return make()
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise self.fail(
                f"{self.describe(self.rank)} finds under {key} in torchrun's store what no process of this run has "
                f"written ({first_line(error)}); look who reaches its port, and start the run anew with one version "
                "everywhere"
            ) from error

    def meet(self, limit_s: float, stopped: Callable[[], Collection[int]] = tuple) -> None:
        """Wait until every process is here.

        Raises StageFailure if one does not come within `limit_s` seconds, or is among the `stopped` for `timeout_s`.
        """
        self.publish(f"here/{self.rank}", own_place())
        deadline = time.monotonic() + limit_s
        for rank in range(self.world_size):
            halted = Silence()
            for polls in itertools.count():
                if (place := self.peek(f"here/{rank}")) is not None:
                    break
                self.raise_if_learnt()
                if time.monotonic() > deadline:
                    raise self.fail(
                        f"{self.describe(rank)} has not come within {limit_s:g} s; start all {self.world_size} "
                        "processes of the run"
                    )
                # To look goes through all processes of the host, while they import.
                stands = polls % _RARELY == 0 and rank in stopped()
                if stands and halted.look(None) > self.timeout_s:
                    raise self.fail(
                        f"{self.describe(rank)} has been stopped for {self.timeout_s:g} s before it came; let it go "
                        "on (SIGCONT), or start the run anew"
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
        kind, message = self.whole(told, lambda: (_KINDS[reports[first][0]], str(reports[first][1])))
        raised = kind(message)
        raised.rank = first
        raise raised from error

    def _wait_until_all_know(self, name: str, first: int) -> None:
        """Process `first` will print the error and exit, which ends the others: they must have read it before."""
        self.publish(f"{name}/{self.rank}", True)
        deadline = time.monotonic() + _REPORT_S
        others = [self._key(f"{name}/{rank}") for rank in range(self.world_size)]
        while self.rank == first and not self._ask(lambda store: store.check(others)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def fail(self, message: str) -> PipelineError:
        """Report that this process failed; returns the error that ends the generation, the first one reported.

        Where the store does not answer soon, this one is that.
        """
        generation, mine = self._generation, report(message, self.rank)
        try:
            found = read_report(
                self._ask(lambda store: store.compare_set(failure_key(generation), "", mine), _REPORT_S)
            )
        except UnansweredError:
            found = read_report(mine)
        self._verdict.learn(generation, *found)
        return known(*found)

    def raise_if_failed(self) -> None:
        """Raise the failure that any process has reported."""
        told = self._ask(lambda store: self._values.text(store, failure_key(self._generation)))
        if told is not None:
            raise known(*read_report(told))

    def lost(self, rank: int | None, reason: str) -> PipelineError:
        """The error after a connection broke: the report of the process that failed, else that `rank` died.

        Where nobody can tell which process it was, `rank` is None.
        """
        deadline = time.monotonic() + _REPORT_S
        while time.monotonic() < deadline:
            failure = self._verdict.of(self._generation)
            if failure is not None:
                return failure
            time.sleep(_POLL_S)
        who = "a process" if rank is None else self.describe(rank)
        what = "does not answer" if "Timed out" in reason else "died"
        failure = self.fail(f"{who} {what}: {reason}; see its output above, then start the run anew")
        self._hears(failure)
        return failure

    def beat(self, rank: int) -> Beat | None:
        """The last heartbeat of a process; its count stands still when the process hangs."""
        return self._ask(lambda store: read_beat(store, rank))

    def close(self) -> None:
        """Leave: what has been posted is written, the heartbeat ends, and the end of this process is no failure."""
        if self._messenger is not None:
            self._messenger.close(_REPORT_S)
        self._mates.close()

    def _ask(self, act: Callable[[Store], R], limit_s: float | None = None) -> R:
        """What `act` makes of the store.

        Raises StageFailure where that is gone, or does not answer within the timeout; with `limit_s` the latter is an
        UnansweredError, after that.
        """
        with self._store_errors():
            if self._messenger is None:
                return act(self.store)
            try:
                return self._messenger.ask(act, self.timeout_s if limit_s is None else limit_s)
            except UnansweredError as error:
                if limit_s is not None:
                    raise
                raise self._given_up(self._without_answers()) from error

    def _lose_store(self, error: RuntimeError) -> None:
        self._given_up(self._without_store(error))

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        """A store that cannot be reached means that torchrun, which hosts it, has died."""
        try:
            yield
        except PipelineError:
            raise
        except RuntimeError as error:
            raise self._given_up(self._without_store(error)) from error
