"""Queues: order, bounds, memory layout, and the death of the other end."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from pipeline.errors import StageFailure
from pipeline.learning.packet import Kind, Packet, Position, TensorSpec, labelled
from pipeline.network.blocks import canonical
from pipeline.runtime.siblings import describe
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.queues import Channel, ReceiveQueue, SendQueue, slots
from pipeline.transport.wire import Cast, Codec, Contract, decode_header, encode_header
from tests.support.memory_link import MemoryLink

CONTRACT = Contract(labelled(TensorSpec((3, 4, 5), torch.float32)), batch=6)

CPU = torch.device("cpu")


class Pair:
    """Two ends of a queue in one process, ranks 0 and 1."""

    def __init__(self, depth: int, timeout_s: float = 30.0, codec: Codec | None = None) -> None:
        store, self.link, self.recorder = HashStore(), MemoryLink(), Recorder(enabled=True)
        self.controls = [Control(store, rank, 2, timeout_s, describe) for rank in range(2)]
        lossless = Cast(torch.float32, torch.float32)
        ends = [
            Channel(self.link, CONTRACT, codec or lossless, depth, self.controls[rank], 1 - rank, self.recorder, rank)
            for rank in range(2)
        ]
        self.sender, self.receiver = SendQueue(ends[0]), ReceiveQueue(ends[1], torch.device("cpu"))

    def close(self) -> None:
        for queue in (self.sender, self.receiver):
            queue.end()
            queue.release()
        for control in self.controls:
            control.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(getattr(request, "param", 4))
    yield made
    made.close()


def packet(step: int, samples: int = 6) -> Packet:
    images = canonical(torch.full((samples, 3, 4, 5), float(step)) + torch.arange(5.0))
    return Packet.of(Kind.TRAIN, Position(1, step), images, torch.arange(samples))


def stop() -> Packet:
    return Packet(Kind.STOP, Position())


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
        assert (got.kind, got.at) == (expected.kind, expected.at)
        assert torch.equal(got.x, expected.x)
        assert got.x.stride() == expected.x.stride()
        assert torch.equal(got.labels, torch.arange(got.batch))
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
    time.sleep(0.15)
    assert len(sent) == depth
    pair.receiver.get()
    time.sleep(0.15)
    assert len(sent) == depth + 1
    while pair.receiver.get().kind is not Kind.STOP:
        pass
    thread.join(5)
    assert not thread.is_alive()


def test_a_packet_stays_valid_until_the_next_get(pair: Pair) -> None:
    for step in range(4):
        pair.sender.put(packet(step))
    first = pair.receiver.get().x
    time.sleep(0.2)
    assert first[0, 0, 0, 0] == 0.0


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends says why at once, or never."""
    monkeypatch.setattr("pipeline.transport.control._REPORT_S", 0.1)


def test_a_dead_peer_is_named(pair: Pair, without_reports: None) -> None:
    threading.Timer(0.1, pair.link.broken.set).start()
    with pytest.raises(StageFailure, match=r"stage 0 \(process 0\) died: Connection closed by peer"):
        pair.receiver.get()


def test_a_full_queue_notices_the_death_of_its_receiver(without_reports: None) -> None:
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
        assert time.monotonic() - start > 0.9
    finally:
        pair.close()


def test_a_slow_peer_is_waited_for() -> None:
    pair = Pair(depth=2, timeout_s=0.4)
    threading.Timer(1.0, lambda: pair.sender.put(packet(3))).start()
    try:
        assert pair.receiver.get().at.step == 3
    finally:
        pair.close()


def test_the_failure_that_came_first_is_the_one_reported(pair: Pair) -> None:
    pair.controls[0].fail("stage 0 ran out of memory")
    pair.link.broken.set()
    with pytest.raises(StageFailure, match="stage 0 ran out of memory"):
        pair.receiver.get()


def test_headers_carry_every_field_and_what_rides_along() -> None:
    sent = Packet(Kind.EVALUATE, Position(7, 2**40), {"x": torch.zeros(3, 1), "labels": torch.tensor([4, 2, 9])})
    got, batch = decode_header(encode_header(sent, 5, CONTRACT), 5, "stage 0", CONTRACT)
    assert (got.kind, got.at, batch) == (Kind.EVALUATE, Position(7, 2**40), 3)
    assert got.labels.tolist() == [4, 2, 9]


def test_a_header_out_of_step_is_refused() -> None:
    header = encode_header(stop(), 5, CONTRACT)
    with pytest.raises(StageFailure, match=r"stage 2 sent packet 5 .* where packet 4 .* was due"):
        decode_header(header, 4, "stage 2", CONTRACT)


