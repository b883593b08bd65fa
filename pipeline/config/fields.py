"""Fields that describe and check themselves: one source for a flag, its help, its page and the check of its value."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from pipeline.config.plain import plain_number, plain_numbers, plain_switch, plain_text
from pipeline.errors import ConfigError
from pipeline.text import shown

__all__ = ["Bounds", "Option", "are_counts", "check_fields", "described", "flag_name", "joined", "option", "several"]

T = TypeVar("T")


def joined(counts: Iterable[Any]) -> str:
    """Block counts as the command line takes them, such as 3,2,2,1; also what was given instead."""
    return ",".join(one if isinstance(one, str) else shown(one) for one in counts)


def several(value: Any) -> tuple[Any, ...]:
    """What may be given as one number or as some, in a list where TOML or a program gives them."""
    return value if isinstance(value, tuple) else (value,)


def are_counts(values: tuple[Any, ...], most: int = 1_000_000) -> bool:
    """Whether there are some, all of them whole numbers from 1 to `most`."""
    return bool(values) and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= most for n in values)


def flag_name(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class Bounds:
    """Finite numbers in [low, high], or (low, high] with `open_low`; a whole `low` allows whole numbers only.

    `why` says in a few words what forbids numbers above `high`.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    why: str = ""

    def __str__(self) -> str:
        top = (
            ""
            if self.high == math.inf
            else f" and at most {self.high if isinstance(self.high, int) else format(self.high, 'g')}"
        )
        return (f"above {self.low:g}" if self.open_low else f"at least {self.low:g}") + top

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError unless the value of the field `name` lies within."""
        whole = isinstance(self.low, int)
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        fits = fits and (whole or abs(value) <= sys.float_info.max) and self.low <= value <= self.high
        if fits and not (self.open_low and value == self.low):
            return
        kind = "a whole number" if whole else "a finite number"
        above = isinstance(value, int | float) and value > self.high
        why = f" ({self.why})" if above and self.why else ""
        raise ConfigError(f"{flag_name(name)} is {shown(value)}; give {kind} {self}{why}")


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
    """Make each field of `part` a plain value, and check it by itself.

    `part` is the class of `config` or one that it inherits from. A program may give what stands for a number, a
    switch, text or a sequence: numpy's and torch's scalars and arrays, paths, devices.
    """
    for f, told in described(part):
        kind, value, allowed = str(f.type), getattr(config, f.name), told.allowed
        if kind.endswith(" | None") and (value is None or _names_nothing(value, told)):
            object.__setattr__(config, f.name, None)
            continue
        value = _plain(kind.removesuffix(" | None"), value)
        object.__setattr__(config, f.name, value)
        if isinstance(allowed, tuple) and not (isinstance(value, str) and value in allowed):
            raise ConfigError(f"{flag_name(f.name)} is {shown(value)}; choose one of {', '.join(allowed)}")
        if isinstance(allowed, Bounds):
            allowed.check(f.name, value)
        if kind == "str" and not isinstance(value, str):
            raise ConfigError(f"{flag_name(f.name)} is {shown(value)}; give {told.given or 'text'}")
        if kind == "bool" and not isinstance(value, bool):
            raise ConfigError(f"{flag_name(f.name)} is {shown(value)}; give True or False")


def _names_nothing(value: Any, told: Option) -> bool:
    """Whether it is the command line's word for None, such as `auto`: the first of what may be given."""
    return isinstance(value, str) and "," in told.given and value == told.given.partition(",")[0]


def _plain(kind: str, value: Any) -> Any:
    """What stands for a value of an annotated kind as that value; what stands for none as it is."""
    if kind.startswith("tuple"):
        one = plain_number(value, whole=True)
        if isinstance(one, int):
            return one if kind.endswith("int") else (one,)
        return plain_numbers(value)
    read = {"bool": plain_switch, "str": plain_text}.get(kind)
    return read(value) if read else plain_number(value, whole=kind == "int")
