"""Captured steps: what is recorded when, and that the bits are those of plain steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.catalog import LOSSES
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.captured import Capture
from pipeline.learning.graphs import CudaGraphs
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import Network, infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.checkpoint import digest
from tests.support.recording import StandIn

SHAPE, CLASSES, SIZE = (3, 8, 8), 4, 6
MODEL = ModelConfig(model="vgg6a", width=0.0625, hidden_units=8, dropout=0.3)
CPU = torch.device("cpu")
DEVICES = [
    pytest.param(CPU, id="stand-in"),
    pytest.param(
        torch.device("cuda", 0), id="cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    ),
]


def config(loss: str = "predsim", **changes: Any) -> TrainConfig:
    return replace(TrainConfig(loss=loss, batch_size=SIZE, decoder_dim=32, lr=1e-2, target_projection=8), **changes)


def build(
    settings: TrainConfig, device: torch.device, split: Sequence[int] = (6,), *, capture: bool, network: Network = ()
) -> list[Stage]:
    """Stages whose steps are captured or plain. On a CPU the learning rate is a tensor here too, as graphs need it."""
    network = network or named_network(MODEL, SHAPE, CLASSES, settings.loss)
    shapes = infer_shapes(network, SHAPE)
    settings = replace(settings, capture="auto" if capture else "off")
    numerics = Numerics(device, settings.precision)
    made = [build_stage(settings, network, shapes, CLASSES, split, index, numerics) for index in range(len(split))]
    for stage in made:
        for group in stage.optimizer.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        if capture and device.type == "cpu":
            stage.capture = Capture(stage.blocks, stage.optimizer, StandIn)
    return made


def batch(step: int, device: torch.device, *, kind: Kind = Kind.TRAIN, size: int = SIZE, epoch: int = 1) -> Packet:
    draw = torch.Generator().manual_seed(step)
    images, labels = torch.randn(size, *SHAPE, generator=draw), torch.randint(CLASSES, (size,), generator=draw)
    return Packet.of(kind, Position(epoch, step), images.to(device), labels)


def train(stages: Sequence[Stage], packet: Packet) -> list[Tensor]:
    """One step as the policies run it; what every stage handed on, and the gradients."""
    seen = []
    if len(stages) == 1 and not stages[0].config.backpropagates:
        return [stages[0].step(packet).x]
    for stage in stages:
        packet = stage.forward(packet)
        seen.append(packet.x)
    gradient: Tensor | None = None
    for stage in reversed(stages):
        gradient = stage.update(gradient)
        if gradient is not None:
            seen.append(gradient)
    return seen


def evaluate(stages: Sequence[Stage], packet: Packet) -> Tensor:
    for stage in stages:
        packet = stage.evaluate(packet)
    return packet.x


def story(stages: Sequence[Stage], device: torch.device) -> tuple[list[Tensor], str, object]:
    """Steps of full size, smaller ones, evaluation and a change of the learning rate between them."""
    seen: list[Tensor] = []
    for step in range(7):
        size, epoch = (4 if step == 4 else SIZE), 1 + (step > 4)
        seen += train(stages, batch(step, device, size=size, epoch=epoch))
        if step in (1, 3):
            seen.append(evaluate(stages, batch(100 + step, device, kind=Kind.EVALUATE)))
    state = digest({name: tensor.cpu() for stage in stages for name, tensor in stage.state_dict().items()})
    return [x.clone() for x in seen], state, [stage.scores(reset=True) for stage in stages]


def same(settings: TrainConfig, device: torch.device, split: Sequence[int] = (6,)) -> list[Stage]:
    """Captured and plain steps have the same bits; the captured stages."""
    deterministic = device.type == "cuda"
    torch.use_deterministic_algorithms(deterministic)
    try:
        captured = build(settings, device, split, capture=True)
        outputs, state, scores = story(captured, device)
        wanted, wanted_state, wanted_scores = story(build(settings, device, split, capture=False), device)
    finally:
        torch.use_deterministic_algorithms(False)
    assert scores == wanted_scores
    assert state == wanted_state
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, wanted, strict=True))
    assert not any(stage.capture.plain for stage in captured)
    return captured


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("split", [(6,), (2, 4)], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_captured_steps_have_the_bits_of_plain_ones(loss: str, split: Sequence[int], device: torch.device) -> None:
    same(config(loss, lr_milestones=(1,)), device, split)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "amsgrad", "weight_decay": 1e-3},
        {"optimizer": "sgd", "momentum": 0.9},
        {"precision": "bf16"},
        {"segments": (3, 3)},
        {"similarity_head": "pool-4x4"},
        {"classifier": "mlp-sr", "label_smoothing": 0.1},
        {"classifier": "copy", "head_start": "random"},
        {"classifier": "fast-copy"},
        {"lr_schedule": "triangle", "lr_peak": 0.4, "norm_bias_lr": 8.0, "norm_momentum": 0.6},
        {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "norm_bias_lr": 8.0, "lr_schedule": "cosine"},
        {"optimizer": "muon", "momentum": None, "weight_decay": 1e-2, "norm_bias_lr": 8.0, "lr_schedule": "cosine"},
        {"optimizer": "muon", "momentum": 0.9, "nesterov": True, "classifier": "copy", "precision": "bf16"},
        {"ema": 0.4, "head_lr": 0.5},
    ],
    ids=str,
)
def test_all_settings_are_captured(changes: dict[str, Any], device: torch.device) -> None:
    same(config(**changes), device, (3, 3))


def test_recording_begins_with_the_third_full_batch_and_leaves_the_others_plain() -> None:
    (stage,) = build(config(), CPU, capture=True)
    counts = []
    StandIn.records = StandIn.replays = 0
    for step, size in enumerate((SIZE, 4, SIZE, 4, SIZE, 4, SIZE)):
        stage.step(batch(step, CPU, size=size))
        counts.append((StandIn.records, StandIn.replays))
    graphs = 6 * 2 + 1  # forward and update of every block, and the optimizer
    assert counts == [(0, 0)] * 4 + [(graphs, graphs)] * 2 + [(graphs, 2 * graphs)]


def test_a_step_of_muon_is_not_recorded_and_has_the_rate_of_the_day() -> None:
    (stage,) = build(config(optimizer="muon", momentum=None), CPU, capture=True)
    StandIn.records = StandIn.replays = 0
    for step in range(4):
        stage.step(batch(step, CPU))
    assert (StandIn.records, StandIn.replays) == (12, 24), "forward and update of six blocks"
    before = stage.blocks[1].block.get_parameter("encoder.weight").detach().clone()
    stage._learn_at(0.0)
    stage._learn_at = lambda rate: None  # type: ignore[method-assign]
    stage.step(batch(4, CPU))
    assert torch.equal(stage.blocks[1].block.get_parameter("encoder.weight"), before)


def test_what_is_handed_on_stays_as_it_was() -> None:
    stages = build(config(), CPU, (3, 3), capture=True)
    handed_on = [train(stages, batch(step, CPU))[0] for step in range(5)]
    again = [train(build(config(), CPU, (3, 3), capture=False), batch(0, CPU))[0]]
    assert torch.equal(handed_on[0], again[0])
    assert len({x.data_ptr() for x in handed_on}) == 5


def test_loaded_state_starts_over_with_plain_steps() -> None:
    straight, captured, resumed = (build(config(), CPU, capture=flag)[0] for flag in (False, True, True))
    for step in range(4):
        captured.step(batch(step, CPU))
        straight.step(batch(step, CPU))
    for step in range(10, 14):
        resumed.step(batch(step, CPU))  # its graphs are of tensors that loading replaces
    resumed.load_state_dict({name: tensor.clone() for name, tensor in captured.state_dict().items()})
    for step in range(4, 9):
        for stage in (straight, resumed):
            stage.step(batch(step, CPU))
    assert digest(resumed.state_dict()) == digest(straight.state_dict())


class Waits(nn.Module):
    """Looks at a number of the device."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 if x.sum().item() > -1e9 else 2.0)


