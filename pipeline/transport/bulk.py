"""Large tensors between process 0 and the others, beside the queues: given weights, final state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.errors import first_line
from pipeline.transport.control import Control
from pipeline.transport.network import connecting
from pipeline.transport.pair import Pair
from pipeline.transport.verdict import lost_connection

__all__ = ["Bulk"]


class Bulk:
    """Large tensors between process 0 and the others, beside the queues; two connect when they first need to.

    Of one `name` in all processes; each is for one thread.
    """

    def __init__(self, control: Control, name: str = "bulk") -> None:
        self.control, self.name = control, name
        self._pairs: dict[int, Pair] = {}
        self._meetings = Counter[int]()

    def send(self, peer: int, tensors: Sequence[Tensor]) -> None:
        """Send contiguous CPU tensors and wait until they are there. Raises StageFailure if the peer is lost."""
        pair = self._pair(peer)
        with self._watched(peer):
            pair.send([], tensors)()

    def receive(self, peer: int, tensors: Sequence[Tensor]) -> None:
        """Fill contiguous CPU tensors. Raises StageFailure if the peer is lost."""
        pair = self._pair(peer)
        with self._watched(peer):
            pair.receive([], tensors)

    @contextmanager
    def _watched(self, peer: int) -> Iterator[None]:
        """A connection that breaks is the peer's death, or somebody's who has said so."""
        try:
            yield
        except RuntimeError as error:
            if lost_connection(error):
                raise self.control.lost(peer, first_line(error)) from error
            raise

    def send_named(self, peer: int, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Send CPU tensors with names, types and shapes, all that the other side needs to know under a `key`."""
        told = [[name, str(x.dtype).removeprefix("torch."), list(x.shape)] for name, x in tensors.items()]
        self.control.publish(f"{self.name}/named/{key}", told)
        self.send(peer, [tensor.contiguous() for tensor in tensors.values()])

    def receive_named(self, peer: int, key: str) -> dict[str, Tensor]:
        """What the other side sends under a `key`."""
        told = self.control.read(f"{self.name}/named/{key}", peer)
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, dtype, shape in told}
        self.receive(peer, list(tensors.values()))
        return tensors

    def from_first(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite tensors in every process with process 0's; where there are none, nobody meets."""
        if not state or self.control.world_size == 1:
            return
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
        name = f"{self.name}/{other}/{self._meetings[peer]}"
        control.publish(f"{name}/{control.rank}", True)
        control.read(f"{name}/{peer}", peer)
        if peer not in self._pairs:
            with connecting(control, peer):
                self._pairs[peer] = Pair(control.scoped(name), int(control.rank != 0), control.timeout_s)
        return self._pairs[peer]

    def close(self) -> None:
        self._pairs.clear()
