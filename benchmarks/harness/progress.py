"""A bar on standard error while an experiment runs: some take an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, track

__all__ = ["counted", "shown"]

T = TypeVar("T")


def shown(items: Sequence[T], what: str) -> Iterable[T]:
    """The items in turn; once a second the bar says how far it is. It stays away where nobody looks."""
    console = Console(stderr=True)
    return track(items, what, console=console, refresh_per_second=1, disable=not console.is_terminal, transient=True)


@contextmanager
def counted(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Likewise for what ends in any order, in any thread: every call is one more."""
    console = Console(stderr=True)
    with Progress(console=console, refresh_per_second=1, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
