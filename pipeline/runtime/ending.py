"""How a process of the launcher ends: one line of one process, and no wait for a thread. It needs no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pipeline.config.environment import Environment
from pipeline.errors import ConfigError, DataError, Interrupted, PipelineError, StageFailure
from pipeline.runtime.siblings import death, describe, missing
from pipeline.text import one_line

if TYPE_CHECKING:
    from pipeline.runtime.requests import Requests

__all__ = ["Ending", "leave_now", "open_standard_streams", "tell"]

_HEAD_START_S = 0.5  # how long the others get to find the same mistake before the first exit ends them
_SAVE_S = 25.0  # for the present step and its checkpoint after a signal: torchrun kills after 30
_GRACE_S = 10.0  # how long a process waits for torchrun to end it after another one has reported the failure
_LOOK_S = 1.0  # within which the death of another process is known, after which torchrun ends this one
_LOOK_AGAIN_S = 0.02
_ORDER_S = 2.0  # for the thread that trains to end in order once a failure is known


class Ending:
    """What signals do to a process of the launcher, and how it leaves; whichever thread comes first leads it out."""

    def __init__(self, where: Environment) -> None:
        self._where, self._first = where, threading.Lock()
        self._asked = False  # by whoever ends all processes
        self._interrupted = ""  # by this signal
        self._asked_at = 0.0  # when the first signal asked a run to end
        self._requests: Requests | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup, to outlive the terminal
            signal.signal(signal.SIGHUP, self._on_signal)
        signal.signal(signal.SIGUSR1, lambda *_: None)  # by itself it kills, and there is nothing to save yet
        if where.agent_store:
            threading.Thread(target=self._follow, args=(os.getppid(),), name="agent", daemon=True).start()

    def heed(self, requests: Requests) -> None:
        """From now on signals ask a run for something, once it hears."""
        self._requests = requests
        signal.signal(signal.SIGUSR1, lambda *_: requests.save.set())
        if self._where.world_size > 1:
            threading.Thread(target=self._await_failure, args=(requests,), name="last words", daemon=True).start()

    def leave(self, error: PipelineError) -> NoReturn:
        """Print the one line from the process the error came from, which exits first; the others wait to be ended."""
        if self._interrupted:
            self._leave_interrupted()
        where, status = self._where, 2 if isinstance(error, ConfigError | DataError) else 1
        if not self._first.acquire(blocking=False):
            time.sleep(_GRACE_S + _HEAD_START_S)
            leave_now(status)
        tells = error.rank == where.rank
        if threading.current_thread() is threading.main_thread():
            # Nothing comes between the teller and its line.
            signal.signal(signal.SIGTERM, signal.SIG_IGN if tells else lambda *_: os._exit(status))
        if tells:
            tell(f"error: {error}")
        if where.world_size > 1 and not tells and not isinstance(error, Interrupted):
            _wait_until(lambda: self._asked, _GRACE_S)
        if where.world_size > 1:
            time.sleep(_HEAD_START_S if tells else 2 * _HEAD_START_S)
        leave_now(status)

    def break_off(self) -> NoReturn:
        """Leave after an exception that is no message for the user: a bug, or what an interrupt has led to."""
        if self._interrupted:
            self._leave_interrupted()
        traceback.print_exc()
        leave_now(1)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        requests = self._requests
        self._asked = True
        if requests is not None and requests.heard.is_set():
            if not self._asked_at:
                self._end_run(requests)
                return
            # A launcher passes on what the terminal has sent already; a shell and the system may both send SIGHUP.
            same = number != signal.SIGINT and time.monotonic() - self._asked_at < _LOOK_S
            if same or self._started_by_another:
                return
        self._interrupted = signal.Signals(number).name
        signal.signal(number, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        # What an exception would come upon, such as an import, may make another of it, or lose it.
        self._leave_interrupted()

    @property
    def _started_by_another(self) -> bool:
        """Whether a launcher waits for this process, passes signals on, and kills it when it takes too long."""
        return self._where.world_size > 1 or self._where.agent_store

    def _end_run(self, requests: Requests) -> None:
        self._asked_at = time.monotonic()
        requests.stop.set()
        if self._started_by_another:
            limit = threading.Timer(_SAVE_S, self._leave_late)
            limit.daemon = True
            limit.start()

    def _leave_late(self) -> None:
        """Told by process 0, or by another one if that was not asked; who comes too late finds it gone."""
        if self._where.rank > 0:
            time.sleep(_LOOK_S)
        if 0 not in (missing(self._where) or set()):
            tell(
                f"error: the run was asked to end and has not within {_SAVE_S:g} s; "
                "go on with --resume from its newest checkpoint"
            )
        os._exit(1)

    def _leave_interrupted(self) -> NoReturn:
        """What was to be ended has not begun, or was to end at once."""
        where, requests = self._where, self._requests
        by_torchrun = self._interrupted != "SIGINT" and where.world_size > 1
        if by_torchrun:
            # torchrun ends the others as soon as one has died, and one of them is to say so.
            gone = missing(where)  # now, while the others are here
            found = death(where, gone)
            if found is not None and found[1] == where.rank:
                who = describe(found[0])
                tell(f"error: {who} died: its process is gone; see its output above, then start the run anew")
            if found is None and requests is not None and _wait_until(requests.failed.is_set, _LOOK_S):
                self._interrupted = ""
                self.leave(requests.failures[0])
            if not gone and gone is not None:
                self._tell_interrupted()
            time.sleep(_LOOK_S)  # whoever is gone would seem to have died to those who look late
        else:
            self._tell_interrupted()
        leave_now(1)

    def _tell_interrupted(self) -> None:
        if self._where.rank == 0:
            tell(f"interrupted ({self._interrupted}); the run was ended before its last epoch")

    def _follow(self, parent: int) -> None:
        """Lead out where torchrun has died, if this process hangs on what it has from there."""
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        self._asked = True  # there is nobody left to do it
        time.sleep(_ORDER_S)
        gone = StageFailure("torchrun has died, which had started the processes of this run; start the run anew")
        gone.rank = self._where.first_here
        self.leave(gone)

    def _await_failure(self, requests: Requests) -> None:
        """Lead out where the thread that trains does not come to it, as in a transfer that cannot be ended."""
        requests.failed.wait()
        time.sleep(_ORDER_S)
        self.leave(requests.failures[0])


def _wait_until(happened: Callable[[], bool], limit_s: float) -> bool:
    """Whether it has within so long. Without a lock: the thread that a signal interrupts may hold it."""
    end = time.monotonic() + limit_s
    while not happened() and time.monotonic() < end:
        time.sleep(_LOOK_AGAIN_S)
    return happened()


def leave_now(status: int) -> NoReturn:
    """End the process without waiting for threads that may be blocked in a transfer to a process that is gone."""
    for stream in (sys.stdout, sys.stderr):
        # Closed, or nobody reads it any more, or a signal came while it was being written.
        with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
            stream.flush()
    os._exit(status)


def open_standard_streams() -> None:
    """Where one is closed the next file to be opened would get its number, and what is printed."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(opened)


def tell(line: str) -> None:
    """One line on standard error, safe for a terminal, if anybody listens; also from a handler of signals."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        encoding = getattr(sys.stderr, "encoding", None) or "ascii"
        os.write(sys.stderr.fileno(), f"{one_line(line, encoding)}\n".encode(encoding, "replace"))
