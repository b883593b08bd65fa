"""A console on standard output, whatever a program has put in its place."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import IO, Any, cast

from rich.console import Console

__all__ = ["is_terminal", "standard_console"]

_USUAL_WIDTH = 80


def standard_console() -> Console:
    """Plain text also in a notebook; on nothing at all where there is no standard output."""
    console = _on_standard_output()
    if console.width < 1:  # as COLUMNS=0 says: nothing would be written
        console.width = _USUAL_WIDTH
    return console


def _on_standard_output() -> Console:
    stream = cast(Any, sys.stdout)
    if getattr(stream, "closed", False):
        stream = None
    elif stream is None or hasattr(stream, "flush"):
        with contextlib.suppress(Exception):  # of what cannot say whether it is a terminal
            return Console(force_jupyter=False)  # which follows sys.stdout when it is replaced
    return Console(file=cast(IO[str], _Writer(stream)), force_jupyter=False)


def is_terminal() -> bool:
    """Whether standard output is one: not where it is closed, or cannot say."""
    try:
        return bool(cast(Any, sys.stdout).isatty())
    except Exception:
        return False


class _Writer(io.TextIOBase):
    """What a stream lacks that can do no more than `write`; without a stream what is written is lost."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._stream is not None:
            self._stream.write(text)
        return len(text)
