"""Which process runs which stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.learning.balance import members

__all__ = ["Topology"]


@dataclass(frozen=True)
class Topology:
    """The stages of a run and the processes that run them: one each, or all in one process."""

    split: tuple[int, ...]  # blocks of each stage
    ranks: tuple[int, ...]  # the process of each stage

    @classmethod
    def over(cls, split: Sequence[int], world_size: int) -> Topology:
        """A stage a process, or all in the only one."""
        return cls(tuple(split), tuple(range(len(split))) if world_size > 1 else (0,) * len(split))

    @property
    def stages(self) -> int:
        return len(self.split)

    def stages_of(self, rank: int) -> list[int]:
        """Stages that a process runs."""
        return [stage for stage, owner in enumerate(self.ranks) if owner == rank]

    def owners(self) -> dict[int, int]:
        """The process of every block."""
        return {block: self.ranks[stage] for stage, blocks in enumerate(members(self.split)) for block in blocks}

    def neighbours(self, rank: int) -> tuple[int | None, int | None]:
        """The processes that a process receives from and sends to."""
        own = self.stages_of(rank)
        before, after = own[0] - 1, own[-1] + 1
        return self.ranks[before] if before >= 0 else None, self.ranks[after] if after < self.stages else None
