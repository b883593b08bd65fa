"""torch's pipeline schedules over chunks that sleep.

A chunk sleeps for its forward, for the gradient of its input, and for that of its weights. torch asks for the last
two at once, or, in zero-bubble schedules, separately: its `dw_builder` is where a chunk says how the second is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.contenders.torch_schedules import CHUNKS, Stage, chunks_of, create_schedule
from benchmarks.emulation.load import BATCH, SHAPE, Load, Turn, Window, Work
from benchmarks.harness.crew import Member

__all__ = ["Chunk", "Scheduled"]


class _Pause(torch.autograd.Function):
    """The identity, slowly: forward, and the gradient of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pause: Callable[[], None]) -> Tensor:
        ctx.pause = pause
        pause()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.pause()
        return gradients[0].clone(), None


class Chunk(nn.Module):
    """A part of the network that sleeps the same time for forward, input gradient and weight gradient."""

    def __init__(self, pause: Callable[[], None]) -> None:
        super().__init__()
        self.pause = pause

    def forward(self, x: Tensor) -> Tensor:
        """`x`, later. The first chunk's input wants no gradient, but its stage works as long as the others do."""
        wanted = x if x.requires_grad else x.detach().requires_grad_()
        return cast(Tensor, _Pause.apply(wanted, self.pause))

    def weight_gradient(self) -> Callable[[], None]:
        """What torch calls for the gradient of the weights of one microbatch."""
        return self.pause


class Scheduled:
    """One process's part in a schedule of torch's.

    Args:
        member: the process.
        load: of the pipeline; a process is one of its stages.
        name: of the schedule.
        microbatches: that a batch is cut into.
    """

    def __init__(self, member: Member, load: Load, name: str, microbatches: int) -> None:
        mine, count = chunks_of(member.rank, member.size, name), member.size * CHUNKS[name]
        self.load, self.rank, self.batch = load, member.rank, 0
        self.work = Work(load, member.rank, 0)
        self._share = 1 / (3 * microbatches * len(mine))
        chunks = [Chunk(self._pause) for _ in mine]
        stages = [
            Stage(chunk, index, count, torch.device("cpu"), dw_builder=chunk.weight_gradient)
            for chunk, index in zip(chunks, mine, strict=True)
        ]
        self._schedule = create_schedule(name, stages, microbatches, _loss)
        self._inputs = (torch.zeros(BATCH, *SHAPE),) if 0 in mine else ()
        self._targets: dict[str, Any] = {"target": torch.zeros(BATCH)} if count - 1 in mine else {}

    def run(self, turn: int, window: Window) -> Turn:
        """The measured batches after one more: a schedule drains after every batch, and needs no longer warm-up."""
        self.work = Work(self.load, self.rank, turn)
        dist.barrier()
        for self.batch in range(window.warm_up - 1, window.warm_up + window.count):
            self._schedule.step(*self._inputs, **self._targets)
            self.work.finish(self.batch)
        return self.work.measured(window)

    def _pause(self) -> None:
        self.work.sleep(self.batch, self._share)


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return output.mean() + target.mean()
