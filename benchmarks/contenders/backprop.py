"""Global backprop, written as well as torch allows: channels_last, fused optimizer, nothing waits for a number."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contenders.common import (
    Mixed,
    Trained,
    build_blocks,
    choose_device,
    cross_entropy,
    describe,
    error_percent,
    open_batches,
    set_rates,
    timed_epochs,
    told_by_first,
)
from benchmarks.harness.crew import Member
from pipeline.config.schema import RunConfig
from pipeline.data.batches import Batches
from pipeline.learning.local_block import create_optimizer

__all__ = ["train_backprop", "train_ddp"]


def train_backprop(member: Member, config: RunConfig) -> Trained:
    """In one process, with all its threads."""
    device = choose_device(member, config)
    batches = open_batches(config, device)
    model = Mixed(build_blocks(describe(config, batches), config.train.seed, device), config, device)
    return _train(member, config, batches, device, model, model)


def train_ddp(member: Member, config: RunConfig) -> Trained:
    """Every process has the whole network and an equal part of each batch; gradients are averaged.

    Batch norm sees that part only, so that this is not quite the same training, and keeps running statistics of its
    own in every process: the network that counts is that of process 0.
    """
    device = choose_device(member, config)
    batches = open_batches(config, device)
    model = Mixed(build_blocks(describe(config, batches), config.train.seed, device), config, device)
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    return _train(member, config, batches, device, replica, model)


def _train(
    member: Member, config: RunConfig, batches: Batches, device: torch.device, trained: nn.Module, model: nn.Module
) -> Trained:
    optimizer = create_optimizer(config.train, list(model.parameters()), True)

    def step(images: Tensor, labels: Tensor) -> None:
        mine, targets = _part(images, member), _part(labels, member).to(device, non_blocking=True)
        cross_entropy(trained(mine), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed_epochs(
        member,
        config,
        batches,
        device,
        step=step,
        set_learning_rate=lambda lr: set_rates([optimizer], lr),
        error=lambda: told_by_first(member, lambda: error_percent(model, batches.test(), device)),
    )


def _part(x: Tensor, member: Member) -> Tensor:
    """This process's samples of a batch."""
    return x.tensor_split(member.size)[member.rank]
