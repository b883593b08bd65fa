"""A link inside one process that behaves as gloo does: a send is complete only when it has been received."""

from __future__ import annotations

import queue
import threading

from torch import Tensor

from pipeline.transport.links import Transfer, rows

__all__ = ["MemoryLink"]


class MemoryLink:
    """Both ends of one direction. `broken` makes the next transfer fail, as a dead peer does."""

    def __init__(self) -> None:
        self._posted: queue.Queue[tuple[Tensor, threading.Event]] = queue.Queue()
        self.broken = threading.Event()

    def send(self, header: Tensor, payload: Tensor | None) -> Transfer:
        events = []
        for tensor in [header] if payload is None else [header, rows(payload)]:
            assert tensor.is_contiguous()
            events.append(threading.Event())
            self._posted.put((tensor, events[-1]))

        def wait() -> None:
            for event in events:
                while not event.wait(0.01):
                    self._raise_if_broken()

        return wait

    def receive_header(self, header: Tensor) -> None:
        self.receive(header)

    def receive(self, payload: Tensor) -> None:
        while True:
            try:
                tensor, event = self._posted.get(timeout=0.01)
            except queue.Empty:
                self._raise_if_broken()
                continue
            assert tensor.shape == payload.shape
            payload.copy_(tensor)
            event.set()
            return

    def mark(self) -> object:
        return None

    def settle(self, mark: object) -> None:
        return None

    def _raise_if_broken(self) -> None:
        if self.broken.is_set():
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1")
