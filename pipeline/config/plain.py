"""What a program may give instead of a plain value: numpy's and torch's scalars and arrays, paths, devices.

Neither numpy nor torch is imported: their values are known by what they can do, which may also be to raise anything.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Mapping, Set
from itertools import islice
from typing import Any

__all__ = ["plain_number", "plain_numbers", "plain_switch", "plain_text"]

_MOST = 10_000  # numbers of a sequence: a generator may have no end


def plain_number(value: Any, *, whole: bool) -> Any:
    """An int or a float, where `value` stands for one number; else as it is. Truth values are not numbers."""
    if isinstance(value, str) or _is_switch(value) or _kind(value).startswith("complex") or _is_array(value):
        return value
    with contextlib.suppress(Exception):
        return int(operator.index(value))
    if not whole and hasattr(value, "__float__"):
        with contextlib.suppress(Exception):
            return float(value)
    return value


def plain_numbers(value: Any) -> tuple[Any, ...]:
    """The whole numbers of a sequence, as `plain_number` gives them; what has no order, or no end, alone."""
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping | Set):
        return (value,)
    with contextlib.suppress(Exception):
        numbers = tuple(plain_number(each, whole=True) for each in islice(value, _MOST + 1))
        if len(numbers) <= _MOST:
            return numbers
    return (value,)


def plain_switch(value: Any) -> Any:
    """A bool, where `value` is a truth value; else as it is: numbers and words are none."""
    if _is_switch(value) and not _is_array(value):
        with contextlib.suppress(Exception):
            return bool(value)
    return value


def plain_text(value: Any) -> Any:
    """A str, where `value` is a text, a path or a device of torch; else as it is."""
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration's member its value, not its name
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    kind, index = getattr(value, "type", None), getattr(value, "index", None)
    if not isinstance(kind, str) or not isinstance(index, int | None):
        return value
    return kind if index is None or kind == "cpu" else f"{kind}:{index}"


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or _kind(value) == "bool"


def _is_array(value: Any) -> bool:
    return bool(getattr(value, "ndim", False))


def _kind(value: Any) -> str:
    """The number format of a scalar or an array, as numpy and torch name it; empty without one."""
    return str(getattr(value, "dtype", "")).rpartition(".")[2]
