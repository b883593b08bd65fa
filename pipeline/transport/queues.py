"""Bounded queues of packets between neighbouring stages, asynchronous in both directions.

    stage i                                              stage i + 1
    put ──> send slots (S) ══ link ══> receive slots (R) ──> get        S + R = --queue-depth

A packet holds a slot from `put` until the stage behind takes it with `get`. Sending starts inside `put`; a thread on
either side waits for the transfers, so that the next packet arrives and the last one leaves while the stage computes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.errors import PipelineError, first_line
from pipeline.learning.packet import Kind, Packet
from pipeline.spans import Recorder
from pipeline.transport.control import Control, Watch
from pipeline.transport.links import Link, Transfer, rows
from pipeline.transport.wire import Contract, decode_header, encode_header, header_length

__all__ = ["ReceiveQueue", "SendQueue", "slots"]

_POLL_S = 0.25  # how often a waiting stage looks after its peer; a packet wakes it at once


def slots(depth: int) -> tuple[int, int]:
    """Send and receive slots of a queue: 1 -> (1, 0), 2 -> (1, 1), 4 -> (2, 2), 5 -> (3, 2)."""
    return depth - depth // 2, depth // 2


class _Queue:
    """What both ends share: a condition, and the failure of the thread behind it."""

    def __init__(self, control: Control, peer: int, recorder: Recorder, stage: int) -> None:
        self.control, self.peer, self.recorder, self.stage = control, peer, recorder, stage
        self._changed = threading.Condition()
        self._broken: BaseException | None = None

    def _start(self, target: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:  # handed to the stage, which waits for this queue
                with self._changed:
                    self._broken = error
                    self._changed.notify_all()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _span(self, lane: str, packet: Packet, start_ns: int) -> None:
        duration = time.monotonic_ns() - start_ns
        self.recorder.add(self.stage, lane, lane, packet.step, start_ns, duration, packet.kind.name.lower())

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait, holding the condition; raises if the thread failed or the peer is lost."""
        if not ready() and self._broken is None:
            watch = Watch(self.control, self.peer)
            while not ready() and self._broken is None:
                self._changed.wait(_POLL_S)
                watch.check()
        if not ready():
            assert self._broken is not None
            if isinstance(self._broken, PipelineError):
                raise self.control.fail(str(self._broken)) from self._broken
            raise self.control.lost(self.peer, first_line(self._broken))


