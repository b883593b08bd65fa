"""Checks of single fields: what is wrong, the value, what to give instead."""

from __future__ import annotations

import math

from pipeline.errors import ConfigError

__all__ = ["check_choice", "check_number", "flag_name"]


def flag_name(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def check_number(config: object, name: str, *, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Check that a field is a finite number in [low, high] ((low, high] with `open_low`)."""
    value = getattr(config, name)
    whole = isinstance(low, int)
    kind = "a whole number" if whole else "a finite number"
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if fits and (value > low if open_low else value >= low) and value <= high:
        return
    bound = f"above {low:g}" if open_low else f"at least {low:g}"
    top = "" if high == math.inf else f" and at most {high:g}"
    raise ConfigError(f"{flag_name(name)} is {value!r}; give {kind} {bound}{top}")


def check_choice(config: object, name: str, options: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in options:
        raise ConfigError(f"{flag_name(name)} is {value!r}; choose one of {', '.join(options)}")