def test_every_named_tensor_arrives_under_its_name() -> None:
    """Whole numbers of a sample ride in the header, everything else follows in the contract's order."""
    spec = TensorSpec((2,), torch.float32)
    contract = Contract(
        {**labelled(spec), "mask": TensorSpec((3,), torch.bool), "ids": TensorSpec((), torch.int64)}, 4
    )
    assert contract.riders == ["labels", "ids"]
    pair = Pair(depth=2)
    try:
        ends = [replace(queue.channel, contract=contract, link=MemoryLink()) for queue in (pair.sender, pair.receiver)]
        ends[1] = replace(ends[1], link=ends[0].link)
        sender, receiver = SendQueue(ends[0]), ReceiveQueue(ends[1], torch.device("cpu"))
        tensors = {
            "x": torch.randn(3, 2),
            "labels": torch.arange(3),
            "mask": torch.rand(3, 3) > 0.5,
            "ids": torch.arange(7, 10),
        }
        sender.put(Packet(Kind.TRAIN, Position(), tensors))
        sender.put(stop())
        got = receiver.get().tensors
        assert set(got) == set(tensors)
        assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())
        receiver.get()
        for queue in (sender, receiver):
            queue.close()
    finally:
        pair.close()


@pytest.mark.parametrize("outer", [torch.bfloat16, torch.float16])
def test_a_narrow_wire_halves_the_bytes_and_gives_back_the_stages_format(outer: torch.dtype) -> None:
    pair = Pair(depth=2, codec=Cast(torch.float32, outer))
    contract = Contract(Cast(torch.float32, outer).wire(CONTRACT.signature), 6)
    sent = packet(0)
    sent = sent.with_x(sent.x + 1e-3)
    try:
        ends = [replace(queue.channel, contract=contract) for queue in (pair.sender, pair.receiver)]
        link = MemoryLink()
        sender, receiver = (SendQueue(replace(ends[0], link=link)), ReceiveQueue(replace(ends[1], link=link), CPU))
        sender.put(sent)
        got = receiver.get().x
        assert got.dtype == torch.float32 and torch.equal(got, sent.x.to(outer).float())
        assert not torch.equal(got, sent.x) and sender.bytes_sent == sent.x.nbytes // 2
        for queue in (sender, receiver):
            queue.end()
            queue.release()
    finally:
        pair.close()


def test_a_queue_that_ends_well_gives_its_threads_and_its_link_back() -> None:
    before = threading.active_count()
    pair = Pair(depth=4)
    pair.sender.put(packet(0))
    pair.sender.put(stop())
    while pair.receiver.get().kind is not Kind.STOP:
        pass
    pair.sender.close()
    pair.receiver.close()
    assert pair.link.closed == 2
    for control in pair.controls:
        control.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("blocked", ["get", "put"])
def test_a_stage_that_waits_is_woken_when_its_queue_is_ended(blocked: str) -> None:
    pair = Pair(depth=1)
    pair.sender.put(packet(0))
    if blocked == "get":
        pair.receiver.get()
    act = pair.receiver.get if blocked == "get" else lambda: pair.sender.put(packet(1))
    queue, rank = (pair.receiver, 1) if blocked == "get" else (pair.sender, 0)
    timer = threading.Timer(0.1, queue.end)
    timer.start()
    try:
        with pytest.raises(StageFailure, match=rf"stage {rank} \(process {rank}\) was aborted"):
            act()
    finally:
        timer.join()
        pair.close()


def test_two_stages_that_wait_for_each_other_are_told_from_slow_ones() -> None:
    """Nothing comes through between them, though both hearts beat: a network that has gone, say."""
    pair = Pair(depth=1, timeout_s=1.0)
    pair.controls[0].at, pair.controls[1].at = Position(1, 9), Position(1, 8)
    pair.link.receive_header = lambda header: time.sleep(30)  # type: ignore[method-assign]
    pair.receiver = ReceiveQueue(pair.receiver.channel, CPU)
    errors: list[BaseException] = []

    def wait(act: Callable[[], object]) -> None:
        try:
            act()
        except StageFailure as error:
            errors.append(error)

    def fill() -> None:
        for step in range(3):
            pair.sender.put(packet(step))

    threads = [threading.Thread(target=wait, args=[act], daemon=True) for act in (fill, pair.receiver.get)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 2 and str(errors[0]) == str(errors[1])
    assert re.match(
        r"stage [01] \(process [01]\) at step [89] and stage [01] \(process [01]\) at step [89] have waited for each "
        "other for 1 s: nothing comes through between them; look at the network",
        str(errors[0]),
    )
    for control in pair.controls:
        control.close()
