"""A gloo group of two processes that these two make alone, and that any thread of either can end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

__all__ = ["Group", "Pair", "Transfer"]

Transfer = Callable[[], None]
"""Blocks until the tensors of a send may be changed."""

_PATIENCE = timedelta(days=1)  # of a transfer that has not begun; a lost peer is noticed by its heartbeat
_PIECE_BYTES = 32 << 20  # as fast as whole tensors within 4 %; 8 MiB cost 15 %
_NEVER_SENT = 0x7FFFFFFF  # a tag


class Group(Protocol):
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
        self._group: Group | None = cast(Group, dist.ProcessGroupGloo(store, rank, 2, self._limit))
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

    def _start(self, post: Callable[..., dist.Work], header: Sequence[Tensor], payloads: Sequence[Tensor]) -> Transfer:
        kept = [*header, *payloads]
        patient = [post([tensor], self._peer, 0) for tensor in header]
        prompt = [post([piece], self._peer, 0) for tensor in payloads for piece in _pieces(tensor)]

        def wait() -> None:
            for works, limit in ((patient, _PATIENCE), (prompt, self._limit)):
                for work in works:
                    work.wait(limit)
            kept.clear()

        return wait

    def _post(self) -> Group:
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
    """Views of at most 32 MiB, so that a slow network is told from a dead one."""
    if tensor.nbytes <= _PIECE_BYTES:
        return (tensor,) if tensor.nbytes else ()
    return torch.split(tensor.view(-1), _PIECE_BYTES // tensor.element_size())
