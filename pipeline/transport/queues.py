"""Bounded queues of packets between neighbouring stages, asynchronous in both directions.

    stage i                                              stage i + 1
    put ──> send slots (S) ══ link ══> receive slots (R) ──> get        S + R = --queue-depth

A packet holds a slot from `put` until the stage behind takes it with `get`. Sending starts inside `put`; a thread on
either side waits for the transfers, so that the next packet arrives and the last one leaves while the stage computes.

The receiving end fills R + 1 buffers in rotation (one more on a GPU, whose host runs a step ahead of it):

    free ──> being received ──> arrived ──> held by the stage until its next get ──> free
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import PipelineError, first_line
from pipeline.learning.packet import Kind, Packet
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.links import Link, rows
from pipeline.transport.pair import Transfer
from pipeline.transport.watch import Watch
from pipeline.transport.wire import Codec, Contract, decode_header, encode_header

__all__ = ["Channel", "ReceiveQueue", "SendQueue", "slots"]

_POLL_S = 0.25  # how often a waiting stage looks after its peer; a packet wakes it at once


def slots(depth: int) -> tuple[int, int]:
    """Send and receive slots of a queue: 1 -> (1, 0), 2 -> (1, 1), 4 -> (2, 2), 5 -> (3, 2)."""
    return depth - depth // 2, depth // 2


@dataclass(frozen=True)
class Channel:
    """What both ends of a queue are told."""

    link: Link  # between the two processes
    contract: Contract  # what travels, as agreed on at start
    codec: Codec  # how it looks on the way
    depth: int  # `--queue-depth`
    control: Control  # to notice the death of the peer, the process at the other end
    peer: int
    recorder: Recorder  # takes the spans of the transfers, as this stage's
    stage: int


class _Queue(ABC):
    """What both ends share: a condition, and a thread that waits for transfers until it is done, ended, or fails."""

    def __init__(self, channel: Channel, name: str) -> None:
        self.channel = channel
        self._changed = threading.Condition()
        self._broken: BaseException | None = None
        self._ended = self._done = self._moving = False
        peer = channel.control.describe(channel.peer)
        self._thread = threading.Thread(target=self._guarded, name=f"{name} {peer}", daemon=True)

    def _guarded(self) -> None:
        broken: BaseException | None = None
        try:
            self._transfer()
        except BaseException as error:  # handed to the stage, which waits for this queue
            broken = error.with_traceback(None)  # which would keep the tensors and the group of the transfer
        with self._changed:
            self._broken, self._done = broken, broken is None
            self._changed.notify_all()

    @abstractmethod
    def _transfer(self) -> None:
        """Until the stop packet has gone through."""

    def _span(self, lane: str, packet: Packet, start_ns: int) -> None:
        duration, kind = time.monotonic_ns() - start_ns, packet.kind.name.lower()
        self.channel.recorder.add(self.channel.stage, lane, lane, packet.at.step, start_ns, duration, kind)

    def _sleep_until(self, ready: Callable[[], bool]) -> bool:
        """For the thread, holding the condition: whether it is ready, not ended."""
        while not self._ended and not ready():
            self._changed.wait(_POLL_S)
        return not self._ended

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """For the stage, holding the condition; raises if the thread failed or the peer is lost."""
        control, peer = self.channel.control, self.channel.peer
        if not ready() and self._broken is None:
            with Watch(control, peer) as watch:
                while not (ready() or self._broken or self._ended):
                    control.waits_for = None if self._moving else peer
                    self._changed.wait(_POLL_S)
                    watch.check()
            control.waits_for = None
        if self._ended:
            raise control.fail(f"{control.describe(control.rank)} was aborted")
        if not ready():
            assert self._broken is not None
            if isinstance(self._broken, PipelineError):
                raise control.fail(str(self._broken)) from self._broken
            raise control.lost(peer, first_line(self._broken))

    def close(self) -> None:
        """Wait until the last packet has gone through, and give the link back."""
        with self._changed:
            self._wait_until(lambda: self._done)
        self._thread.join()
        self.channel.link.close()

    def end(self) -> None:
        """Wake the thread, and let transfers fail; from any thread."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.channel.link.end()

    def release(self) -> None:
        """After `end`: give thread and link back. A transfer that was half done takes until `--timeout`."""
        self._thread.join(self.channel.control.timeout_s + 5.0)
        self.channel.link.close()


