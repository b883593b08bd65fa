"""The optimizer of a stage, or of any network: one call for all its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.method import Method

__all__ = ["create_optimizer", "set_learning_rate"]


def create_optimizer(
    config: Method, parameters: Sequence[nn.Parameter], fused: bool, norm_biases: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The configured optimizer over `parameters`, all on one device; `norm_biases` may have a rate of their own.

    On a GPU the learning rate is a tensor there, so that a captured step reads the rate of the day; the kernels take
    it in float32, captured or not.
    """
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    groups = _groups(config, parameters, norm_biases)
    for group in groups:
        group["lr"] = config.lr * group[_FACTOR]
        if on_gpu:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=parameters[0].device)
    common: dict[str, Any] = {"weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **common)
    return torch.optim.Adam(groups, amsgrad=config.optimizer == "amsgrad", capturable=on_gpu, **common)


_FACTOR = "factor"  # of a group's learning rate


def _groups(
    config: Method, parameters: Sequence[nn.Parameter], norm_biases: Sequence[nn.Parameter]
) -> list[dict[str, Any]]:
    """One, or another for what has a rate of its own."""
    apart = {id(bias) for bias in norm_biases} if config.norm_bias_lr != 1 else set()
    biases = [parameter for parameter in parameters if id(parameter) in apart]
    others = [parameter for parameter in parameters if id(parameter) not in apart]
    groups = ({"params": others, _FACTOR: 1.0}, {"params": biases, _FACTOR: config.norm_bias_lr})
    return [group for group in groups if group["params"]]


def set_learning_rate(lr: float, *optimizers: torch.optim.Optimizer) -> None:
    """Set the rate of the following updates."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        rate = lr * group.get(_FACTOR, 1.0)  # of others than ours, too
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
