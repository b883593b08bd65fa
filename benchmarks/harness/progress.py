"""A bar on standard error while an experiment runs: some take an hour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

__all__ = ["shown"]

T = TypeVar("T")


def shown(items: Sequence[T], what: str) -> Iterable[T]:
    """The items in turn; once a second the bar says how far it is. It stays away where nobody looks."""
    console = Console(stderr=True)
    return track(items, what, console=console, refresh_per_second=1, disable=not console.is_terminal, transient=True)
