"""What a step asks of a GPU: its kernels, how long they take, and the memory it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["Kernel", "Kernels", "Timer", "kernels_of", "peak_memory"]

_STEPS = 3  # that are looked at


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a step."""

    name: str
    launches: float
    microseconds: float


@dataclass(frozen=True)
class Kernels:
    """What a step launches, copies and fills within the device included; the most expensive first."""

    kernels: tuple[Kernel, ...]

    @property
    def launches(self) -> float:
        """Of a step."""
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def milliseconds(self) -> float:
        """Of a step, one kernel after the other."""
        return sum(kernel.microseconds for kernel in self.kernels) / 1e3


def kernels_of(step: Callable[[], object], device: torch.device) -> Kernels:
    """The kernels of a warm step; captured ones are seen too."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize(device)
    launches: dict[str, int] = defaultdict(int)
    microseconds: dict[str, float] = defaultdict(float)
    for event in profiler.events() or ():
        if event.device_type == DeviceType.CUDA and "#" not in event.name:  # ranges of the optimizer have one
            launches[event.name] += 1
            microseconds[event.name] += event.time_range.elapsed_us()
    found = [Kernel(name, launches[name] / _STEPS, microseconds[name] / _STEPS) for name in launches]
    return Kernels(tuple(sorted(found, key=lambda kernel: -kernel.microseconds)))


def peak_memory(step: Callable[[], object], device: torch.device) -> float:
    """Megabytes of the device that torch has reserved for a warm step and everything it keeps."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_reserved(device) / 1e6


class Timer:
    """Milliseconds of a step by the device's clock."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)

    def __call__(self, step: Callable[[], object], steps: int) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record(self._stream)
        for _ in range(steps):
            step()
        last.record(self._stream)
        last.synchronize()
        return float(first.elapsed_time(last)) / steps
