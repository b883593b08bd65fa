"""Layers that find their sizes in their first forward, given them before training."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pipeline.errors import ConfigError
from pipeline.network.blocks import Block
from pipeline.network.copies import copied
from pipeline.seeding import seed_default_generator

__all__ = ["materialize"]


def materialize(block: Block, shape: tuple[int, ...], samples: int, name: str, key: tuple[int, int]) -> None:
    """Let lazy layers find their sizes and draw their weights, keyed by (seed, block) `key`; nothing else changes.

    A copy computes, on `samples` of `shape`, in evaluation and, where that leaves some out, in training.

    Raises ConfigError if none of its forwards uses a lazy layer, and whatever the block itself raises.
    """
    if not _lazy(block):
        return
    twin = copied(block)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed_default_generator(torch.device("cpu"), key[0], "weights", key[1])
        for training in (False, True):
            if _lazy(twin):
                twin.train(training)(torch.zeros(samples, *shape))
    if _lazy(twin):
        raise ConfigError(f"{name} never uses its lazy parameter {_lazy(twin)[0]}; leave it out, or give it a size")
    made = dict(twin.named_modules())
    for path, module in list(block.named_modules()):
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            module.__class__ = type(made[path])  # as torch does
            own = {**vars(made[path]), "training": module.training}
            vars(module).clear()
            vars(module).update(own)


def _lazy(block: nn.Module) -> list[str]:
    """Names of parameters and buffers without a size."""
    return [name for name, each in (*block.named_parameters(), *block.named_buffers()) if is_lazy(each)]
