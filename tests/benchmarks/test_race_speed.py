"""What a step takes, measured with crews that only count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import pytest
import torch

from benchmarks.contenders.common import Trained
from benchmarks.contenders.methods import Method
from benchmarks.race import speed
from benchmarks.race.entrants import entrants
from benchmarks.race.lines import BACKPROP, lines
from pipeline.config.schema import RunConfig
from tests.support.races import QUICK

STEP, AVERAGE = 2.0, 6.0  # seconds, joules and megabytes alike


@dataclass
class Meter:
    """What has been used so far."""

    used: float = 100.0
    trained: int = 0
    held: list[Method] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)

    def train(self, method: Method, crew: object, config: RunConfig) -> list[Trained]:
        steps = QUICK.timed_steps
        averages = steps // method.every if method.kind == "averaged" else 0
        epoch = steps * STEP + averages * AVERAGE
        self.trained += 1
        self.devices.add(config.train.device)
        self.used += 50.0 + config.train.epochs * epoch
        return [Trained((epoch,) * config.train.epochs, ())] * method.processes

    def memory(self, method: Method, config: RunConfig) -> list[float]:
        self.held.append(method)
        self.devices.add(config.train.device)
        return [STEP + (AVERAGE if method.kind == "averaged" and method.every == 1 else 0.0)] * method.processes


class NoCrew:
    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        pass


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    found = Meter()
    monkeypatch.setattr(speed, "Crew", NoCrew)
    monkeypatch.setattr(Method, "train", lambda *called: found.train(*called))  # bound to the method
    monkeypatch.setattr(speed, "peak_memory", found.memory)
    monkeypatch.setattr(speed, "joules", lambda: found.used)
    return found


def test_averages_of_replicas_are_in_all_that_a_step_takes(meter: Meter) -> None:
    """Though none falls into the few steps that are measured."""
    averaged = [line for line in lines(QUICK) if line.every is not None]
    found = speed.measure_all(QUICK, entrants(QUICK, [BACKPROP, *averaged]), 1)
    for line in averaged:
        assert line.every is not None and line.every > QUICK.timed_steps
        taken, share = found[line.name], STEP + AVERAGE / line.every
        assert [*taken.seconds, taken.joules] == pytest.approx([share, share]), line.name
        assert taken.megabytes == 2 * (STEP + AVERAGE), line.name
    assert found["backprop, one process"] == speed.Speed((STEP,), STEP, STEP)


@pytest.mark.parametrize(("gpus", "device"), [(1, "cpu"), (2, "auto")])
def test_everyone_is_on_a_gpu_or_nobody(meter: Meter, gpus: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of ours would share a GPU, on which those of DDP would not be."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    speed.measure_all(QUICK, entrants(QUICK, lines(QUICK)), 1)
    assert meter.devices == {device}


def test_without_a_meter_no_joules_are_told(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "joules", lambda: None)
    assert speed.measure_all(QUICK, entrants(QUICK, [BACKPROP]), 1)["backprop, one process"].joules is None


def test_joules_of_a_counter_that_ran_over_do_not_count(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1.0, 10.0, 5.0, *(float(100 * n) for n in range(1, 99))])  # the second ends below its start
    monkeypatch.setattr(speed, "joules", lambda: next(readings))
    (entrant, *_) = entrants(QUICK, [BACKPROP])
    assert speed.measure_all(QUICK, [entrant], 1)[entrant.label].joules is None


def test_a_measurement_that_was_stopped_goes_on_with_its_rounds(meter: Meter) -> None:
    """Splits are those found at first, and no round is measured again."""
    everyone, kept = entrants(QUICK, [BACKPROP]), list[speed.Begun]()
    whole = speed.measure_all(QUICK, everyone, 3, keep=kept.append)
    assert [len(begun.rounds) for begun in kept] == [0, 1, 2, 3]
    trained = meter.trained
    again = list[speed.Begun]()
    assert speed.measure_all(QUICK, everyone, 3, kept[2], again.append) == whole
    assert again == kept[3:] and meter.trained == trained + (trained - len(everyone)) // 3
    assert speed.measure_all(QUICK, everyone, 3, kept[3]) == whole
