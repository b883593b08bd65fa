"""Counts arithmetic by torch's own formulas."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["FlopCounter"]


class FlopCounter(TorchDispatchMode):
    """Sums what runs inside it. torch's `FlopCounterMode` hooks modules, too, and fails where one ends in a view."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch says no types here
        self.flops = 0  # so far; a multiply-accumulate is two

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out))
        return out
