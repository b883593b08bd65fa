"""Global backprop with Muon is the same maths as ours, and never recorded."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders.backprop import backprop_step
from benchmarks.contenders.captured import CapturedStep
from benchmarks.contenders.common import Mixed, build_blocks
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.numerics import Numerics
from pipeline.learning.optimizer import set_learning_rate
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import build_stage
from pipeline.network.spec import Network, infer_shapes
from pipeline.network.zoo import named_network

CPU, SHAPE, CLASSES = torch.device("cpu"), (3, 16, 16), 3


def network() -> Network:
    return named_network(ModelConfig(model="vgg6a", width=0.0625, hidden_units=8), SHAPE, CLASSES, "glob")


def test_a_contender_learns_to_the_bits_of_our_own_global_backprop() -> None:
    config = TrainConfig(loss="glob", batch_size=8, optimizer="muon", weight_decay=0.01, norm_bias_lr=3.0, lr=0.01)
    stage = build_stage(config, network(), infer_shapes(network(), SHAPE), CLASSES, [6], 0, Numerics(CPU))
    model = Mixed(build_blocks(network(), config.seed, CPU), config, CPU)
    learn, optimizer = backprop_step(config, model, CPU)
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        images = torch.randn(8, *SHAPE, generator=draw).to(memory_format=torch.channels_last)
        labels = torch.randint(CLASSES, (8,), generator=draw)
        stage.forward(Packet.of(Kind.TRAIN, Position(1, step), images, labels))
        stage.update()
        set_learning_rate(config.lr, optimizer)
        learn(images, labels)
    for block, theirs in zip(stage.blocks, model.body, strict=True):
        ours = block.block.state_dict()
        assert all(torch.equal(x, ours[name]) for name, x in theirs.state_dict().items())


@pytest.mark.parametrize(("optimizer", "recorded"), [("adam", True), ("muon", False)])
def test_its_step_runs_plainly(optimizer: str, recorded: bool) -> None:
    config = TrainConfig(loss="glob", optimizer=optimizer)
    model = Mixed(build_blocks(network(), 1, CPU), config, CPU)
    step, _ = backprop_step(config, model, torch.device("cuda", 0))
    assert isinstance(step, CapturedStep) == recorded
