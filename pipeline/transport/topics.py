"""Topics of the control channel: the name of a message and its type, in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

from pipeline.transport.control import Control
from pipeline.transport.messages import StageEpoch, StagePlan, StageStatus, StageSummary

__all__ = ["EPOCHS", "PLANS", "STATUS", "SUMMARIES", "Topic"]

T = TypeVar("T")


@dataclass(frozen=True)
class Topic(Generic[T]):
    """A name on the control channel, and the type of what is published under it: a dataclass, or JSON values."""

    name: str
    kind: type[T]

    def publish(self, control: Control, part: object, value: T) -> None:
        """Tell one part of it, such as a stage's; a later value replaces it."""
        control.publish(f"{self.name}/{part}", _plain(value))

    def post(self, control: Control, part: object, value: T) -> None:
        """Likewise, without a wait for the store: for the thread that trains."""
        control.post(f"{self.name}/{part}", _plain(value))

    def peek(self, control: Control, part: object) -> T | None:
        """A part, or None if nobody has told it yet."""
        key = f"{self.name}/{part}"
        told = control.peek(key)
        return None if told is None else control.whole(key, lambda: cast(T, decoded(self.kind, told)))

    def read(self, control: Control, part: object, rank: int) -> T:
        """Wait for a part that `rank` tells. Raises StageFailure if that process fails or falls silent."""
        key = f"{self.name}/{part}"
        told = control.read(key, rank)
        return control.whole(key, lambda: cast(T, decoded(self.kind, told)))

    def gather(self, control: Control, ranks: Sequence[int]) -> list[T]:
        """Wait for parts 0, 1, ... of the processes named."""
        return [self.read(control, part, rank) for part, rank in enumerate(ranks)]

    def share(self, control: Control, mine: T | None) -> T:
        """Process 0's value, in every process; the others give None."""
        if mine is not None:
            self.publish(control, 0, mine)
        return self.read(control, 0, 0)


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def decoded(kind: Any, value: Any) -> Any:
    """What JSON made of a `kind`, as that again: dataclasses, tuples and None within each other, else as it is.

    A number that was not finite is nan, or None where that may be. Raises an error of Python's where it is no `kind`.
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return cast(Any, kind)(**{f.name: decoded(hints[f.name], value[f.name]) for f in fields(kind)})
    if kind is float and value is None:
        return math.nan
    if isinstance(kind, UnionType):
        return None if value is None else decoded(get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        return tuple(decoded(get_args(kind)[0], one) for one in _of(list, value))
    return _of(kind, value) if isinstance(kind, type) else value


def _of(kind: type, value: Any) -> Any:
    wanted: Any = (float, int) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


PLANS = Topic("plan", StagePlan)
STATUS = Topic("status", StageStatus)
EPOCHS = Topic("epoch", StageEpoch)  # parts are "<epoch>/<stage>"
SUMMARIES = Topic("summary", StageSummary)
