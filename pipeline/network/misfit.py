"""What is said of a block that fails on what it is given."""

from __future__ import annotations

import traceback
from pathlib import Path

from pipeline.errors import ConfigError, first_line, out_of_memory

__all__ = ["misfit"]


def misfit(name: str, shape: tuple[int, ...], error: Exception, tried: str) -> ConfigError:
    """A block fails on what it is given, which is `tried`, such as 2 samples."""
    if out_of_memory(error):
        return ConfigError(
            f"{name} runs out of memory with {tried}, each of shape {list(shape)} ({first_line(error)}); make the "
            "samples or the block smaller"
        )
    return ConfigError(
        f"{name} does not take input of shape {list(shape)}: {_reason(error)} (with {tried}); change the block or the "
        "one before it"
    )


def _reason(error: Exception) -> str:
    text = str(error).strip()
    if "indices" in text and "Long" in text:
        return (
            f"it looks up token ids, which are not supported, since what blocks take are floats ({first_line(error)})"
        )
    if "through the graph a second time" in text:
        return "it computes with what it kept of the batch before, as with a hidden state; detach what it keeps"
    if not text:
        at = traceback.extract_tb(error.__traceback__)[-1]
        text = f"line {at.lineno} of {Path(at.filename).name}, {at.line}"
    return f"{type(error).__name__}: {text.splitlines()[0]}"
