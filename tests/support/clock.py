"""A clock for what would else hang on the speed of the machine."""

from __future__ import annotations

__all__ = ["Clock"]


class Clock:
    """Stands for the module `time`: its time passes only where somebody sleeps."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def perf_counter(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds
