"""Paths as a user gives them: the only place that expands `~`."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import ConfigError

__all__ = ["absolute", "check_working_folder", "expanded"]


def expanded(name: str, given: str | os.PathLike[str]) -> str:
    """The path given for `name`, such as `--output`, as text, with the home folder for `~`.

    Raises ConfigError for what is no path, and for the home of a user who is not known.
    """
    try:
        text = os.fsdecode(given)
    except TypeError:
        raise ConfigError(f"{name} is {given!r}; give a path") from None
    if not text or "\0" in text:
        raise ConfigError(f"{name} is {text!r}, which no file can be called; give a path")
    found = os.path.expanduser(text)  # noqa: PTH111  a Path forgets the ./ that makes a name of ~
    if found.startswith("~"):
        raise ConfigError(
            f"{name} is {text!r}, but no home folder of {found.partition('/')[0]} is known; write ./{text} for a file "
            "of that name"
        )
    return found


def absolute(name: str, given: str | os.PathLike[str]) -> str:
    """Likewise, from the root on: where it leads does not change with the working folder. Raises as both others."""
    path = Path(expanded(name, given))
    if not path.is_absolute():
        check_working_folder()
    return str(path.absolute())


def check_working_folder() -> None:
    """Raise ConfigError where it has been removed: torch looks for it as soon as it trains."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working folder has been removed; change to one that is there") from None
