"""Device, number format and memory layout of a stage's computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from pipeline.network.formats import lay_out

__all__ = ["FORMATS", "Numerics", "unmixed"]

M = TypeVar("M", bound=nn.Module)

FORMATS = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def unmixed(x: Tensor) -> torch.autocast:
    """No mixed precision for what is computed on the device of `x`."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)  # the meta device knows no autocast


@dataclass(frozen=True)
class Numerics:
    """Device, number format and memory layout of a stage's computation.

    `fp64` is for comparisons with recorded traces; no flag asks for it.
    """

    device: torch.device
    precision: str = "fp32"
    channels_last: bool = True
    fused: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the activations that blocks hand on."""
        return FORMATS[self.precision]

    def autocast(self) -> torch.autocast:
        """Mixed precision where the precision is a half one; weights stay float32."""
        device = "cpu" if self.device.type == "meta" else self.device.type  # shapes alone know no autocast
        # No weight is used twice, and a cache would not last from one captured graph to the next.
        return torch.autocast(device, self.dtype, enabled=self.dtype.itemsize < 4, cache_enabled=False)

    def place(self, module: M, *, channels_last: bool = True) -> M:
        """`module` on the device, its weights in float64 where that is the precision; channels last if both say so."""
        if self.precision == "fp64":
            module = module.to(torch.float64)
        module = module.to(self.device)
        lay_out(module, self.channels_last and channels_last)
        return module
