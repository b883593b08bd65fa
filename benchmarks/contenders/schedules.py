"""torch's pipeline schedules around a real network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.contenders.backprop import backprop_optimizer
from benchmarks.contenders.common import (
    Mixed,
    Trained,
    build_blocks,
    choose_device,
    cross_entropy,
    describe,
    error_percent,
    open_batches,
    timed_epochs,
    told_by_first,
)
from benchmarks.contenders.torch_schedules import CHUNKS, Stage, chunks_of, create_schedule, equal_parts
from benchmarks.harness.crew import Member
from pipeline.config.schema import RunConfig
from pipeline.data.batches import Batches
from pipeline.errors import ConfigError
from pipeline.learning.balance import balance, members
from pipeline.learning.profile import count_costs
from pipeline.network.spec import infer_shapes

__all__ = ["SCHEDULES", "train_scheduled"]

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "ZBVZeroBubble")
"""torch's schedules that real networks are trained in; of the two with zero bubbles the better one."""


class _Rows(torch.autograd.Function):
    """The NHWC view of a channels_last map as a tensor of its own on the same memory: zero-bubble schedules detach
    what a chunk returns in place, which a view forbids."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).contiguous()
        return cast(Tensor, cast(Any, torch.empty(0, dtype=x.dtype, device=x.device)).set_(rows))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].permute(0, 3, 1, 2)


class _Chunk(Mixed):
    """Consecutive blocks. Feature maps travel as NHWC, because gloo takes contiguous tensors only: a view, no copy."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.permute(0, 3, 1, 2) if x.ndim == 4 else x)
        return cast(Tensor, _Rows.apply(out)) if out.ndim == 4 else out


class _Scheduled:
    """One process's chunks of the network under one of torch's schedules."""

    def __init__(self, member: Member, config: RunConfig, batches: Batches, name: str, microbatches: int) -> None:
        self.device = choose_device(member, config)
        self.member, self.network = member, describe(config, batches)
        self.config = config
        count = member.size * CHUNKS[name]
        shapes = infer_shapes(self.network, tuple(batches.shape))
        split = balance(count_costs(config.train, self.network, shapes, batches.classes), count)
        self.mine = chunks_of(member.rank, member.size, name)
        self.first, self.last = 0 in self.mine, count - 1 in self.mine
        blocks = build_blocks(self.network, config.train.seed, self.device, batches)
        self.blocks = {index: blocks[index] for chunk in self.mine for index in members(split)[chunk]}
        chunks = [
            _Chunk([self.blocks[index] for index in members(split)[chunk]], config.train, self.device)
            for chunk in self.mine
        ]
        self.optimizers = [
            backprop_optimizer(config.train, chunk, outputs=index == count - 1)
            for chunk, index in zip(chunks, self.mine, strict=True)
        ]
        stages = [Stage(chunk, index, count, self.device) for chunk, index in zip(chunks, self.mine, strict=True)]
        self.schedule = create_schedule(name, stages, microbatches, cross_entropy(config.train))

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One batch in microbatches, then one update."""
        inputs = (images.permute(0, 2, 3, 1).contiguous() if images.ndim == 4 else images,) if self.first else ()
        targets: dict[str, Any] = {"target": labels.to(self.device)} if self.last else {}
        self.schedule.step(*inputs, **targets)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def error(self, batches: Batches) -> float:
        """Test error of the network put together in process 0; the others get it too."""
        parts: list[Any] = [None] * self.member.size
        mine = {index: {n: t.cpu() for n, t in block.state_dict().items()} for index, block in self.blocks.items()}
        dist.gather_object(mine, parts if self.member.rank == 0 else None)
        return told_by_first(self.member, lambda: self._error_of(parts, batches))

    def _error_of(self, parts: Sequence[Any], batches: Batches) -> float:
        whole = build_blocks(self.network, self.config.train.seed, self.device)
        for part in parts:
            for index, state in part.items():
                whole[index].load_state_dict(state)
        return error_percent(Mixed(whole, self.config.train, self.device), batches.test(), self.device)


def train_scheduled(member: Member, config: RunConfig, name: str, microbatches: int) -> Trained:
    """In torch's pipeline schedule `name`. Batch norm sees microbatches: not quite the same training.

    Raises ConfigError where a batch cannot be cut into so many equal ones.
    """
    batch = config.train.batch_size
    if batch % microbatches:
        told = f"batches of {batch} cannot be cut into {microbatches} equal microbatches"
        raise ConfigError(f"{told}; {equal_parts(batch, microbatches)} are equal")
    batches = open_batches(config, choose_device(member, config))
    scheduled = _Scheduled(member, config, batches, name, microbatches)
    return timed_epochs(
        member,
        config,
        batches,
        scheduled.device,
        step=scheduled.step,
        optimizers=scheduled.optimizers,
        error=lambda: scheduled.error(batches),
    )
