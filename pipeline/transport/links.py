"""Transfers between two neighbouring processes: gloo for CPU tensors, gloo through pinned memory, nccl.

A link knows tensors, not packets. Sending starts at once and ends when `wait` returns; receiving blocks, and belongs
in a thread of its own. A gloo send is complete only when the receiver has posted its receive, and the tensor must
stay untouched until then: the returned transfer keeps it alive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["GlooLink", "Link", "NcclLink", "PinnedLink", "Transfer", "rows"]

Transfer = Callable[[], None]
"""Blocks until the tensors of a send may be changed."""


def rows(x: Tensor) -> Tensor:
    """A contiguous view of a canonical activation: NHWC of a channels_last one."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 and not x.is_contiguous() else x


class Link(Protocol):
    """One direction between this process and a neighbour."""

    def send(self, header: Tensor, payload: Tensor | None) -> Transfer:
        """Start sending a header (CPU) and an activation; returns at once with what waits for the end."""

    def receive_header(self, header: Tensor) -> None:
        """Fill `header` (CPU)."""

    def receive(self, payload: Tensor) -> None:
        """Fill `payload`, a contiguous tensor on this process's device, for any stream to use."""

    def mark(self) -> object:
        """A point in this thread's device work, for `settle`."""

    def settle(self, mark: object) -> None:
        """Block until the device work before `mark` is done, so that a buffer it reads can be filled again."""


class GlooLink:
    """gloo between CPU tensors, without a copy."""

    def __init__(self, group: dist.ProcessGroup, peer: int) -> None:
        self.group, self.peer = group, peer

    def send(self, header: Tensor, payload: Tensor | None) -> Transfer:
        tensors = [header] if payload is None else [header, rows(payload)]
        works = [dist.isend(tensor, self.peer, self.group) for tensor in tensors]

        def wait() -> None:
            for work in works:
                if work is not None:
                    work.wait()
            tensors.clear()

        return wait

    def receive_header(self, header: Tensor) -> None:
        dist.recv(header, self.peer, self.group)

    def receive(self, payload: Tensor) -> None:
        dist.recv(payload, self.peer, self.group)

    def mark(self) -> object:
        return None

    def settle(self, mark: object) -> None:
        return None


class _CudaLink(GlooLink):
    """Shared by the links of CUDA tensors: headers through gloo, copies on a stream of their own."""

    def __init__(self, group: dist.ProcessGroup, peer: int, device: torch.device) -> None:
        super().__init__(group, peer)
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def mark(self) -> object:
        return torch.cuda.current_stream(self.device).record_event()

    def settle(self, mark: object) -> None:
        if isinstance(mark, torch.cuda.Event):
            mark.synchronize()


class PinnedLink(_CudaLink):
    """gloo between CUDA tensors by way of pinned host memory: for processes that share a GPU."""

    def send(self, header: Tensor, payload: Tensor | None) -> Transfer:
        start = super().send
        if payload is None:  # it must not overtake an activation that is still being copied

            def headed() -> None:
                start(header, None)()

            return headed
        source = rows(payload)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            staged = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            staged.copy_(source, non_blocking=True)
            copied = self.stream.record_event()

        def wait() -> None:
            copied.synchronize()
            assert source.is_cuda  # held until the copy is done
            start(header, staged)()

        return wait

    def receive(self, payload: Tensor) -> None:
        staged = torch.empty(payload.shape, dtype=payload.dtype, pin_memory=True)
        super().receive(staged)
        with torch.cuda.stream(self.stream):
            payload.copy_(staged, non_blocking=True)
        self.stream.synchronize()


class NcclLink(_CudaLink):
    """nccl between GPUs, one communicator for each direction of each pair; headers go through gloo."""

    def __init__(self, group: dist.ProcessGroup, payloads: dist.ProcessGroup, peer: int, device: torch.device) -> None:
        super().__init__(group, peer, device)
        self.payloads = payloads

    def send(self, header: Tensor, payload: Tensor | None) -> Transfer:
        headed = super().send(header, None)
        if payload is None:
            return headed
        source = rows(payload)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            work = dist.isend(source, self.peer, self.payloads)
            assert work is not None
            work.wait()  # orders the stream, not the host
            sent = self.stream.record_event()

        def wait() -> None:
            headed()
            sent.synchronize()
            assert source.is_cuda  # held until it is sent

        return wait

    def receive(self, payload: Tensor) -> None:
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            dist.recv(payload, self.peer, self.payloads)
        self.stream.synchronize()
