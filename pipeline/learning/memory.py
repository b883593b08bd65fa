"""Memory that weights, local losses and queues need, counted before any of it is taken."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.balance import segment_ends
from pipeline.learning.local_block import create_loss
from pipeline.learning.losses import LocalLoss
from pipeline.learning.muon import learned_by_muon, score_weights
from pipeline.network.spec import BlockShape, Network

__all__ = ["buffer_bytes", "check_buffers", "check_memory", "loss_bytes", "weight_bytes"]

_FLOAT = 4  # bytes
# Tensors that an optimizer keeps beside weight and gradient; of what Muon itself learns one less than of the others.
_MOMENTS = {"adam": 2, "amsgrad": 3, "sgd": 0, "muon": 2}
_MATRICES = 4  # of B x B numbers that are alive at once: similarities, their gradients, those of the targets


def loss_bytes(config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int) -> list[int]:
    """What the loss of each block needs while training: its head, with gradients and optimizer, and matrices of B x B.

    Nothing is allocated, no random number drawn.
    """
    _, ends = segment_ends(config, shapes)
    matrices = _FLOAT * _MATRICES * config.batch_size**2
    needed = []
    for index, (spec, shape) in enumerate(zip(network, shapes, strict=True)):
        with torch.device("meta"):
            loss = create_loss(
                config,
                index,
                shape,
                classes,
                output=index == len(network) - 1,
                segment_end=index in ends,
                similarity_head=spec.similarity_head,
            )
        scores, compares = list[nn.Parameter](), False
        if isinstance(loss, LocalLoss):
            scores, compares = loss.score_weights(), loss.similarity is not None
        weights = 0 if loss is None else _bytes_of(config, list(loss.parameters()), scores)
        needed.append(weights + (matrices if compares else 0))
    return needed


def weight_bytes(config: TrainConfig, network: Network) -> list[int]:
    """What the weights of each block need while training, with gradients and what the optimizer keeps."""
    needed = []
    for index, spec in enumerate(network):
        with torch.device("meta"):
            block = spec.given or spec.build()
        scores = score_weights(block) if index == len(network) - 1 else []
        needed.append(_bytes_of(config, list(block.parameters()), scores))
    return needed


def _bytes_of(config: TrainConfig, weights: Sequence[nn.Parameter], scores: Sequence[nn.Parameter]) -> int:
    """What weights need, some of which give class `scores`: with gradients, all that the optimizer keeps, averages."""
    copies = 2 + _MOMENTS[config.optimizer] + (config.optimizer == "sgd" and bool(config.momentum)) + (config.ema > 0)
    by_muon = {id(each) for each in learned_by_muon(weights, scores)} if config.optimizer == "muon" else set()
    return sum(each.numel() * each.element_size() * (copies - (id(each) in by_muon)) for each in weights)


def buffer_bytes(config: TrainConfig, shapes: Sequence[BlockShape], split: Sequence[int]) -> int:
    """What the queues between the stages of several processes hold: packets that have come and were not taken yet."""
    ends = itertools.accumulate(split[:-1])
    return sum(_FLOAT * config.queue_depth * config.batch_size * math.prod(shapes[end - 1].outputs) for end in ends)


def check_memory(
    config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int, available: int, where: str
) -> None:
    """Raise ConfigError if weights and local losses need more than `available` bytes; `where` names these."""
    weights, losses = weight_bytes(config, network), loss_bytes(config, network, shapes, classes)
    if sum(weights) + sum(losses) <= available:
        return
    if sum(losses) >= sum(weights):
        raise ConfigError(_losses_do_not_fit(config, network, shapes, losses, f"{where} has {_size(available)}"))
    worst = weights.index(max(weights))
    raise ConfigError(
        f"the weights need {_size(sum(weights))} with gradients and what the optimizer keeps, most of it block "
        f"{worst} ({network[worst].name}): {_size(weights[worst])}; {where} has {_size(available)}; make the network "
        "smaller, such as by --width or --hidden-units"
    )


def check_buffers(
    config: TrainConfig, shapes: Sequence[BlockShape], split: Sequence[int], available: int, where: str
) -> None:
    """Raise ConfigError if what the queues hold needs more than `available` bytes; `where` names these."""
    needed = buffer_bytes(config, shapes, split)
    if needed > available:
        raise ConfigError(
            f"the queues need {_size(needed)} for {config.queue_depth} batches of {config.batch_size} samples between "
            f"{len(split)} stages; {where} has {_size(available)}; give a smaller --queue-depth or --batch-size"
        )


def _losses_do_not_fit(
    config: TrainConfig, network: Network, shapes: Sequence[BlockShape], needed: Sequence[int], available: str
) -> str:
    worst = max(range(len(needed)), key=needed.__getitem__)
    matrices = _FLOAT * _MATRICES * config.batch_size**2
    if config.loss_spec.similarity and matrices > needed[worst] // 2:
        remedy = f"give a --batch-size below {config.batch_size}"
    elif config.loss_spec.similarity_head:
        less = " or --similarity-head pool-4x4" if len(shapes[worst].features) == 3 else ""
        remedy = f"give --loss pred, whose heads are small{less}"
    else:
        remedy = "pool what the block hands on, or cut the network into fewer --segments"
    return (
        f"the local losses need {_size(sum(needed))}, most of it block {worst} ({network[worst].name}): "
        f"{_size(needed[worst])} for activations of shape {list(shapes[worst].features)}; {available}; {remedy}"
    )


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("MB", "GB"):
        count /= 1000
        if count < 1e6:
            return f"{count / 1000:,.1f} {unit}"
    return f"{count / 1e6:,.1f} TB"
