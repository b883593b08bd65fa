"""What a queue costs: latency and bandwidth against raw transfers and a copy in memory, and what a stage pays for it.

Latency is from before a packet is put to after it was taken, by a receiver that was waiting. For the bandwidth packets
are put as fast as there is room. Two processes on cores of their own, one host, all alternatives interleaved.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.contenders.handover import measure_cases
from benchmarks.harness.crew import Crew, Member
from benchmarks.harness.figures import Figure, ratio, summarize
from benchmarks.harness.pictures import Curves
from benchmarks.harness.progress import shown
from benchmarks.harness.report import Result, Row
from pipeline.config.schema import TrainConfig
from pipeline.learning.packet import Kind, Packet, Position, TensorSpec, labelled
from pipeline.runtime.world import connect
from pipeline.spans import Recorder
from pipeline.transport.control import Control
from pipeline.transport.links import Link
from pipeline.transport.queues import Channel, ReceiveQueue, SendQueue, slots
from pipeline.transport.wire import Contract, codec_for

__all__ = ["Load", "Trial", "figures_of", "loads", "run"]

DEPTH = 4
COPY, GLOO, NCCL, QUEUE = "memory copy", "raw gloo", "raw nccl", "queue over gloo"
_KIB = 1024
_PAYLOADS_KIB = (64, 1024, 4096, 16384, 65536)
_BATCH = 32  # samples of a packet; its labels travel in the header
_IDLE_S = 0.002  # before a packet is put, so that the receiver waits for it
_SOURCES = 3  # tensors that are sent in rotation
_TURN_KIB = {False: 256 * _KIB, True: 32 * _KIB}  # sent in a turn, by `quick`
_PACKETS = {False: (8, 256), True: (4, 64)}  # of a turn: at least, at most
_LATENCIES = {False: 15, True: 5}  # of a turn
_ROUNDS = {False: 5, True: 3}


@dataclass(frozen=True)
class Load:
    """One size of packets, and how many of them make a turn."""

    kib: int
    packets: int
    latencies: int
    rounds: int

    @property
    def payload_bytes(self) -> int:
        """Of one packet."""
        return self.kib * _KIB

    def tensors(self, count: int, device: torch.device) -> list[Tensor]:
        """Float tensors of this size whose pages are there."""
        return [torch.ones(_BATCH, self.payload_bytes // (4 * _BATCH), device=device) for _ in range(count)]


@dataclass(frozen=True)
class Trial:
    """What one process saw of a turn: its own end, or both of a copy.

    Attributes:
        sent_ns: when each packet was put, by the clock that all processes of a host share; for the latency.
        received_ns: when each was taken.
        start_ns: when the first of many was put.
        end_ns: when the last of many was taken.
        cpu_s: processor time of all threads of the process for the many.
    """

    sent_ns: tuple[int, ...] = ()
    received_ns: tuple[int, ...] = ()
    start_ns: int = 0
    end_ns: int = 0
    cpu_s: float = 0.0


_Rounds = Sequence[tuple[Trial, Trial]]  # what both processes saw of every turn of one alternative


def loads(quick: bool) -> tuple[Load, ...]:
    """Packets of 64 KiB to 64 MiB; many of the small ones make a turn, few of the large ones."""
    least, most = _PACKETS[quick]
    return tuple(
        Load(kib, min(most, max(least, _TURN_KIB[quick] // kib)), _LATENCIES[quick], _ROUNDS[quick])
        for kib in _PAYLOADS_KIB
    )


def run(quick: bool) -> Result:
    """Measure queues, then the hand-overs of real stages."""
    with Crew(2) as crew:
        seen = {load: crew.call(take_turns, load) for load in shown(loads(quick), "sizes of packets")}
        rows, targets = measure_cases(crew, quick)
    found = {load: _by_way(processes) for load, processes in seen.items()}
    figures = {load: figures_of(load, rounds) for load, rounds in found.items()}
    return Result([*_rows(figures), *rows], targets, _picture(figures))


def _by_way(processes: Sequence[Sequence[Mapping[str, Trial]]]) -> dict[str, _Rounds]:
    """From process, round, alternative to alternative, round, process."""
    sender, receiver = processes
    names = list(sender[0])
    return {name: [(one[name], two[name]) for one, two in zip(sender, receiver, strict=True)] for name in names}


def figures_of(load: Load, found: Mapping[str, _Rounds]) -> dict[str, dict[str, Figure]]:
    """The figures of every alternative."""
    rates = {name: [_megabytes_per_second(load, *trials) for trials in rounds] for name, rounds in found.items()}
    figures = {}
    for name, rounds in found.items():
        costs = [[1e6 * trial.cpu_s / load.packets for trial in trials] for trials in zip(*rounds, strict=True)]
        figures[name] = {
            "latency_microseconds": summarize([_latency_us(*trials) for trials in rounds]),
            "megabytes_per_second": summarize(rates[name]),
            "sender_cpu_microseconds": summarize(costs[0]),
        }
        if name != COPY:
            figures[name]["receiver_cpu_microseconds"] = summarize(costs[1])
        if name == QUEUE:
            figures[name]["rate_of_raw_gloo"] = ratio(rates[name], rates[GLOO])
    return figures


def _latency_us(sender: Trial, receiver: Trial) -> float:
    """Of a packet, the median of a turn."""
    received = receiver.received_ns or sender.received_ns
    return statistics.median(end - start for start, end in zip(sender.sent_ns, received, strict=True)) / 1e3


def _megabytes_per_second(load: Load, sender: Trial, receiver: Trial) -> float:
    """1e6 bytes a second."""
    return 1e3 * load.packets * load.payload_bytes / ((receiver.end_ns or sender.end_ns) - sender.start_ns)


def _rows(figures: Mapping[Load, Mapping[str, Mapping[str, Figure]]]) -> list[Row]:
    return [
        Row(f"{load.kib} KiB: {name}", _settings(load, name), found)
        for load, ways in figures.items()
        for name, found in ways.items()
    ]


def _settings(load: Load, name: str) -> dict[str, object]:
    return {
        "method": name,
        "payload_bytes": load.payload_bytes,
        "packets_per_turn": load.packets,
        "queue_depth": None if name == COPY else DEPTH,
    }


def _picture(figures: Mapping[Load, Mapping[str, Mapping[str, Figure]]]) -> Curves:
    titles = {"megabytes_per_second": "megabytes a second", "latency_microseconds": "microseconds of one packet"}
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {title: {} for title in titles.values()}
    for load, ways in figures.items():
        for name, found in ways.items():
            for figure, title in titles.items():
                panels[title].setdefault(name, []).append((load.kib, found[figure].median))
    return Curves("KiB of a packet", "as the title says", panels, logarithmic=True)


class _Way:
    """One way to bring packets from process 0 to process 1; each process calls its own end only."""

    def __init__(self, member: Member) -> None:
        self.sends, self.receives = member.rank == 0, member.rank == 1

    def expect(self, count: int) -> None:
        """So many packets come next."""

    def send(self, index: int) -> None:
        """Start to send a packet; waits for room first."""

    def receive(self) -> None:
        """Wait for the next packet."""

    def settle(self) -> None:
        """Wait until everything sent has left."""

    def close(self) -> None:
        """End threads and connections; both processes call it."""


class _Copy(_Way):
    """Within process 0."""

    def __init__(self, member: Member, load: Load) -> None:
        super().__init__(member)
        self.receives = self.sends
        self._pairs = deque(zip(*(load.tensors(_SOURCES, torch.device("cpu")) for _ in range(2)), strict=True))

    def receive(self) -> None:
        source, target = self._pairs[0]
        target.copy_(source)
        self._pairs.rotate()


class _Raw(_Way):
    """Sends and receives without headers, as many under way as the queue has slots."""

    def __init__(self, member: Member, load: Load, backend: str) -> None:
        super().__init__(member)
        self._device = torch.device("cuda", member.rank) if backend == "nccl" else torch.device("cpu")
        self._group, self._peer = dist.new_group(backend=backend), 1 - member.rank
        self._window = slots(DEPTH)[member.rank]
        self._tensors = deque(load.tensors(_SOURCES, self._device))
        self._under_way: deque[dist.Work] = deque()
        self._left = 0

    def expect(self, count: int) -> None:
        if self.receives:
            self._left = count
            self._post()

    def _post(self) -> None:
        while self._left and len(self._under_way) < self._window:
            self._start(dist.irecv)
            self._left -= 1

    def _start(self, transfer: Callable[..., dist.Work | None]) -> None:
        work = transfer(self._tensors[0], self._peer, self._group)
        assert work is not None
        self._tensors.rotate()
        self._under_way.append(work)

    def send(self, index: int) -> None:
        while len(self._under_way) >= self._window:
            self._finish()
        self._start(dist.isend)

    def receive(self) -> None:
        self._finish()
        self._post()

    def _finish(self) -> None:
        self._under_way.popleft().wait()
        if self._device.type == "cuda":  # there, wait only orders the stream
            torch.cuda.current_stream(self._device).synchronize()

    def settle(self) -> None:
        while self._under_way:
            self._finish()

    def close(self) -> None:
        dist.barrier()
        dist.destroy_process_group(self._group)


class _Queue(_Way):
    """The product's own queue."""

    def __init__(self, member: Member, load: Load, control: Control, link: Link) -> None:
        super().__init__(member)
        self._labels = torch.zeros(_BATCH, dtype=torch.int64)
        self._tensors = load.tensors(_SOURCES if self.sends else 1, torch.device("cpu"))
        spec = TensorSpec(tuple(self._tensors[0].shape[1:]), torch.float32)
        contract, codec = Contract(labelled(spec), _BATCH), codec_for("auto", torch.float32)
        recorder = Recorder(enabled=False)
        channel = Channel(link, contract, codec, DEPTH, control, 1 - member.rank, recorder, member.rank)
        self._sink = SendQueue(channel) if self.sends else None
        self._source = ReceiveQueue(channel, torch.device("cpu")) if self.receives else None

    def send(self, index: int) -> None:
        assert self._sink is not None
        at = Position(1, index)
        self._sink.put(Packet.of(Kind.TRAIN, at, self._tensors[index % _SOURCES], self._labels))

    def receive(self) -> None:
        assert self._source is not None
        self._source.get()

    def close(self) -> None:
        if self._sink is not None:
            self._sink.put(Packet(Kind.STOP, Position()))
            self._sink.close()
        if self._source is not None:
            self._source.get()
            self._source.close()


