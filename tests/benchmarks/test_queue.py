"""The queue's benchmark: what it makes of what the processes saw."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.contenders.handover import Case, ClockedStage, Step, cases, figures_of_stage, of_slowest_alone
from benchmarks.experiments.queue import COPY, GLOO, QUEUE, Load, Trial, figures_of, loads
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network

LOAD = Load(kib=1000, packets=4, latencies=3, rounds=2)
SLEEP_S = 0.02


def step(seconds: float, between_s: float = 0.0, waited_s: float = 0.0, cpu_s: float = 1.0) -> Step:
    return Step(seconds, seconds - between_s - waited_s, between_s, cpu_s)


def trials(start_ns: int, end_ns: int) -> tuple[Trial, Trial]:
    sender = Trial(sent_ns=(0, 1000, 2000), start_ns=start_ns, cpu_s=4e-6)
    return sender, Trial(received_ns=(5000, 7000, 9000), end_ns=end_ns, cpu_s=8e-6)


def test_loads_are_64_kib_to_64_mib_and_the_full_form_has_more_of_each() -> None:
    full, quick = loads(quick=False), loads(quick=True)
    assert [load.payload_bytes for load in full] == [2**16, 2**20, 2**22, 2**24, 2**26]
    for many, few in zip(full, quick, strict=True):
        assert many.kib == few.kib and many.packets > few.packets >= 4
        assert many.rounds >= 5 and few.rounds >= 3
    tensor = quick[0].tensors(1, torch.device("cpu"))[0]
    assert tensor.nbytes == 2**16 and tensor.dtype == torch.float32


def test_latency_is_each_packets_own_and_bandwidth_is_from_first_to_last() -> None:
    found = {QUEUE: [trials(0, 4_096_000)] * 2, GLOO: [trials(1_000_000, 3_048_000)] * 2}
    figures = figures_of(LOAD, found)
    assert figures[QUEUE]["latency_microseconds"].median == 6.0
    assert figures[QUEUE]["megabytes_per_second"].median == pytest.approx(1000.0)
    assert figures[GLOO]["megabytes_per_second"].median == pytest.approx(2000.0)
    assert figures[QUEUE]["rate_of_raw_gloo"].median == pytest.approx(0.5)
    assert "rate_of_raw_gloo" not in figures[GLOO]
    assert figures[QUEUE]["sender_cpu_microseconds"].median == pytest.approx(1.0)
    assert figures[QUEUE]["receiver_cpu_microseconds"].median == pytest.approx(2.0)


def test_a_copy_is_seen_by_one_process_alone() -> None:
    copied = Trial(sent_ns=(0,), received_ns=(3000,), start_ns=0, end_ns=4_096_000, cpu_s=4e-6)
    figures = figures_of(LOAD, {COPY: [(copied, Trial())], GLOO: [trials(0, 4_096_000)]})[COPY]
    assert figures["latency_microseconds"].median == 3.0
    assert figures["megabytes_per_second"].median == pytest.approx(1000.0)
    assert "receiver_cpu_microseconds" not in figures


def test_waiting_is_no_hand_over_but_work_between_and_slower_computation_are() -> None:
    alone = step(1.0)
    waiting = figures_of_stage([(alone, step(2.0, waited_s=1.0))] * 3)
    assert waiting["hand_over_percent"].median == pytest.approx(0.0)
    assert waiting["busy_milliseconds"].median == pytest.approx(1000.0)
    working = figures_of_stage([(alone, step(1.5, between_s=0.01, waited_s=0.47, cpu_s=1.03))] * 3)
    assert working["hand_over_percent"].median == pytest.approx(3.0), "1 % between, computations 2 % slower"
    assert working["between_computations_microseconds"].median == pytest.approx(10_000.0)
    assert working["extra_cpu_percent"].median == pytest.approx(3.0)


def test_pipeline_is_held_against_its_slowest_stage_of_the_same_round() -> None:
    first = [(step(1.0), step(1.0)), (step(4.0), step(4.0))]
    last = [(step(2.0), step(2.5)), (step(2.0), step(4.0))]
    figure = of_slowest_alone([first, last])
    assert (figure.minimum, figure.maximum, figure.n) == (0.8, 1.0, 2)


def test_quick_form_has_only_the_narrow_network() -> None:
    assert [case.width for case in cases(quick=True)] == [0.25]
    assert [case.width for case in cases(quick=False)] == [1.0, 0.25]
    for case in (*cases(quick=True), *cases(quick=False)):
        assert case.warm_up >= case.config.queue_depth, "the queue must have filled before the clock starts"


def small_stage(index: int) -> Stage:
    config, shape = TrainConfig(loss="pred", batch_size=4, decoder_dim=64, device="cpu"), (3, 32, 32)
    network = named_network(ModelConfig(model="vgg8b", width=0.125), shape, 10, config.loss)
    numerics = Numerics(torch.device("cpu"))
    return build_stage(config, network, infer_shapes(network, shape), 10, (1, len(network) - 1), index, numerics)


def test_clocked_stage_tells_computing_from_waiting_and_computes_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    packets = [Packet.of(Kind.TRAIN, Position(1, n), images, torch.arange(4)) for n in range(4)]
    plain, clocked = small_stage(0), ClockedStage(small_stage(0))
    clocked.start_clocks()
    start = time.perf_counter()
    for packet in packets:
        assert torch.equal(plain.forward(packet).x, clocked.forward(packet).x)
        plain.update()
        time.sleep(SLEEP_S)
        clocked.update()
    whole, average = time.perf_counter() - start, clocked.average(3)
    assert 0 < average.busy_s < average.seconds - SLEEP_S
    assert average.seconds <= whole / 3
    assert 0 < average.between_s < average.seconds - average.busy_s, "sleeping is no work"
    assert average.cpu_s > 0


def test_stepping_a_clocked_stage_counts_once() -> None:
    stage = ClockedStage(small_stage(0))
    packet = Packet.of(Kind.TRAIN, Position(), torch.randn(4, 3, 32, 32), torch.arange(4))
    for _ in range(3):
        stage.step(packet)
    average = stage.average(2)
    assert 0 < average.busy_s <= average.seconds


def test_case_says_what_it_measures() -> None:
    case = Case(0.25, 128, steps=8, rounds=3)
    assert case.label == "vgg8b x 0.25, batch 128"
    assert (case.config.loss, case.config.batch_size, case.config.device) == ("pred", 128, "cpu")
