"""The experiment `gpu`: what it compares and reports; the measuring itself needs a GPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.__main__ import main
from benchmarks.contenders.backprop import backprop_step
from benchmarks.contenders.captured import CapturedStep
from benchmarks.contenders.common import Mixed
from benchmarks.experiments import heads, throughput
from benchmarks.gpu.equality import CASES, placements
from benchmarks.gpu.kernels import Kernel, Kernels
from benchmarks.gpu.steps import Contender, Seen, contenders, rows_and_targets
from benchmarks.harness.crew import Crew
from benchmarks.race import speed
from benchmarks.race.tasks import tasks
from pipeline.config.schema import RunConfig, TrainConfig
from tests.support.recording import StandIn

CPU = torch.device("cpu")


def test_every_method_is_measured_plain_and_captured_in_both_precisions() -> None:
    every = contenders(compiled=False)
    assert len({one.label for one in every}) == len(every) == 4 * 2 * 2
    assert {(one.form, one.config.capture, one.config.compile) for one in every} == {
        ("plain", "off", False),
        ("captured", "auto", False),
    }
    assert {one.form for one in contenders(compiled=True)} == {"captured", "compiled"}
    assert all(one.config.compile == (one.form == "compiled") for one in contenders(compiled=True))


def made_up(milliseconds: float, kernels: float, launches: float, megabytes: float = 100.0) -> Seen:
    found = Kernels((Kernel("convolution", launches / 2, 700 * kernels), Kernel("norm", launches / 2, 300 * kernels)))
    return Seen((milliseconds, milliseconds, 2 * milliseconds), found, megabytes)


def test_rows_and_targets_hold_ours_against_backprop_of_the_same_form() -> None:
    seen = {
        Contender("backprop", "fp32", "plain"): made_up(4.0, 4.0, 100),
        Contender("backprop", "fp32", "captured"): made_up(2.0, 2.0, 100),
        Contender("pred", "fp32", "plain"): made_up(9.0, 1.0, 180),
        Contender("pred", "fp32", "captured"): made_up(1.5, 1.0, 180, 120.0),
    }
    rows, targets = rows_and_targets(seen)
    by_label = {row.label: row for row in rows}
    assert by_label["pred, fp32, captured"].figures["of_captured_backprop"].median == 0.75
    assert by_label["pred, fp32, plain"].figures["of_plain_backprop"].median == 2.25
    assert by_label["pred, fp32, plain"].figures["launches"].median == 180
    assert [kernel["name"] for kernel in by_label["pred, fp32, plain"].settings["kernels"]] == ["convolution", "norm"]
    assert {target.name: (target.measured, target.met) for target in targets} == {
        "launches of a plain step, pred": (180, True),
        "time of pred, fp32, captured over backprop's, as captured": (0.75, True),
        "time of pred, fp32, captured over plain backprop's": (0.375, True),
        "time of pred, fp32, captured over its kernels": (1.5, False),
        "memory of pred, fp32, captured over plain": (1.2, False),
    }


def test_placements_differ_in_processes_stages_and_form() -> None:
    every = placements(quick=False)
    assert {(one.processes, len(one.split)) for one in every} == {(1, 1), (1, 4), (2, 2), (4, 4)}
    assert len({one.label for one in every}) == len(every) == 8
    assert len(placements(quick=True)) == 4
    assert all(sum(one.split) == 8 for one in every) and "glob" in CASES


def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu", "--part", "steps"]) == 1
    assert "error: gpu ended early: the experiment gpu needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["gpu", "--part", "all"], "--part is 'all'; choose one of equality, steps, handover, pipelines, compiled"),
        (["queue", "--part", "steps"], "--part is for time-to-accuracy and gpu, not for queue"),
    ],
)
def test_a_part_that_is_none_is_an_error(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


class Spoils(nn.Module):
    """Waits for the device."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if x.sum().item() > -1e9 else 2.0)


@pytest.mark.parametrize("spoilt", [False, True], ids=["captured", "cannot be"])
def test_a_captured_step_of_backprop_has_the_bits_of_a_plain_one(
    spoilt: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    config = TrainConfig(loss="glob", batch_size=4, lr=1e-2)
    layers = [nn.Linear(3, 8), Spoils() if spoilt else nn.ReLU(), nn.Linear(8, 2)]
    models = [Mixed(copy.deepcopy(layers), config, CPU) for _ in range(2)]
    (plain, _), (step, _) = (backprop_step(config, model, CPU) for model in models)
    captured = CapturedStep(step, 4, StandIn)
    StandIn.records = StandIn.replays = 0
    for index in range(16):
        size = 3 if index == 14 else 4
        draw = torch.Generator().manual_seed(index)
        images, labels = torch.randn(size, 3, generator=draw), torch.randint(2, (size,), generator=draw)
        plain(images, labels)
        captured(images, labels)
    for ours, theirs in zip(*(model.parameters() for model in reversed(models)), strict=True):
        assert torch.equal(ours, theirs)
    assert (StandIn.records, StandIn.replays) == ((0, 0) if spoilt else (1, 4))
    assert len(caplog.messages) == spoilt


class Asked(Crew):
    """Notes what it is to train."""

    def call(self, function: object, *args: object, **kwargs: object) -> list[float]:  # type: ignore[override]
        assert isinstance(args[0], RunConfig)
        self.config = args[0]
        return [1.0]


def timed_configurations() -> list[RunConfig]:
    """Of all experiments that time an epoch after one that warms up."""
    crew = Asked(1)
    heads._time_all(replace(heads._QUICK, rounds=1), crew)
    size = throughput._sized(throughput._QUICK, 2)
    all_tasks = [*tasks(True, "data"), *tasks(False, "data")]
    return [crew.config, throughput._config(size, 2), *(speed._here(task) for task in all_tasks)]


def epoch_of(config: RunConfig) -> int:
    """Its steps."""
    assert config.data.train_limit is not None
    return config.data.train_limit // config.train.batch_size


def test_backprop_is_captured_before_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ours is: else it were plain in them, or recorded."""
    on_cores = [epoch_of(config) for config in timed_configurations()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    on_gpus = [epoch_of(config) for config in timed_configurations()]
    for steps in on_gpus:
        StandIn.records = 0
        step = CapturedStep(lambda images, labels: None, 1, StandIn)
        for _ in range(steps):
            step(torch.zeros(1), torch.zeros(1))
        assert StandIn.records == 1
    assert on_cores == [2, 3, 2, 30, 8] and on_gpus == [12, 12, 12, 30, 12], "no more than that asks for"


def test_the_loss_of_a_contender_decides_its_network() -> None:
    names = {one.method: one.config.loss for one in contenders(compiled=False)}
    assert names == {"backprop": "glob", "pred": "pred", "predsim": "predsim", "predsim, cheap head": "predsim"}
    assert Contender("predsim, cheap head", "fp32", "plain").config.similarity_head == "pool-4x4"
