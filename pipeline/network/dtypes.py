"""Weights and buffers that a user has given: whether they can be trained as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.errors import ConfigError

__all__ = ["check_dtypes"]


def check_dtypes(blocks: Sequence[nn.Module]) -> None:
    """Raise ConfigError for a weight that is not float32, and for one or a buffer that has no data, or was made below
    `torch.inference_mode`.

    Frozen weights count; whole numbers and the format of buffers are the block's own business.
    """
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            _tell(f"weight {name} of block {index}", parameter, _wrong_format)
            _tell(f"weight {name} of block {index}", parameter, _wrong_memory)
        for name, buffer in block.named_buffers():
            _tell(f"buffer {name} of block {index}", buffer, _wrong_memory)


def _tell(what: str, tensor: Tensor, wrong: Callable[[Tensor], str]) -> None:
    told = "" if is_lazy(tensor) else wrong(tensor)  # one without a shape is told elsewhere
    if told:
        raise ConfigError(f"{what} {told}")


def _wrong_format(weight: Tensor) -> str:
    """What is wrong with its numbers, and what to do; empty if nothing is."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.is_complex():
        return f"is {dtype}, but weights are float32; give its real and imaginary part as two"
    if weight.is_floating_point() and weight.dtype != torch.float32:
        return f"is {dtype}, but weights are float32; call .float() on the network first"
    return ""


def _wrong_memory(tensor: Tensor) -> str:
    """What is wrong with where they are, likewise."""
    if tensor.is_meta:
        return "has no data (device meta); build the network on the CPU"
    if tensor.is_inference():
        return "was made below torch.inference_mode; build the network outside of it"
    return ""
