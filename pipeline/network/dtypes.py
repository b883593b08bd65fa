"""Weights that a user has given: whether they can be trained as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.errors import ConfigError

__all__ = ["check_dtypes"]


def check_dtypes(blocks: Sequence[nn.Module]) -> None:
    """Raise ConfigError for a weight that is not float32, has no data, or was made below `torch.inference_mode`.

    Frozen weights count; whole numbers and buffers are the block's own business.
    """
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            wrong = "" if is_lazy(parameter) else _wrong(parameter)  # one without a shape is told elsewhere
            if wrong:
                raise ConfigError(f"weight {name} of block {index} {wrong}")


def _wrong(weight: Tensor) -> str:
    """What is wrong with it, and what to do; empty if nothing is."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.is_complex():
        return f"is {dtype}, but weights are float32; give its real and imaginary part as two"
    if weight.is_floating_point() and weight.dtype != torch.float32:
        return f"is {dtype}, but weights are float32; call .float() on the network first"
    if weight.is_meta:
        return "has no data (device meta); build the network on the CPU"
    if weight.is_inference():
        return "was made below torch.inference_mode; build the network outside of it"
    return ""
