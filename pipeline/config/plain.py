"""What a program may give instead of a plain value: numpy's and torch's scalars, paths, devices.

Neither numpy nor torch is imported: their values are known by what they can do.
"""

from __future__ import annotations

import operator
import os
from typing import Any

__all__ = ["plain_number", "plain_switch", "plain_text"]


def plain_number(value: Any, *, whole: bool) -> Any:
    """An int or a float, where `value` stands for one number; else as it is. Truth values are not numbers."""
    if isinstance(value, str) or _is_switch(value) or _kind(value).startswith("complex") or _is_array(value):
        return value
    try:
        return int(operator.index(value))
    except TypeError:
        pass
    if whole or not hasattr(value, "__float__"):
        return value
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return value


def plain_switch(value: Any) -> Any:
    """A bool, where `value` is a truth value; else as it is: numbers and words are none."""
    return bool(value) if _is_switch(value) and not _is_array(value) else value


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
