"""Transfers between two neighbouring processes: gloo for CPU tensors, gloo through pinned memory, nccl.

A link knows tensors, not packets. Sending starts at once and ends when `wait` returns; receiving blocks, and belongs
in a thread of its own. A gloo send is complete only when the receiver has posted its receive, and the tensor must
stay untouched until then: the returned transfer keeps it alive.

The two ends of a link meet over the store, and no other process takes part. Any thread can end a link.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from pipeline.transport.control import Control

__all__ = ["Bulk", "GlooLink", "Link", "LinkFactory", "NcclLink", "Pair", "PinnedLink", "Transport", "rows"]

Transfer = Callable[[], None]
"""Blocks until the tensors of a send may be changed."""

_PATIENCE = timedelta(days=1)  # of a transfer that has not begun; a lost peer is noticed by its heartbeat
_PIECE_BYTES = 8 << 20
_NEVER_SENT = 0x7FFFFFFF  # a tag


def rows(x: Tensor) -> Tensor:
    """A contiguous view of a canonical activation: NHWC of a channels_last one."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 and not x.is_contiguous() else x


class _Group(Protocol):
    """What torch's stubs do not say of its groups."""

    def send(self, tensors: list[Tensor], peer: int, tag: int) -> dist.Work: ...

    def recv(self, tensors: list[Tensor], peer: int, tag: int) -> dist.Work: ...

    def abort(self) -> None: ...


class Pair:
    """A gloo group of two processes, made by these two alone.

    gloo's own abort does nothing. But a wait that times out closes the connections of its group, which ends every
    transfer that has not begun, at both ends: `end` waits a millisecond for what nobody sends. A transfer that has
    begun is never woken, not even by the peer's death. So only headers, which are small, are waited for as long as it
    takes; the payloads that follow at once go in pieces, each waited for `timeout_s` at the most.

    Args:
        store: seen by these two.
        rank: 0 in one of them, 1 in the other.
        timeout_s: for the peer to come, and for a piece to arrive.
    """

    def __init__(self, store: Store, rank: int, timeout_s: float) -> None:
        # A little longer, so that whoever waits learns of a silent peer by its heartbeat.
        self._peer, self._limit = 1 - rank, timedelta(seconds=timeout_s + 3.0)
        self._group: _Group | None = cast(_Group, dist.ProcessGroupGloo(store, rank, 2, self._limit))
        # The kernel of a stopped process takes connections, too: it is here when it has said so.
        hello = self.send([], [torch.zeros(1)])
        self.receive([], [torch.zeros(1)])
        hello()

    def send(self, header: Sequence[Tensor], payloads: Sequence[Tensor]) -> Transfer:
        """Start sending contiguous CPU tensors."""
        return self._start(self._post().send, header, payloads)

    def receive(self, header: Sequence[Tensor], payloads: Sequence[Tensor]) -> None:
        """Fill contiguous CPU tensors."""
        self._start(self._post().recv, header, payloads)()

    def _start(
        self, transfer: Callable[..., dist.Work], header: Sequence[Tensor], payloads: Sequence[Tensor]
    ) -> Transfer:
        kept = [*header, *payloads]
        patient = [transfer([tensor], self._peer, 0) for tensor in header]
        prompt = [transfer([piece], self._peer, 0) for tensor in payloads for piece in _pieces(tensor)]

        def wait() -> None:
            for works, limit in ((patient, _PATIENCE), (prompt, self._limit)):
                for work in works:
                    work.wait(limit)
            kept.clear()

        return wait

    def _post(self) -> _Group:
        if self._group is None:
            raise RuntimeError("Connection closed by this process")
        return self._group

    def end(self) -> None:
        """Wake whoever waits for a transfer that has not begun; from any thread."""
        group = self._group
        if group is not None:
            try:
                group.recv([torch.empty(0)], self._peer, _NEVER_SENT).wait(timedelta(milliseconds=1))
            except RuntimeError:
                return  # what was wanted

    def close(self) -> None:
        """Give threads and sockets back, once no thread waits any more."""
        self._group = None


def _pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Views of at most 8 MiB, so that a slow network is told from a dead one."""
    if tensor.nbytes <= _PIECE_BYTES:
        return (tensor,) if tensor.nbytes else ()
    return torch.split(tensor.view(-1), _PIECE_BYTES // tensor.element_size())


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
        self._payloads = cast(_Group, group)

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


class LinkFactory:
    """Makes this process's ends of its links."""

    def __init__(self, control: Control, transport: Transport, device: torch.device) -> None:
        self.control, self.transport, self.device = control, transport, device

    def link(self, source: int, target: int) -> Link:
        """One end of the one-way link between two processes; the other one makes its own at the same time."""
        name, rank = f"link/{source}-{target}", int(self.control.rank == target)
        pair = Pair(self.control.scoped(name), rank, self.control.timeout_s)
        if self.transport is Transport.NCCL:
            return NcclLink(pair, self.control.scoped(f"{name}/nccl"), rank, self.device)
        return PinnedLink(pair, self.device) if self.transport is Transport.PINNED else GlooLink(pair)


class Bulk:
    """Large tensors between process 0 and the others, beside the queues; two connect when they first need to."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self._pairs: dict[int, Pair] = {}
        self._meetings = Counter[int]()

    def send(self, peer: int, tensors: Sequence[Tensor]) -> None:
        """Send contiguous CPU tensors and wait until they are there."""
        self._pair(peer).send([], tensors)()

    def receive(self, peer: int, tensors: Sequence[Tensor]) -> None:
        """Fill contiguous CPU tensors."""
        self._pair(peer).receive([], tensors)

    def from_first(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite tensors in every process with process 0's."""
        host = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}
        if self.control.rank == 0:
            for peer in range(1, self.control.world_size):
                self.send(peer, list(host.values()))
            return
        self.receive(0, list(host.values()))
        for name, tensor in state.items():
            tensor.detach().copy_(host[name])

    def _pair(self, peer: int) -> Pair:
        """Wait, watching the peer, until both are here to transfer."""
        other, control = max(peer, self.control.rank), self.control
        self._meetings[peer] += 1
        name = f"bulk/{other}/{self._meetings[peer]}"
        control.publish(f"{name}/{control.rank}", True)
        control.read(f"{name}/{peer}", peer)
        if peer not in self._pairs:
            self._pairs[peer] = Pair(control.scoped(name), int(control.rank != 0), control.timeout_s)
        return self._pairs[peer]

    def close(self) -> None:
        """Give the connections back."""
        self._pairs.clear()