class SendQueue(_Queue):
    """The sending end.

    Args:
        link: to the stage that receives.
        contract: what was agreed on at start.
        depth: `--queue-depth`.
        control, peer: to notice the other end's death.
        recorder: takes the spans of the transfers.
    """

    def __init__(
        self, link: Link, contract: Contract, depth: int, control: Control, peer: int, recorder: Recorder, stage: int
    ) -> None:
        super().__init__(control, peer, recorder, stage)
        self.link = link
        self.bytes_sent = 0
        self._length = header_length(contract.batch)
        self._free = slots(depth)[0]
        self._sent = 0
        self._under_way: deque[tuple[Transfer, Packet, int]] = deque()  # what waits, for which packet, since when
        self._thread = self._start(self._finish, f"send to stage {peer}")

    def put(self, packet: Packet) -> None:
        """Start sending a packet; waits for a free slot first. Raises StageFailure if the receiver is lost."""
        with self._changed:
            self._wait_until(lambda: self._free > 0)
            self._free -= 1
        header = encode_header(packet, self._sent, self._length)
        self._sent += 1
        start = time.monotonic_ns()
        try:
            transfer = self.link.send(header, packet.activation)
        except RuntimeError as error:  # the connection broke since the last packet
            raise self.control.lost(self.peer, first_line(error)) from error
        if packet.activation is not None:
            self.bytes_sent += packet.activation.nbytes
        with self._changed:
            self._under_way.append((transfer, packet, start))
            self._changed.notify_all()

    def _finish(self) -> None:
        kind = Kind.TRAIN
        while kind is not Kind.STOP:
            with self._changed:
                while not self._under_way:
                    self._changed.wait(_POLL_S)
                transfer, packet, start = self._under_way.popleft()
            kind = packet.kind
            transfer()
            self._span("send", packet, start)
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Wait until the stop packet has been taken."""
        self._thread.join(timeout_s)


class ReceiveQueue(_Queue):
    """The receiving end; arguments as for SendQueue, `device` is where activations are wanted.

    A packet's activation belongs to the caller until the next `get`: then its memory is filled again.
    """

    def __init__(
        self,
        link: Link,
        contract: Contract,
        depth: int,
        control: Control,
        peer: int,
        recorder: Recorder,
        stage: int,
        device: torch.device,
    ) -> None:
        super().__init__(control, peer, recorder, stage)
        self.link = link
        self._header = torch.empty(header_length(contract.batch), dtype=torch.int64)
        self._ahead = slots(depth)[1]
        # On a GPU the host may run one step ahead of the device, which still reads the buffer before the last.
        self._keep = 1 if device.type == "cuda" else 0
        self._buffers = deque(_buffer(contract, device) for _ in range(self._ahead + 1 + self._keep))
        self._read: deque[tuple[Tensor, object]] = deque()  # given back, perhaps still read by the device
        self._permits = self._ahead
        self._arrived: deque[tuple[Packet, Tensor | None]] = deque()
        self._held: Tensor | None = None
        self._start(self._fill, f"receive from stage {peer}")

    def get(self) -> Packet:
        """Take the next packet; waits for it. Raises StageFailure if the sender is lost."""
        self._give_back()
        with self._changed:
            if self._ahead == 0:  # depth 1: fetch on demand, so that nothing is taken ahead
                self._permits += 1
            self._changed.notify_all()
            self._wait_until(lambda: bool(self._arrived))
            packet, self._held = self._arrived.popleft()
            if self._ahead > 0:
                self._permits += 1
                self._changed.notify_all()
        return packet

    def _give_back(self) -> None:
        """Return the held buffer to the ring once the device has read it."""
        if self._held is None:
            return
        self._read.append((self._held, self.link.mark()))
        self._held = None
        while len(self._read) > self._keep:
            buffer, mark = self._read.popleft()
            self.link.settle(mark)
            with self._changed:
                self._buffers.append(buffer)
                self._changed.notify_all()

    def _fill(self) -> None:
        sequence = 0
        while True:
            with self._changed:
                while self._permits == 0 or not self._buffers:
                    self._changed.wait(_POLL_S)
                self._permits -= 1
                buffer = self._buffers.popleft()
            self.link.receive_header(self._header)
            start = time.monotonic_ns()
            packet = decode_header(self._header, sequence, self.peer)
            sequence += 1
            taken = self._receive(packet, buffer, start)
            with self._changed:
                if taken is packet:
                    self._buffers.append(buffer)
                self._arrived.append((taken, None if taken is packet else buffer))
                self._changed.notify_all()
            if packet.kind is Kind.STOP:
                return

    def _receive(self, packet: Packet, buffer: Tensor, start: int) -> Packet:
        """Receive the activation that belongs to a header, if it announces one."""
        if packet.batch == 0:
            return packet
        activation = buffer[: packet.batch]
        self.link.receive(rows(activation))
        self._span("receive", packet, start)
        return packet.with_activation(activation)


def _buffer(contract: Contract, device: torch.device) -> Tensor:
    """Memory for one packet's activation in canonical layout."""
    if len(contract.shape) != 3:
        return torch.empty((contract.batch, *contract.shape), dtype=contract.dtype, device=device)
    channels, height, width = contract.shape
    x = torch.empty((contract.batch, height, width, channels), dtype=contract.dtype, device=device)
    return x.permute(0, 3, 1, 2)
