"""Fields that describe and check themselves: one source for a flag, its help, its page and the check of its value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from pipeline.errors import ConfigError

__all__ = ["Bounds", "Option", "are_counts", "check_fields", "described", "flag_name", "joined", "option", "several"]

T = TypeVar("T")


def joined(counts: Iterable[int]) -> str:
    """Block counts as the command line takes them, such as 3,2,2,1."""
    return ",".join(map(str, counts))


def several(value: Any) -> tuple[Any, ...]:
    """What may be given as one number or as some, in a list where TOML or a program gives them."""
    return tuple(value) if isinstance(value, Iterable) else (value,)


def are_counts(values: tuple[Any, ...], most: float = math.inf) -> bool:
    """Whether there are some, all of them whole numbers from 1 to `most`."""
    return bool(values) and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= most for n in values)


def flag_name(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Bounds:
    """Finite numbers in [low, high], or (low, high] with `open_low`; a whole `low` allows whole numbers only."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def __str__(self) -> str:
        top = "" if self.high == math.inf else f" and at most {self.high:g}"
        return (f"above {self.low:g}" if self.open_low else f"at least {self.low:g}") + top

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError unless the value of the field `name` lies within."""
        whole = isinstance(self.low, int)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and self.low <= value <= self.high
        if fits and not (self.open_low and value == self.low):
            return
        kind = "a whole number" if whole else "a finite number"
        raise ConfigError(f"{flag_name(name)} is {value!r}; give {kind} {self}")


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says of itself."""

    text: str  # its meaning
    allowed: Bounds | tuple[str, ...] | None  # numbers within bounds, or one of a few texts; None is anything
    shown: str  # the default as a reader sees it
    metavar: str  # stands for the value; empty for a switch, which is off by default
    given: str = ""  # what may be given, where `allowed` does not say it
    doc: str = ""  # its meaning for docs/flags.md, where that takes more words than `--help` has room for

    @property
    def values(self) -> str:
        """What may be given, in words; empty where anything may."""
        return self.given or (", ".join(self.allowed) if isinstance(self.allowed, tuple) else str(self.allowed or ""))

    @property
    def help(self) -> str:
        return self.text + (f": {self.values}" if self.values else "") + (f" ({self.shown})" if self.shown else "")


def option(default: T, text: str, allowed: Bounds | tuple[str, ...] | None = None, **words: str) -> T:
    """A field with a default, described by an Option; which of its `words` are not given follow from the default."""
    shown = f"{default:g}" if isinstance(default, int | float) else str(default or "")
    metavar = {float: "F", str: "NAME"}.get(type(default), "N")
    if isinstance(default, bool):
        shown = metavar = ""
    told = Option(text=text, allowed=allowed, **{"shown": shown, "metavar": metavar, **words})
    return field(default=default, metadata={"option": told})


def described(*configs: type) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of configurations that are flags."""
    return ((f, f.metadata["option"]) for config in configs for f in fields(config) if "option" in f.metadata)


def check_fields(config: object, part: type) -> None:
    """Check each field of `part` by itself; `part` is the class of `config` or one that it inherits from."""
    for f, told in described(part):
        value, allowed = getattr(config, f.name), told.allowed
        if isinstance(allowed, tuple) and value not in allowed:
            raise ConfigError(f"{flag_name(f.name)} is {value!r}; choose one of {', '.join(allowed)}")
        if isinstance(allowed, Bounds) and value is not None:
            allowed.check(f.name, value)
