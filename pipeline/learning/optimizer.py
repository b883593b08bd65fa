"""The optimizer of a stage, or of any network: one call for all its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.method import Method

__all__ = ["create_optimizer", "set_learning_rate"]


def create_optimizer(config: Method, parameters: Sequence[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    """The configured optimizer over `parameters`, all on one device.

    On a GPU the learning rate is a tensor there, so that a captured step reads the rate of the day; the kernels take
    it in float32, captured or not.
    """
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": fused}
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    if on_gpu:
        common["lr"] = torch.tensor(config.lr, dtype=torch.float32, device=parameters[0].device)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **common)
    return torch.optim.Adam(parameters, amsgrad=config.optimizer == "amsgrad", capturable=on_gpu, **common)


def set_learning_rate(lr: float, *optimizers: torch.optim.Optimizer) -> None:
    """Set the rate of the following updates."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