class Tosses(nn.Module):
    """Draws from a generator that no key sets."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.draw() if self.training else 1.0)


class _Noise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] + 0.1 * torch.rand_like(gradients[0])


class Noise(nn.Module):
    """Adds noise to gradients."""

    def forward(self, x: Tensor) -> Any:
        return _Noise.apply(x)


def odd_network(odd: nn.Module) -> Network:
    """Four blocks, one of which cannot be captured."""
    layers = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())]
    layers += [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), odd, nn.ReLU())]
    layers += [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    torch.manual_seed(0)
    for layer in layers:
        cast(nn.Conv2d, layer[0]).reset_parameters()
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, CLASSES))
    return given_network(blocks_from(nn.Sequential(*layers, head)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("split", [(4,), (3, 1)], ids=str)
@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (Waits, "not permitted"),
        (lambda: Tosses(lambda: 1.0 + 0.0 * random.random()), "draws random numbers on the host"),
        (lambda: Tosses(lambda: 1.0 + 0.0 * np.random.rand()), "draws random numbers on the host"),  # noqa: NPY002
    ],
    ids=["waits", "tosses in Python", "tosses in NumPy"],
)
def test_what_cannot_be_captured_runs_plainly(
    odd: Callable[[], nn.Module],
    reason: str,
    split: Sequence[int],
    device: torch.device,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.use_deterministic_algorithms(device.type == "cuda")
    try:
        captured = build(config(), device, split, capture=True, network=odd_network(odd()))
        plain = build(config(), device, split, capture=False, network=odd_network(odd()))
        drawn = random.getstate()
        assert story(captured, device)[1] == story(plain, device)[1]
        random.setstate(drawn)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [list(stage.capture.plain) for stage in captured] == [[1], []][: len(split)]
    assert reason in captured[0].capture.plain[1]
    (line,) = caplog.messages
    assert line.startswith("block 1 runs plainly, not captured: ") and "\n" not in line


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", ["pred", "glob"])
def test_numbers_drawn_in_a_backward_are_those_of_a_plain_step(loss: str, device: torch.device) -> None:
    states = set()
    torch.use_deterministic_algorithms(device.type == "cuda")
    try:
        for capture, split in ((True, (4,)), (True, (2, 2)), (False, (4,))):
            stages = build(config(loss), device, split, capture=capture, network=odd_network(Noise()))
            states.add(story(stages, device)[1])
            assert not any(stage.capture.plain for stage in stages)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(states) == 1


def test_a_stage_of_which_nothing_can_be_captured_runs_plainly() -> None:
    (captured,) = build(config(), CPU, (4,), capture=True, network=odd_network(Waits()))
    captured.capture = Capture(captured.blocks[1:2], captured.optimizer, StandIn)
    x = torch.zeros(SIZE, 4, 8, 8)
    targets = captured._of_batch(torch.zeros(SIZE, dtype=torch.int64))
    for _ in range(3):
        acting = captured.capture.acting("step", x, targets, full=True)
    assert list(acting) == list(captured.blocks[1:2])


def test_nothing_is_captured_on_a_cpu_or_when_it_is_off() -> None:
    assert build(config(), CPU, capture=False)[0].capture.warm_up == 1
    shapes = infer_shapes(network := named_network(MODEL, SHAPE, CLASSES, "pred"), SHAPE)
    assert build_stage(config("pred"), network, shapes, CLASSES, (6,), 0, Numerics(CPU)).capture.warm_up == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_stage_is_captured_unless_it_is_off() -> None:
    device = torch.device("cuda", 0)
    assert build(config(), device, capture=True)[0].capture.warm_up == 3
    assert build(config(), device, capture=False)[0].capture.warm_up == 1
    graphs, x = CudaGraphs(device), torch.ones(4, device=device)
    replay = graphs.record(lambda: x.mul_(2).sum())
    assert x.sum() == 4, "recording changes nothing"
    replay()
    assert x.sum() == 8
