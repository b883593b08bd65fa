"""How much memory a run may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.runtime.control_groups import control_groups

__all__ = ["host_memory", "memory_of"]


def memory_of(device: torch.device, hosts: int, processes: int) -> tuple[int, str]:
    """Bytes that all processes of a run have together, by what this one sees, and where they are, for people."""
    if device.type == "cuda":
        count = min(processes, hosts * torch.cuda.device_count())
        where = "the GPU" if count == 1 else f"{count} GPUs like this one together"
        return count * torch.cuda.get_device_properties(device).total_memory, where
    where = "this machine" if hosts == 1 else f"{hosts} machines like this one together"
    return hosts * host_memory(), where


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of this host, or what the control groups of this process allow; `root` is where the system's files are."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    for folder in control_groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):  # of version 2 and 1
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
                if text.isdecimal():
                    yield int(text)
            except (OSError, ValueError):
                continue
