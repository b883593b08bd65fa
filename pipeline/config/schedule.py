"""When things happen in a run: how long is trained, and when is looked."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.fields import Bounds, check_fields, option

__all__ = ["Schedule"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    epochs: int = option(
        10,
        "passes over the training samples",
        Bounds(1, 1_000_000, why="a run would never end"),
        shown="the recipe's; 10 without",
    )
    eval_every: int = option(
        1,
        "epochs between evaluations; the last epoch always has one",
        Bounds(1, 1_000_000, why="no run has more epochs"),
    )

    checkpoint_every: int | None = option(
        None, "steps between checkpoints", Bounds(1, 10**12, why="no run has more steps"), shown="once per epoch"
    )
    keep: int = option(3, "newest checkpoints that are kept", Bounds(1, 1000, why="they fill the disk"))
    checkpoint_local: bool = option(
        False, "each process saves its own blocks on its own disk; else process 0 saves all"
    )

    def __post_init__(self) -> None:
        check_fields(self, Schedule)

    def evaluates(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, ends with an evaluation."""
        return epoch % self.eval_every == 0 or epoch == self.epochs
