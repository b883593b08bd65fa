"""Queues: order, bounds, memory layout, and the death of the other end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.errors import StageFailure
from pipeline.learning.packet import Kind, Packet
from pipeline.network.blocks import canonical
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.queues import ReceiveQueue, SendQueue, slots
from pipeline.transport.wire import Contract, decode_header, encode_header, header_length
from tests.support.memory_link import MemoryLink

CONTRACT = Contract((3, 4, 5), torch.float32, batch=6)


class Pair:
    """Two ends of a queue in one process, ranks 0 and 1."""

    def __init__(self, depth: int, timeout_s: float = 30.0) -> None:
        store, self.link, self.recorder = HashStore(), MemoryLink(), Recorder(enabled=True)
        self.controls = [Control(store, rank, 2, timeout_s) for rank in range(2)]
        self.sender = SendQueue(self.link, CONTRACT, depth, self.controls[0], 1, self.recorder, 0)
        device = torch.device("cpu")
        self.receiver = ReceiveQueue(self.link, CONTRACT, depth, self.controls[1], 0, self.recorder, 1, device)

    def close(self) -> None:
        self.link.broken.set()
        for control in self.controls:
            control.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(getattr(request, "param", 4))
    yield made
    made.close()


def packet(step: int, samples: int = 6) -> Packet:
    images = canonical(torch.full((samples, 3, 4, 5), float(step)) + torch.arange(5.0))
    return Packet(Kind.TRAIN, 1, step, images, torch.arange(samples))


def stop() -> Packet:
    return Packet(Kind.STOP, 1, 0)


def test_slots_are_shared_between_both_ends() -> None:
    assert [slots(depth) for depth in (1, 2, 3, 4, 5)] == [(1, 0), (1, 1), (2, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize("pair", [1, 2, 3, 4, 9], indirect=True)
def test_packets_arrive_in_order_and_unchanged(pair: Pair) -> None:
    sent = [packet(step, samples=6 if step % 3 else 2) for step in range(12)]

    def send() -> None:
        for one in [*sent, stop()]:
            pair.sender.put(one)

    thread = threading.Thread(target=send)
    thread.start()
    for expected in sent:
        got = pair.receiver.get()
        assert (got.kind, got.epoch, got.step) == (expected.kind, expected.epoch, expected.step)
        assert got.activation is not None and expected.activation is not None
        assert torch.equal(got.activation, expected.activation)
        assert got.activation.stride() == expected.activation.stride()
        assert got.labels is not None and torch.equal(got.labels, torch.arange(got.batch))
    assert pair.receiver.get().kind is Kind.STOP
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("pair", [1, 2, 3, 4, 9], indirect=True)
def test_exactly_the_depth_is_sent_and_not_yet_taken(pair: Pair, request: pytest.FixtureRequest) -> None:
    depth = request.node.callspec.params["pair"]
    sent: list[int] = []

    def send() -> None:
        for step in range(depth + 5):
            pair.sender.put(packet(step))
            sent.append(step)
        pair.sender.put(stop())

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    time.sleep(0.3)
    assert len(sent) == depth
    pair.receiver.get()
    time.sleep(0.3)
    assert len(sent) == depth + 1
    while pair.receiver.get().kind is not Kind.STOP:
        pass
    thread.join(5)
    assert not thread.is_alive()


def test_a_packet_stays_valid_until_the_next_get(pair: Pair) -> None:
    for step in range(4):
        pair.sender.put(packet(step))
    first = pair.receiver.get().activation
    time.sleep(0.2)
    assert first is not None and first[0, 0, 0, 0] == 0.0


def test_a_dead_peer_is_named_within_seconds(pair: Pair) -> None:
    threading.Timer(0.1, pair.link.broken.set).start()
    start = time.monotonic()
    with pytest.raises(StageFailure, match=r"stage 0 \(process 0\) died: Connection closed by peer"):
        pair.receiver.get()
    assert time.monotonic() - start < 4


def test_a_full_queue_notices_the_death_of_its_receiver() -> None:
    pair = Pair(depth=1)
    try:
        pair.sender.put(packet(0))
        threading.Timer(0.1, pair.link.broken.set).start()
        with pytest.raises(StageFailure, match=r"stage 1 \(process 1\) died"):
            pair.sender.put(packet(1))
    finally:
        pair.close()


def test_a_silent_peer_is_named_after_the_timeout() -> None:
    pair = Pair(depth=2, timeout_s=1.0)
    pair.controls[0].close()  # its heart stops: a machine that hangs
    start = time.monotonic()
    try:
        with pytest.raises(StageFailure, match=r"stage 0 \(process 0\) has been silent for 1 s, seen from stage 1"):
            pair.receiver.get()
        assert 0.9 < time.monotonic() - start < 4
    finally:
        pair.close()


def test_a_slow_peer_is_waited_for() -> None:
    pair = Pair(depth=2, timeout_s=0.5)
    threading.Timer(1.5, lambda: pair.sender.put(packet(3))).start()
    try:
        assert pair.receiver.get().step == 3
    finally:
        pair.close()


def test_the_failure_that_came_first_is_the_one_reported(pair: Pair) -> None:
    pair.controls[0].fail("stage 0 ran out of memory")
    pair.link.broken.set()
    with pytest.raises(StageFailure, match="stage 0 ran out of memory"):
        pair.receiver.get()


def test_headers_carry_every_field_and_the_labels() -> None:
    sent = Packet(Kind.EVALUATE, 7, 2**40, None, torch.tensor([4, 2, 9]))
    header = encode_header(sent, 5, header_length(6))
    got = decode_header(header, 5, source=0)
    assert (got.kind, got.epoch, got.step, got.batch) == (Kind.EVALUATE, 7, 2**40, 3)
    assert got.labels is not None and got.labels.tolist() == [4, 2, 9]


def test_a_header_out_of_step_is_refused() -> None:
    header = encode_header(stop(), 5, header_length(6))
    with pytest.raises(StageFailure, match=r"stage 2 sent packet 5 .* where packet 4 .* was due"):
        decode_header(header, 4, source=2)
