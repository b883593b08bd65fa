"""Work on a GPU recorded once as a graph and repeated: one launch instead of hundreds.

A graph repeats the same kernels on the same memory. Whatever it reads must lie where it lay when it was recorded, and
what it leaves lies there until the next repetition. Graphs of one `Graphs` share memory: they are repeated in the
order in which they were recorded, and a tensor that nobody refers to when a graph ends is memory for those after it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Protocol

import torch

__all__ = ["CudaGraphs", "Graphs", "Replay"]

Replay = Callable[[], None]
"""Repeats recorded work on the stream of the moment; returns at once."""


class Graphs(Protocol):
    """Records pieces of work."""

    def record(self, work: Callable[[], object]) -> Replay:
        """Run the Python code of `work` and keep its kernels, which are not executed.

        Raises what `work` raises, or RuntimeError, where it cannot be recorded; then neither can anything else.
        """


class CudaGraphs:
    """CUDA graphs with one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # What earlier steps have cached is free for the pool, and so is the memory cuBLAS has for their stream.
        torch.cuda.synchronize(device)
        gc.collect()
        with contextlib.suppress(AttributeError):  # no public name; without it 64 MB on a Hopper are kept twice
            torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()

    def record(self, work: Callable[[], object]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            # Queues copy and send in threads of their own meanwhile: only this one's calls can spoil a recording.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # says again that the recording is spoilt
                    graph.capture_end()
                with contextlib.suppress(RuntimeError, AttributeError):
                    # A spoilt recording leaves the allocator in it: no public name ends that.
                    torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
                raise
            graph.capture_end()
        return graph.replay
