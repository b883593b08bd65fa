"""A link inside one process that behaves as gloo does: a send is complete only when it has been received."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from pipeline.transport.links import Link, rows
from pipeline.transport.pair import Transfer

__all__ = ["MemoryLink", "MemoryLinks"]


class MemoryLink:
    """Both ends of one direction. `end` makes transfers fail, at both ends, as a dead peer does."""

    def __init__(self) -> None:
        self._posted: queue.Queue[tuple[Tensor, threading.Event]] = queue.Queue()
        self.broken = threading.Event()
        self.closed = 0  # ends

    def send(self, header: Tensor, payloads: Sequence[Tensor]) -> Transfer:
        events = []
        for tensor in [header, *(rows(x) for x in payloads)]:
            assert tensor.is_contiguous()
            events.append(threading.Event())
            self._posted.put((tensor, events[-1]))

        def wait() -> None:
            for event in events:
                while not event.wait(0.01):
                    self._raise_if_broken()

        return wait

    def receive_header(self, header: Tensor) -> None:
        self.receive([header])

    def receive(self, payloads: Sequence[Tensor]) -> None:
        for payload in payloads:
            tensor, event = self._next()
            assert tensor.shape == payload.shape
            payload.copy_(tensor)
            event.set()

    def _next(self) -> tuple[Tensor, threading.Event]:
        while True:
            try:
                return self._posted.get(timeout=0.01)
            except queue.Empty:
                self._raise_if_broken()

    def mark(self) -> object:
        return None

    def settle(self, mark: object) -> None:
        return None

    def end(self) -> None:
        self.broken.set()

    def close(self) -> None:
        self.closed += 1

    def _raise_if_broken(self) -> None:
        if self.broken.is_set():
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1")


class MemoryLinks:
    """The links of a run whose processes are threads of this one."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, int], MemoryLink] = defaultdict(MemoryLink)

    def link(self, source: int, target: int) -> Link:
        return self.made[source, target]
