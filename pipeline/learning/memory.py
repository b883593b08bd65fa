"""Memory that local losses need, counted before any of it is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.balance import segment_ends
from pipeline.learning.local_block import create_loss
from pipeline.network.spec import BlockShape, Network

__all__ = ["check_loss_memory", "loss_bytes"]

_FLOAT = 4  # bytes
_MOMENTS = {"adam": 2, "amsgrad": 3, "sgd": 0}  # tensors that an optimizer keeps beside weight and gradient
_MATRICES = 4  # of B x B numbers that are alive at once: similarities, their gradients, those of the targets


def loss_bytes(config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int) -> list[int]:
    """What the loss of each block needs while training: its head, with gradients and optimizer, and matrices of B x B.

    Nothing is allocated, no random number drawn.
    """
    _, ends = segment_ends(config, shapes)
    copies = 2 + _MOMENTS[config.optimizer] + (config.optimizer == "sgd" and config.momentum > 0)
    matrices = _MATRICES * config.batch_size**2 if config.loss_spec.similarity else 0
    needed = []
    for index, (spec, shape) in enumerate(zip(network, shapes, strict=True)):
        with torch.device("meta"):
            loss = create_loss(
                config,
                index,
                shape.features,
                classes,
                output=index == len(network) - 1,
                segment_end=index in ends,
                similarity_head=spec.similarity_head,
            )
        weights = 0 if loss is None else sum(parameter.numel() for parameter in loss.parameters())
        needed.append(_FLOAT * (weights * copies + (matrices if weights else 0)))
    return needed


def check_loss_memory(
    config: TrainConfig, network: Network, shapes: Sequence[BlockShape], classes: int, available: int, where: str
) -> None:
    """Raise ConfigError if the local losses of all blocks need more than `available` bytes; `where` names these."""
    needed = loss_bytes(config, network, shapes, classes)
    if sum(needed) <= available:
        return
    worst = max(range(len(needed)), key=needed.__getitem__)
    matrices = _FLOAT * _MATRICES * config.batch_size**2
    if config.loss_spec.similarity and matrices > needed[worst] // 2:
        remedy = f"give a --batch-size below {config.batch_size}"
    elif config.loss_spec.similarity_head:
        less = " or --similarity-head pool-4x4" if len(shapes[worst].features) == 3 else ""
        remedy = f"give --loss pred, whose heads are small{less}"
    else:
        remedy = "pool what the block hands on, or cut the network into fewer --segments"
    raise ConfigError(
        f"the local losses need {_size(sum(needed))}, most of it block {worst} ({network[worst].name}): "
        f"{_size(needed[worst])} for activations of shape {list(shapes[worst].features)}; {where} has "
        f"{_size(available)}; {remedy}"
    )


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("MB", "GB"):
        count /= 1000
        if count < 1e6:
            return f"{count / 1000:,.1f} {unit}"
    return f"{count / 1e6:,.1f} TB"
