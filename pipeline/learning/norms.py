"""What is asked of batch norms apart from everything else."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.method import Method

__all__ = ["norm_biases", "prepare_norms"]


def _norms(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    return [part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)]


def prepare_norms(config: Method, *modules: nn.Module) -> None:
    """Give batch norms the configured share of a batch in their running statistics; without one they keep theirs."""
    if config.norm_momentum is not None:
        for norm in _norms(modules):
            norm.momentum = config.norm_momentum


def norm_biases(*modules: nn.Module) -> list[nn.Parameter]:
    """The biases that batch norms add."""
    return [norm.bias for norm in _norms(modules) if isinstance(norm.bias, nn.Parameter)]
