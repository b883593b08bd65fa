"""torch's pipeline schedules: which chunks of a network each process holds, and how a schedule is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle, get_schedule_class

__all__ = ["CHUNKS", "Schedule", "Stage", "chunks_of", "create_schedule", "equal_parts"]

CHUNKS = {"GPipe": 1, "1F1B": 1, "Interleaved1F1B": 2, "InterleavedZeroBubble": 2, "ZBVZeroBubble": 2}
"""The schedules that are compared, and the chunks of the network that each of their processes holds."""

Schedule = PipelineScheduleSingle | PipelineScheduleMulti


class Stage(PipelineStage):
    """torch's stage, which in torch 2.11 greets its neighbours by messages even where they are in its own process, as
    at the turn of a V; gloo cannot send to itself. Newer ones do not."""

    def _get_init_p2p_neighbors_ops(self) -> list[dist.P2POp]:
        return [each for each in super()._get_init_p2p_neighbors_ops() if each.group_peer != self.group_rank]


def chunks_of(rank: int, processes: int, schedule: str) -> list[int]:
    """Chunks that a process holds: one; every K-th (interleaved); or both ends of a V (zero bubble V).

    For 2 processes: [0] and [1]; [0, 2] and [1, 3]; [0, 3] and [1, 2].
    """
    if CHUNKS[schedule] == 1:
        return [rank]
    last = 2 * processes - 1
    return [rank, last - rank] if schedule.startswith("ZBV") else [rank, rank + processes]


def equal_parts(batch: int, at_least: int) -> int:
    """The least number of microbatches from `at_least` on that are equal; torch's buffers have one shape."""
    return next(count for count in range(at_least, batch + 1) if batch % count == 0)


def create_schedule(
    name: str, stages: Sequence[Stage], microbatches: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> Schedule:
    """torch's schedule `name` over the chunks of this process, in the order of `chunks_of`."""
    kind: Any = get_schedule_class(name)
    return cast(Schedule, kind(stages[0] if CHUNKS[name] == 1 else list(stages), microbatches, loss_fn=loss))
