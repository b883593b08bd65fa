"""What the processes of a method take, beside time: memory, and joules where the machine tells them."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.contenders.methods import Method
from benchmarks.harness.crew import Crew, Member
from pipeline.config.schema import RunConfig

__all__ = ["joules", "peak_memory"]

_METERS = Path("/sys/class/powercap")


def peak_memory(method: Method, config: RunConfig) -> list[float]:
    """Megabytes that each process of a fresh crew held at most."""
    with Crew(method.processes) as crew:
        method.train(crew, config)
        return crew.call(_high_water)


def _high_water(member: Member) -> float:
    if torch.cuda.is_initialized():
        gpus = range(torch.cuda.device_count())  # all: its own is no longer the current one
        return sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus) / 1e6
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def joules(meters: Path = _METERS) -> float | None:
    """What all processors have used since some moment (RAPL); None where the machine does not tell.

    The counters run over after minutes to hours: a later reading that is smaller says nothing.
    """
    packages = sorted(meters.glob("intel-rapl:[0-9]"))  # also AMD's; their parts have a second number
    try:
        return sum(int((package / "energy_uj").read_text(encoding="ascii")) for package in packages) / 1e6 or None
    except (OSError, ValueError):
        return None
