"""The control channel: small JSON messages between processes over a key-value store, heartbeats, failures.

Nothing here is in the hot path. Every wait polls, so that it ends as soon as a peer fails or falls silent.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import Store

from pipeline.errors import ConfigError, DataError, PipelineError, StageFailure, first_line

__all__ = ["Control", "Watch", "known_to_all", "lost_connection"]

R = TypeVar("R")

_POLL_S = 0.02
_LOST = "Connection closed by peer|Connection reset by peer|Timed out waiting|pair closure|Broken pipe"
_KINDS: dict[str, type[PipelineError]] = {e.__name__: e for e in (ConfigError, DataError, StageFailure)}


class Control:
    """One process's end of the control channel.

    Args:
        store: shared by all processes of the run.
        rank: of this process, equal to its stage where there are several processes.
        world_size: number of processes.
        timeout_s: seconds of silence from a peer until it counts as lost.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        self.store, self.rank, self.world_size, self.timeout_s = store, rank, world_size, timeout_s
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        if world_size > 1:
            self._heart.start()

    def publish(self, key: str, value: Any) -> None:
        """Write a JSON value; a later one replaces it. Raises StageFailure if the store is gone, as peek and read."""
        with _store_errors(self.rank):
            self.store.set(key, json.dumps(value))

    def peek(self, key: str) -> Any:
        """The value of a key, or None if nobody has published it yet."""
        with _store_errors(self.rank):
            return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def read(self, key: str, rank: int) -> Any:
        """Wait for a value that `rank` publishes. Raises StageFailure if that process fails or falls silent."""
        watch = Watch(self, rank)
        with _store_errors(self.rank):
            while not self.store.check([key]):
                watch.check()
                time.sleep(_POLL_S)
            return json.loads(self.store.get(key))

    def together(self, name: str, act: Callable[[], R]) -> R:
        """Run `act` in every process; if it fails in one, raise that error in all.

        The error carries `rank`, the process it came from, which is the one to print it.
        """
        error: PipelineError | None = None
        try:
            result = act()
        except (ConfigError, DataError) as caught:
            error = caught
        self.publish(f"together/{name}/{self.rank}", None if error is None else [type(error).__name__, str(error)])
        told = [self.read(f"together/{name}/{rank}", rank) for rank in range(self.world_size)]
        first = next((rank for rank, report in enumerate(told) if report is not None), None)
        if first is None:
            return result
        self._wait_until_all_know(name, first)
        kind, message = told[first]
        raise _with_rank(_KINDS[kind](message), first) from error

    def _wait_until_all_know(self, name: str, first: int) -> None:
        """Process `first` will print the error and exit, which ends the others: they must have read it before."""
        self.publish(f"known/{name}/{self.rank}", True)
        deadline = time.monotonic() + 2.0
        others = [f"known/{name}/{rank}" for rank in range(self.world_size)]
        while self.rank == first and not self.store.check(others) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def fail(self, message: str) -> PipelineError:
        """Report that this process failed; returns the error that ends the run, the first one reported."""
        mine = json.dumps({"rank": self.rank, "message": message})
        with _store_errors(self.rank):
            first = json.loads(self.store.compare_set("failure", "", mine))
        return _with_rank(StageFailure(first["message"]), first["rank"])

    def raise_if_failed(self) -> None:
        """Raise the failure that any process has reported."""
        failure = self._reported()
        if failure is not None:
            raise failure

    def lost(self, rank: int | None, reason: str) -> PipelineError:
        """The error after a connection broke: the report of the process that failed, else that `rank` died.

        Where the transfer was between all processes, `rank` is None.
        """
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            failure = self._reported()
            if failure is not None:
                return failure
            time.sleep(_POLL_S)
        who = "a process" if rank is None else f"stage {rank} (process {rank})"
        return self.fail(f"{who} died: {reason}; see its output above, then start the run anew")

    def _reported(self) -> PipelineError | None:
        report = self.peek("failure")
        return None if report is None else _with_rank(StageFailure(report["message"]), report["rank"])

    def beat(self, rank: int) -> bytes:
        """The heartbeat of a process: a count that stands still when it hangs."""
        with _store_errors(self.rank):
            return self.store.get(f"beat/{rank}") if self.store.check([f"beat/{rank}"]) else b""

    def close(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        if self._heart.is_alive():
            self._heart.join(timeout=5.0)

    def _keep_beating(self) -> None:
        interval = min(1.0, self.timeout_s / 4)
        count = 0
        while not self._stop.wait(interval):
            count += 1
            try:
                self.store.set(f"beat/{self.rank}", str(count))
            except RuntimeError:
                return  # the store is gone; the next wait of this process says so


class Watch:
    """Notices a peer that fails or falls silent while this process waits for it."""

    def __init__(self, control: Control, rank: int) -> None:
        self.control, self.rank = control, rank
        self._beat = b""
        self._changed = self._checked = time.monotonic()

    def check(self) -> None:
        """Raise StageFailure if the peer is lost; asks the store at most four times a second."""
        now = time.monotonic()
        if self.rank == self.control.rank or now - self._checked < 0.25:
            return
        self._checked = now
        self.control.raise_if_failed()
        beat = self.control.beat(self.rank)
        if beat != self._beat:
            self._beat, self._changed = beat, now
        elif now - self._changed > self.control.timeout_s:
            raise self.control.fail(
                f"stage {self.rank} (process {self.rank}) has been silent for {self.control.timeout_s:g} s, seen from "
                f"stage {self.control.rank}; look at its machine, or raise --timeout if it was only suspended"
            )


@contextmanager
def _store_errors(rank: int) -> Iterator[None]:
    """A store that cannot be reached means that torchrun, which hosts it, has died."""
    try:
        yield
    except PipelineError:
        raise
    except RuntimeError as error:
        lost = StageFailure(f"stage {rank} lost torchrun's store ({first_line(error)}); start the run anew")
        raise _with_rank(lost, rank) from error


def lost_connection(error: BaseException) -> bool:
    """Whether an error of torch.distributed means that another process is gone; it has no class for that."""
    return isinstance(error, RuntimeError) and re.search(_LOST, str(error)) is not None


def known_to_all(error: PipelineError) -> bool:
    """Whether the error came from the control channel, so that every process raises it."""
    return "rank" in vars(error)


def _with_rank(error: PipelineError, rank: int) -> PipelineError:
    error.rank = rank
    return error
