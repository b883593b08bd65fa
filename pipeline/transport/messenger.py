"""The one thread of a process that talks to the store, so that no other is lost in a call that does not return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import Store

from pipeline.transport.silence import Silence

__all__ = ["Messenger", "UnansweredError"]

R = TypeVar("R")

_LOOK_S = 0.25  # between two looks of one who waits for an answer


class UnansweredError(Exception):
    """The store has answered nothing at all for as long as anybody wants to wait."""


class Messenger:
    """Does what it is handed, in order, and takes a turn at the store several times a second.

    Attributes:
        answers: how often the store has done what it was asked for; stands still while it does not answer.

    Args:
        store: of which it gets a connection of its own.
        interval_s: between two turns.
        turn: what there is to do with the store time and again.
        last: what is done with it at the end.
        lost: is told why the store cannot be reached any more; then the thread ends.
    """

    def __init__(
        self,
        store: Store,
        interval_s: float,
        turn: Callable[[Store], None],
        last: Callable[[Store], None],
        lost: Callable[[RuntimeError], None],
    ) -> None:
        self._store, self._interval_s = store, interval_s
        self._turn, self._last, self._lost = turn, last, lost
        self.answers = 0
        self._jobs: dict[object, tuple[Callable[[Store], Any], Future[Any]]] = {}
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._over: RuntimeError | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def post(self, key: str, act: Callable[[Store], None]) -> None:
        """Have it done soon; what waits under the same key is replaced. The order of the rest is kept."""
        self._hand_over(key, act)

    def ask(self, act: Callable[[Store], R], limit_s: float) -> R:
        """What `act` makes of the store, once all before it is done; raises what it raises.

        Raises UnansweredError where the store has answered nothing for `limit_s` seconds, and RuntimeError where it is
        lost.
        """
        answer: Future[R] = self._hand_over(object(), act)
        silence = Silence()
        while silence.look(self.answers) <= limit_s:
            try:
                return answer.result(min(_LOOK_S, limit_s))
            except TimeoutError:
                continue
        raise UnansweredError

    def close(self, limit_s: float) -> None:
        """Do what is left, and end; a store that does not answer is waited for no longer than `limit_s`."""
        self._stop.set()
        self._wake.set()
        self._thread.join(limit_s)

    def _hand_over(self, key: object, act: Callable[[Store], R]) -> Future[R]:
        answer: Future[R] = Future()
        with self._lock:
            if self._over is not None:
                answer.set_exception(self._over)
                return answer
            self._jobs.pop(key, None)  # what was handed over in between comes before it
            self._jobs[key] = act, answer
        self._wake.set()
        return answer

    def _run(self) -> None:
        try:
            store = self._store.clone()
            turned = float("-inf")
            while not self._stop.is_set():
                self._work(store)
                if time.monotonic() - turned >= self._interval_s:
                    self._turn(store)
                    self.answers += 1
                    turned = time.monotonic()
                self._wake.wait(self._interval_s)
                self._wake.clear()
            self._work(store)
            self._last(store)
        except RuntimeError as error:
            self._give_up(error)
            if not self._stop.is_set():  # else the others, one of whom has the store, have left as this one does
                self._lost(error)
        else:
            self._give_up(RuntimeError("left"))

    def _work(self, store: Store) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    return
                act, answer = self._jobs.pop(next(iter(self._jobs)))
            try:
                answer.set_result(act(store))
            except Exception as error:
                answer.set_exception(error)
            self.answers += 1

    def _give_up(self, error: RuntimeError) -> None:
        """Whoever waits, or comes later, is told."""
        with self._lock:
            self._over = error
            left = list(self._jobs.values())
            self._jobs.clear()
        for _, answer in left:
            answer.set_exception(error)
