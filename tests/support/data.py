"""Batches to test with, and what a mistake says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from pipeline.config.schema import DataConfig
from pipeline.data.batches import Batches
from pipeline.errors import DataError

__all__ = ["batches_of", "library", "message", "numbered"]

CPU = torch.device("cpu")


def batches_of(config: DataConfig, *, seed: int = 1, batch_size: int = 16) -> Batches:
    return Batches.from_config(config, seed=seed, batch_size=batch_size, device=CPU)


def library(train: Any, test: Any = None, *, seed: int = 1, batch_size: int = 4) -> Batches:
    return Batches.from_datasets(train, train if test is None else test, seed=seed, batch_size=batch_size, device=CPU)


def message(call: Callable[[], Any], kind: type[Exception] = DataError) -> str:
    """The message of the error that `call` raises, which must be one line."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(count: int) -> TensorDataset:
    """Samples that tell their own number."""
    return TensorDataset(torch.arange(float(count)).view(count, 1, 1, 1), torch.arange(count) % 3)
