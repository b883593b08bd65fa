"""The three failures a user can meet, each printed as one line."""

from __future__ import annotations

from pipeline.text import one_line

__all__ = ["ConfigError", "DataError", "Interrupted", "PipelineError", "StageFailure", "first_line", "out_of_memory"]


class PipelineError(Exception):
    """Base of all errors that carry a complete message for the user: what is wrong, the values, the remedy.

    It is one printable line, whatever is in the names and values that it holds.
    """

    rank: int = 0  # the process it came from, which is the one to print it

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class ConfigError(PipelineError, ValueError):
    """A flag, a configuration file or a combination of values cannot be trained; found before any training."""


class DataError(PipelineError):
    """A data set is missing, incomplete or does not fit the configuration; found before any training."""


class StageFailure(PipelineError, RuntimeError):
    """A stage failed while the run was under way; the message names the stage and the cause."""


class Interrupted(StageFailure):
    """The run was asked to end before it was done, and has."""


def first_line(error: BaseException) -> str:
    """The message of an error cut to one line, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: torch has a class for that of a GPU, and none for a CPU's."""
    kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return kind or "DefaultCPUAllocator" in str(error)
