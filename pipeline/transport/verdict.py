"""The failure that ends a generation, and how processes tell each other of it."""

from __future__ import annotations

import json
import re
import threading

from pipeline.errors import PipelineError, StageFailure
from pipeline.text import json_text

__all__ = ["Verdict", "known", "known_to_all", "lost_connection", "read_report", "report"]

_LONGEST = 10_000  # characters of a failure's message
_LOST = "Connection closed by peer|Connection reset by peer|Timed out waiting|pair closure|Broken pipe"


class Verdict:
    """What this process knows of it. The first failure of a generation stands, whichever thread learns of it."""

    def __init__(self) -> None:
        self._learnt: tuple[int, str, int] | None = None  # generation, message and process
        self._lock = threading.Lock()

    def learn(self, generation: int, message: str, rank: int) -> bool:
        """Keep a failure; whether it is the first of its generation."""
        with self._lock:
            first = self._learnt is None or self._learnt[0] != generation
            if first:
                self._learnt = (generation, message, rank)
        return first

    def of(self, generation: int) -> PipelineError | None:
        """What has ended a generation, if anything has."""
        learnt = self._learnt
        return known(*learnt[1:]) if learnt is not None and learnt[0] == generation else None


def known(message: str, rank: int) -> PipelineError:
    """The error that every process raises; `rank` is the one it came from, which prints it."""
    error = StageFailure(message)
    error.rank = rank
    return error


def known_to_all(error: PipelineError) -> bool:
    """Whether the error came from the control channel, so that every process raises it."""
    return "rank" in vars(error)


def report(message: str, rank: int) -> str:
    """A failure as it lies in the store."""
    return json_text({"rank": rank, "message": message[:_LONGEST]})


def read_report(text: str | bytes) -> tuple[str, int]:
    """Message and process of a report; of one that no process of ours has written, that it is one, told by the first.

    The text may be anybody's who reaches the store.
    """
    try:
        told = json.loads(text)
        message, rank = told["message"], told["rank"]
    except (ValueError, TypeError, LookupError, RecursionError):
        message, rank = None, None
    if not isinstance(message, str) or type(rank) is not int:
        return "torchrun's store has been told of a failure by no process of this run; look who reaches its port", 0
    return message[:_LONGEST], rank


def lost_connection(error: BaseException) -> bool:
    """Whether an error of torch.distributed means that another process is gone; it has no class for that."""
    return isinstance(error, RuntimeError) and re.search(_LOST, str(error)) is not None
