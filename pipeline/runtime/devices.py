"""Which device a process computes on."""

from __future__ import annotations

import torch

from pipeline.errors import ConfigError

__all__ = ["device_named"]


def device_named(name: str, local_rank: int = 0) -> torch.device:
    """What `--device` names, for a process of a host. Raises ConfigError for a GPU that is not there."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise ConfigError(f"--device is {name}, but torch {torch.__version__} finds no GPU; use --device cpu")
    index = int(name.partition(":")[2]) if ":" in name else local_rank % available
    if index >= available:
        raise ConfigError(f"--device is {name}, but this host has {available} GPUs, from cuda:0; name one of them")
    return torch.device("cuda", index)
