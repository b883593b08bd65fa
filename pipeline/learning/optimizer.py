"""The optimizer of a stage, or of any network: one call for all its parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.method import Method
from pipeline.learning.muon import MuonAndAdam, learned_by_muon

__all__ = ["create_optimizer", "is_recordable", "set_learning_rate"]


def create_optimizer(
    config: Method,
    parameters: Sequence[nn.Parameter],
    fused: bool,
    norm_biases: Sequence[nn.Parameter] = (),
    *,
    heads: Sequence[nn.Parameter] = (),
    scores: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The configured optimizer over `parameters`, all on one device.

    On a GPU the learning rate is a tensor there, so that a captured step reads the rate of the day; the kernels take
    it in float32, captured or not. Muon's is a number of the host.

    Args:
        norm_biases: that batch norms add; they may have a rate of their own.
        heads: of local heads, likewise; a bias of a batch norm there has both factors.
        scores: whose outputs are class scores; Muon does not learn them.
    """
    device = next((parameter.device for parameter in parameters if parameter.is_cuda), None)
    factors = _factors((norm_biases, config.norm_bias_lr), (heads, config.head_lr))
    common: dict[str, Any] = {"weight_decay": config.weight_decay}
    momentum: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.optimizer == "sgd":
        return torch.optim.SGD(_groups(config.lr, parameters, factors, device), fused=fused, **momentum, **common)
    adam = {"amsgrad": config.optimizer == "amsgrad", "capturable": device is not None, "fused": fused, **common}
    matrices = learned_by_muon(parameters, scores) if config.optimizer == "muon" else []
    apart = {id(matrix) for matrix in matrices}
    others = _groups(config.lr, [each for each in parameters if id(each) not in apart], factors, device)
    if not matrices:
        return torch.optim.Adam(others, **adam)
    return MuonAndAdam(_groups(config.lr, matrices, factors, None), others, {**momentum, **common}, adam)


_FACTOR = "factor"  # of a group's learning rate


def _factors(*apart: tuple[Sequence[nn.Parameter], float]) -> dict[int, float]:
    """What the learning rate of some parameters, by their ids, is multiplied by."""
    factors: dict[int, float] = {}
    for parameters, factor in apart:
        for tied_once in {id(parameter) for parameter in parameters}:
            factors[tied_once] = factors.get(tied_once, 1.0) * factor
    return factors


def _groups(
    lr: float, parameters: Sequence[nn.Parameter], factors: Mapping[int, float], device: torch.device | None
) -> list[dict[str, Any]]:
    """One, and another for each other factor; the rates are tensors on the device where there is one."""
    members: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        members.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for factor, own in members.items():
        rate = lr * factor
        given = rate if device is None else torch.tensor(rate, dtype=torch.float32, device=device)
        groups.append({"params": own, _FACTOR: factor, "lr": given})
    return groups


def set_learning_rate(lr: float, *optimizers: torch.optim.Optimizer) -> None:
    """Set the rate of the following updates."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        rate = lr * group.get(_FACTOR, 1.0)  # of others than ours, too
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def is_recordable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step can be recorded in a graph, and repeated with the rate of the day."""
    return bool(getattr(optimizer, "recordable", True))
