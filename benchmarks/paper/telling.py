"""What a person sees of a list of trainings: a line that is kept up on a terminal, else a line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from benchmarks.paper.page import error
from benchmarks.paper.results import Run
from benchmarks.paper.rows import Plan
from benchmarks.paper.training import Progress
from pipeline.text import one_line

__all__ = ["Teller", "duration"]

_EVERY_S = 60.0  # between lines where nobody watches


def duration(seconds: float) -> str:
    """`0:00:12`, `26:03:00`: hours, minutes, seconds."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class Teller:
    """Tells of plans one after another.

    Args:
        count: plans of the list.
        kept: those that had been trained before.
        console: where it is told.
    """

    def __init__(self, count: int, kept: int, console: Console) -> None:
        self._count, self._number, self._console = count, kept + 1, console
        self._status = Status("", console=console) if console.is_terminal else None
        self._told_at = -_EVERY_S
        if kept:
            self._line(f"{kept} of {count} trainings are kept already")

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def under_way(self, plan: Plan, progress: Progress, left: tuple[float, float] | None) -> None:
        """How far a training is, with the seconds left of its row and of the list."""
        if self._status is None and time.monotonic() - self._told_at < _EVERY_S:
            return
        self._told_at = time.monotonic()
        found = "" if progress.test_error_percent is None else f", test error {progress.test_error_percent:.2f} %"
        time_left = f"; left: {duration(left[0])} of the row, {duration(left[1])} of all" if left else ""
        text = f"{self._named(plan)}: epoch {progress.epochs} of {plan.epochs}{found}{time_left}"
        if self._status is None:
            self._line(text)
        else:
            self._status.update(one_line(text))

    def ended(self, plan: Plan, run: Run) -> None:
        self._line(f"{self._named(plan)}: {error([run])} % after {plan.epochs} epochs")
        self._next()

    def failed(self, plan: Plan, reason: Exception) -> None:
        self._line(f"{self._named(plan)}: not run: {reason}")
        self._next()

    def _next(self) -> None:
        self._number += 1
        self._told_at = -_EVERY_S

    def _named(self, plan: Plan) -> str:
        return f"{self._number}/{self._count} {plan.row}, seed {plan.seed}"

    def _line(self, text: str) -> None:
        self._console.print(one_line(text, self._console.encoding), markup=False, highlight=False, soft_wrap=True)