def take_turns(member: Member, load: Load) -> list[dict[str, Trial]]:
    """What this process sees of all alternatives, round by round, after one round for warming up."""
    with connect(TrainConfig(device="cpu")) as world:
        link = world.links(torch.device("cpu")).link(0, 1)
        ways: dict[str, _Way] = {
            QUEUE: _Queue(member, load, world.control, link),
            GLOO: _Raw(member, load, "gloo"),
            COPY: _Copy(member, load),
        }
        if torch.cuda.device_count() >= member.size:
            ways[NCCL] = _Raw(member, load, "nccl")
        rounds = [{name: _turn(way, load) for name, way in ways.items()} for _ in range(load.rounds + 1)]
        for way in ways.values():
            way.close()
    return rounds[1:]


def _turn(way: _Way, load: Load) -> Trial:
    """Single packets to a waiting receiver, then many."""
    sent, received = _singly(way, load.latencies)
    way.expect(load.packets)
    dist.barrier()
    start, cpu = time.monotonic_ns(), time.process_time()
    for index in range(load.packets):
        if way.sends:
            way.send(index)
        if way.receives:
            way.receive()
    end = time.monotonic_ns()
    way.settle()
    dist.barrier()  # the receiver has everything: now both ends have done their work
    cpu_s = time.process_time() - cpu
    return Trial(sent, received, start if way.sends else 0, end if way.receives else 0, cpu_s)


def _singly(way: _Way, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """When each packet was put and taken."""
    sent, received = [], []
    way.expect(count)
    for index in range(count):
        dist.barrier()
        if way.sends:
            time.sleep(_IDLE_S)
            sent.append(time.monotonic_ns())
            way.send(index)
        if way.receives:
            way.receive()
            received.append(time.monotonic_ns())
    way.settle()
    return tuple(sent), tuple(received)
