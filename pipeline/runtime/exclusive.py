"""One run at a time in a process: what a run sets, such as torch's default generator, a process has only once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ConfigError

__all__ = ["only_run"]

_RUNS: dict[int, object] = {}  # of this process: the run in it, by process id, since a fork is another process


@contextmanager
def only_run() -> Iterator[None]:
    """Raise ConfigError if another run is under way in this process, in whichever thread; it does not wait for it."""
    process, mine = os.getpid(), object()
    if _RUNS.setdefault(process, mine) is not mine:  # which is one indivisible step
        raise ConfigError(
            "another run is under way in this process, and the two would draw each other's random numbers; start this "
            "one after it, or in a process of its own"
        )
    try:
        yield
    finally:
        del _RUNS[process]
