"""What a block might compute, with labels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_batch"]


def random_batch(shape: tuple[int, ...], samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, *shape, requires_grad=True), torch.randint(classes, (samples,))