class SendQueue(_Queue):
    """The sending end."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, "send to")
        self.bytes_sent = 0
        self._free = slots(channel.depth)[0]
        self._sent = 0
        self._under_way: deque[tuple[Transfer, Packet, int]] = deque()  # what waits, for which packet, since when
        self._thread.start()

    def put(self, packet: Packet) -> None:
        """Start sending a packet; waits for a free slot first. Raises StageFailure if the receiver is lost."""
        with self._changed:
            self._wait_until(lambda: self._free > 0)
            self._free -= 1
        channel = self.channel
        header = encode_header(packet, self._sent, channel.contract)
        riders = channel.contract.riders
        payloads = [x for name, x in channel.codec.encode(packet.tensors).items() if name not in riders]
        self._sent += 1
        start = time.monotonic_ns()
        try:
            transfer = channel.link.send(header, payloads)
        except RuntimeError as error:  # the connection broke since the last packet
            raise channel.control.lost(channel.peer, first_line(error)) from None
        self.bytes_sent += sum(x.nbytes for x in payloads)
        with self._changed:
            self._under_way.append((transfer, replace(packet, tensors={}), start))
            self._changed.notify_all()

    def _transfer(self) -> None:
        kind = Kind.TRAIN
        while kind is not Kind.STOP:
            with self._changed:
                if not self._sleep_until(lambda: bool(self._under_way)):
                    return
                transfer, packet, start = self._under_way.popleft()
            kind = packet.kind
            transfer()
            self._span("send", packet, start)
            with self._changed:
                self._free += 1
                self._changed.notify_all()


class ReceiveQueue(_Queue):
    """The receiving end; `device` is where activations are wanted.

    A packet's activation belongs to the caller until the next `get`: then its memory is filled again.
    """

    def __init__(self, channel: Channel, device: torch.device) -> None:
        super().__init__(channel, "receive from")
        contract = channel.contract
        self._header = torch.empty(contract.header_length, dtype=torch.int64)
        self._ahead = slots(channel.depth)[1]
        # On a GPU the host may run one step ahead of the device, which still reads the buffer before the last.
        self._keep = 1 if device.type == "cuda" else 0
        self._buffers = deque(_buffers(contract, device) for _ in range(self._ahead + 1 + self._keep))
        self._read: deque[tuple[Mapping[str, Tensor], object]] = deque()  # given back; the device may still read
        self._permits = self._ahead
        self._arrived: deque[tuple[Packet, Mapping[str, Tensor] | None]] = deque()
        self._held: Mapping[str, Tensor] | None = None
        self._thread.start()

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
        return replace(packet, tensors=self.channel.codec.decode(packet.tensors))

    def _give_back(self) -> None:
        """Return the held buffers to the ring once the device has read them."""
        if self._held is None:
            return
        self._read.append((self._held, self.channel.link.mark()))
        self._held = None
        while len(self._read) > self._keep:
            buffers, mark = self._read.popleft()
            self.channel.link.settle(mark)
            with self._changed:
                self._buffers.append(buffers)
                self._changed.notify_all()

    def _transfer(self) -> None:
        sequence, kind, sender = 0, Kind.TRAIN, self.channel.control.describe(self.channel.peer)
        while kind is not Kind.STOP:
            with self._changed:
                if not self._sleep_until(lambda: self._permits > 0 and bool(self._buffers)):
                    return
                self._permits -= 1
                buffers = self._buffers.popleft()
            self.channel.link.receive_header(self._header)
            start = time.monotonic_ns()
            packet, batch = decode_header(self._header, sequence, sender, self.channel.contract)
            kind, sequence = packet.kind, sequence + 1
            if batch:
                packet = self._receive(packet, {name: x[:batch] for name, x in buffers.items()}, start)
            with self._changed:
                if not batch:
                    self._buffers.append(buffers)
                self._arrived.append((packet, buffers if batch else None))
                self._changed.notify_all()

    def _receive(self, packet: Packet, tensors: Mapping[str, Tensor], start: int) -> Packet:
        """Receive the tensors that a header has announced."""
        self._moving = True
        self.channel.link.receive([rows(x) for x in tensors.values()])
        self._moving = False
        self._span("receive", packet, start)
        return replace(packet, tensors={**tensors, **packet.tensors})


def _buffers(contract: Contract, device: torch.device) -> Mapping[str, Tensor]:
    """Memory for the tensors of one packet that follow its header."""
    return {
        name: spec.empty(contract.batch, device)
        for name, spec in contract.signature.items()
        if name not in contract.riders
    }
