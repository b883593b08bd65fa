"""What may fail without costing the run: it is told instead."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import first_line

__all__ = ["attempt"]


def attempt(what: str, act: Callable[[], object]) -> list[str]:
    """Call `act`; what the user should know if it fails: that `what` could not be written, and why."""
    try:
        act()
    except Exception as error:
        return [f"{what} could not be written ({first_line(error)})"]
    return []
