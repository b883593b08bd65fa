"""A module that writes to its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["Adds"]


class Adds(nn.Module):
    """Writes to its input, as much code that was written to save memory, or does the same without."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.layer, self.inplace = nn.Linear(8, 8), inplace

    def forward(self, x: Tensor) -> Any:
        if self.inplace:
            x += 1
        else:
            x = x + 1
        return self.layer(x)
