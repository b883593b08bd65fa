"""Training deep networks with local error signals, without backward locking: one stage a process.

The public names are loaded when they are first used, so that the command line can answer without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config.schema import TrainConfig
    from pipeline.errors import ConfigError, DataError, StageFailure
    from pipeline.inference import load_model
    from pipeline.network.sequential import blocks_from
    from pipeline.network.zoo import create_model
    from pipeline.training import TrainResult, train

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "StageFailure",
    "TrainConfig",
    "TrainResult",
    "blocks_from",
    "create_model",
    "load_model",
    "train",
]

_HOMES = {
    "ConfigError": "errors",
    "DataError": "errors",
    "StageFailure": "errors",
    "TrainConfig": "config.schema",
    "TrainResult": "training",
    "blocks_from": "network.sequential",
    "create_model": "network.zoo",
    "load_model": "inference",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """With the public names, for completion and `help`."""
    return sorted({*globals(), *__all__})
