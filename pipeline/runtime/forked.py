"""Forked processes: a fork has no threads of its parent's, but may wait for them without end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from pathlib import Path

import torch

from pipeline.errors import ConfigError

__all__ = ["check_threads"]

_LIMIT_S = 10.0  # for a few microseconds of work
_LOOK_S = 0.002
_VALUES = 1 << 17  # enough for torch to share them out

_FIRST = os.getpid()  # of the process that has imported this


def check_threads() -> None:
    """Raise ConfigError in a fork where torch cannot compute with several threads, since its parent has before.

    OpenMP keeps the threads of a thread that has computed, and in a fork waits for them, though they are gone; it says
    nothing of it. So a process of our own, forked in turn, tries. Where this one has threads it may well have computed
    with them by itself, and a fork of it would tell of them alone: then nothing is said.
    """
    if (os.getpid() == _FIRST and multiprocessing.parent_process() is None) or not _has_one_thread():
        return
    if not _computes():
        raise ConfigError(
            "this process was forked by one that had computed with several threads, for which torch would wait here "
            "without end; give threads=1, or start it by the method spawn of multiprocessing"
        )


def _has_one_thread() -> bool:
    """Whether the system knows of no thread but this one; False where it does not tell."""
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        return False


def _computes() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the caller's threads, which do not matter to it
        process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(2)
            torch.ones(_VALUES).add_(1)
        finally:
            os._exit(0)
    start = time.monotonic()
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() - start > _LIMIT_S:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return False
        time.sleep(_LOOK_S)
    return True
