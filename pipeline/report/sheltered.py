"""A display whose failure is its own: who looks may leave, the run goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from pipeline.report.display import Display, Unseen
from pipeline.report.records import EpochRecord, RunPlan, Summary
from pipeline.transport.messages import StageStatus

__all__ = ["Sheltered"]


class Sheltered(Display):
    """Shows what the display that `create` makes shows, until that fails; from then on notes go to the log.

    It fails when standard output is closed or its reader has gone, when the terminal is no more, and where a program
    has put something in their place that takes no text.
    """

    def __init__(self, create: Callable[[], Display]) -> None:
        self._display: Display = Unseen()
        with self._sheltered():
            self._display = create()

    def start(self, plan: RunPlan) -> None:
        with self._sheltered():
            self._display.start(plan)

    def status(self, stages: Sequence[StageStatus]) -> None:
        with self._sheltered():
            self._display.status(stages)

    def epoch(self, record: EpochRecord) -> None:
        with self._sheltered():
            self._display.epoch(record)

    def note(self, text: str) -> None:
        with self._sheltered():
            self._display.note(text)

    def finish(self, summary: Summary, folder: str | None, names: Sequence[str]) -> None:
        with self._sheltered():
            self._display.finish(summary, folder, names)

    def close(self) -> None:
        with self._sheltered():
            self._display.close()

    @contextlib.contextmanager
    def _sheltered(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:  # rich ends the program where a pipe is broken
            failed, self._display = self._display, Unseen()
            with contextlib.suppress(Exception, SystemExit):
                failed.close()  # what it has put in place of standard output
            if isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO):
                _read_by_nobody()


def _read_by_nobody() -> None:
    """Let what is left for standard output go nowhere: Python would complain of it when it ends.

    What a program has put in its place is the program's own.
    """
    own = sys.__stdout__
    if own is None or sys.stdout is not own:
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, own.fileno())
        os.close(nowhere)
