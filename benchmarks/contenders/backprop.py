"""Global backprop, written as well as torch allows: channels_last, fused optimizer, nothing waits for a number."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders.captured import Step, captured
from benchmarks.contenders.checkpointing import Checkpointed
from benchmarks.contenders.common import (
    Mixed,
    Trained,
    cross_entropy,
    error_percent,
    opened,
    timed_epochs,
    told_by_first,
)
from benchmarks.harness.crew import Member
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.data.batches import Batches
from pipeline.learning.muon import score_weights
from pipeline.learning.norms import norm_biases
from pipeline.learning.optimizer import create_optimizer, is_recordable

__all__ = [
    "backprop_optimizer",
    "backprop_step",
    "part_of",
    "step_on_part",
    "train_backprop",
    "train_checkpointed",
    "train_ddp",
]


def train_backprop(member: Member, config: RunConfig) -> Trained:
    """In one process, with all its threads."""
    device, batches, blocks = opened(member, config)
    model = Mixed(blocks, config.train, device)
    return _train(member, config, batches, device, model, model)


def train_checkpointed(member: Member, config: RunConfig) -> Trained:
    """In one process, with activations computed again block by block: the same training."""
    device, batches, blocks = opened(member, config)
    model = Mixed(map(Checkpointed, blocks), config.train, device)
    return _train(member, config, batches, device, model, model)


def train_ddp(member: Member, config: RunConfig) -> Trained:
    """Every process has the whole network and an equal part of each batch; gradients are averaged.

    Batch norm sees that part only, so that this is not quite the same training, and keeps running statistics of its
    own in every process: the network that counts is that of process 0.
    """
    device, batches, blocks = opened(member, config)
    model = Mixed(blocks, config.train, device)
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    replica.broadcast_buffers = False  # not as an argument, which newer torch wants by a name that older does not know
    return _train(member, config, batches, device, replica, model)


def backprop_optimizer(config: TrainConfig, model: nn.Module, *, outputs: bool = True) -> torch.optim.Optimizer:
    """As configured, over a network or a part of it; `outputs`: whether its last layer gives the class scores."""
    scores = score_weights(model) if outputs else ()
    return create_optimizer(config, list(model.parameters()), True, norm_biases(model), scores=scores)


def backprop_step(config: TrainConfig, model: nn.Module, device: torch.device) -> tuple[Step, torch.optim.Optimizer]:
    """One step of global backprop in its fastest form, and its optimizer."""
    optimizer, loss = backprop_optimizer(config, model), cross_entropy(config)

    def step(images: Tensor, labels: Tensor) -> None:
        loss(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return (captured(step, config, device) if is_recordable(optimizer) else step), optimizer


def _train(
    member: Member, config: RunConfig, batches: Batches, device: torch.device, trained: nn.Module, model: nn.Module
) -> Trained:
    step, optimizer = step_on_part(member, config, trained, device)
    return timed_epochs(
        member,
        config,
        batches,
        device,
        step=step,
        optimizers=[optimizer],
        error=lambda: told_by_first(member, lambda: error_percent(model, batches.test(), device)),
    )


def step_on_part(
    member: Member, config: RunConfig, model: nn.Module, device: torch.device
) -> tuple[Step, torch.optim.Optimizer]:
    """`backprop_step` on this process's part of whole batches, and its optimizer."""
    share = len(part_of(torch.empty(config.train.batch_size), member.rank, member.size))
    learn, optimizer = backprop_step(replace(config.train, batch_size=share), model, device)

    def step(images: Tensor, labels: Tensor) -> None:
        mine, targets = (part_of(x, member.rank, member.size) for x in (images, labels))
        learn(mine, targets.to(device, non_blocking=True))

    return step, optimizer


def part_of(x: Tensor, rank: int, size: int) -> Tensor:
    """The samples of a batch that one of `size` replicas learns from."""
    return x.tensor_split(size)[rank]
