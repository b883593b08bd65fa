"""Transfers between two neighbouring processes: gloo for CPU tensors, gloo through pinned memory, nccl.

A link knows tensors, not packets. Sending starts at once and ends when `wait` returns; receiving blocks, and belongs
in a thread of its own. A gloo send is complete only when the receiver has posted its receive, and the tensor must
stay untouched until then: the returned transfer keeps it alive.

The two ends of a link meet over the store, and no other process takes part. Any thread can end a link.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from pipeline.transport.control import Control
from pipeline.transport.network import connecting
from pipeline.transport.pair import Group, Pair, Transfer

__all__ = ["GlooLink", "Link", "LinkFactory", "NcclLink", "PinnedLink", "Transport", "rows"]


def rows(x: Tensor) -> Tensor:
    """A contiguous view of a canonical activation: NHWC of a channels_last one."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 and not x.is_contiguous() else x


class Link(Protocol):
    """One direction between this process and a neighbour."""

    def send(self, header: Tensor, payloads: Sequence[Tensor]) -> Transfer:
        """Start sending a header (CPU) and activations; returns at once with what waits for the end."""

    def receive_header(self, header: Tensor) -> None:
        """Fill `header` (CPU)."""

    def receive(self, payloads: Sequence[Tensor]) -> None:
        """Fill `payloads`, contiguous tensors on this process's device, for any stream to use."""

    def mark(self) -> object:
        """A point in this thread's device work, for `settle`."""

    def settle(self, mark: object) -> None:
        """Block until the device work before `mark` is done, so that a buffer it reads can be filled again."""

    def end(self) -> None:
        """Let transfers fail, under way or to come; from any thread."""

    def close(self) -> None:
        """Give everything back, once no thread waits any more."""


class GlooLink:
    """gloo between CPU tensors, without a copy."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def send(self, header: Tensor, payloads: Sequence[Tensor]) -> Transfer:
        return self.pair.send([header], [rows(x) for x in payloads])

    def receive_header(self, header: Tensor) -> None:
        self.pair.receive([header], [])

    def receive(self, payloads: Sequence[Tensor]) -> None:
        self.pair.receive([], payloads)

    def mark(self) -> object:
        return None

    def settle(self, mark: object) -> None:
        return None

    def end(self) -> None:
        self.pair.end()

    def close(self) -> None:
        self.pair.close()


class _CudaLink(GlooLink):
    """Shared by the links of CUDA tensors: headers through gloo, copies on a stream of their own."""

    def __init__(self, pair: Pair, device: torch.device) -> None:
        super().__init__(pair)
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def mark(self) -> object:
        return torch.cuda.current_stream(self.device).record_event()

    def settle(self, mark: object) -> None:
        if isinstance(mark, torch.cuda.Event):
            mark.synchronize()


class PinnedLink(_CudaLink):
    """gloo between CUDA tensors by way of pinned host memory: for processes that share a GPU."""

    def send(self, header: Tensor, payloads: Sequence[Tensor]) -> Transfer:
        start = super().send  # later, in order: a message must not overtake an activation that is still being copied
        sources = [rows(x) for x in payloads]
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            staged = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in sources]
            for host, source in zip(staged, sources, strict=True):
                host.copy_(source, non_blocking=True)
            copied = self.stream.record_event()

        def wait() -> None:
            copied.synchronize()
            sources.clear()  # held until the copy is done
            start(header, staged)()

        return wait

    def receive(self, payloads: Sequence[Tensor]) -> None:
        staged = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in payloads]
        super().receive(staged)
        with torch.cuda.stream(self.stream):
            for payload, host in zip(payloads, staged, strict=True):
                payload.copy_(host, non_blocking=True)
        self.stream.synchronize()


class NcclLink(_CudaLink):
    """nccl between GPUs, one communicator for each direction of each pair; headers go through gloo."""

    def __init__(self, pair: Pair, store: Store, rank: int, device: torch.device) -> None:
        super().__init__(pair, device)
        self._peer = 1 - rank
        group = dist.ProcessGroupNCCL(store, rank, 2, dist.ProcessGroupNCCL.Options())
        self._payloads = cast(Group, group)

    def send(self, header: Tensor, payloads: Sequence[Tensor]) -> Transfer:
        headed, sources = super().send(header, ()), [rows(x) for x in payloads]
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            for source in sources:
                self._payloads.send([source], self._peer, 0).wait()  # orders the stream, not the host
            sent = self.stream.record_event()

        def wait() -> None:
            headed()
            sent.synchronize()
            sources.clear()  # held until they are sent

        return wait

    def receive(self, payloads: Sequence[Tensor]) -> None:
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            for payload in payloads:
                self._payloads.recv([payload], self._peer, 0).wait()
        self.stream.synchronize()

    def end(self) -> None:
        super().end()
        self._payloads.abort()


class Transport(enum.Enum):
    """What activations travel through, in words."""

    IN_PROCESS = "in process"
    GLOO = "gloo"
    PINNED = "gloo through pinned host memory"
    NCCL = "nccl"


@dataclass(frozen=True)
class LinkFactory:
    """Makes this process's ends of its links."""

    control: Control
    transport: Transport
    device: torch.device

    def link(self, source: int, target: int) -> Link:
        """One end of the one-way link between two processes; the other one makes its own at the same time."""
        name, rank = f"link/{source}-{target}", int(self.control.rank == target)
        with connecting(self.control, source if rank else target):
            pair = Pair(self.control.scoped(name), rank, self.control.timeout_s)
            if self.transport is Transport.NCCL:
                return NcclLink(pair, self.control.scoped(f"{name}/nccl"), rank, self.device)
        return PinnedLink(pair, self.device) if self.transport is Transport.PINNED else GlooLink(pair)
