"""Local classifiers that are small networks: what they see, what they are made of, and what of them is trained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.classifiers import CLASSIFIERS, AdaptiveMeans, GlobalMax
from pipeline.learning.losses import LocalLoss, OutputLoss, Targets, create_local_loss
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from tests.support import sessions

SHAPES = [(3, 1, 1), (4, 2, 3), (8, 7, 7), (80, 9, 8), (5, 16, 16), (7,), (100,), (4, 6)]


def parameters(name: str, *shape: int) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in CLASSIFIERS[name](shape, 10, True).parameters())


def stage_of(shape: tuple[int, ...] = sessions.SHAPE, **values: object) -> Stage:
    config = sessions.settings(**values)  # type: ignore[arg-type]
    network = named_network(sessions.MODEL, shape, sessions.CLASSES, config.loss)
    shapes = infer_shapes(network, shape)
    numerics = Numerics(torch.device("cpu"))
    return build_stage(config, network, shapes, sessions.CLASSES, [len(network)], 0, numerics)


def batch(shape: tuple[int, ...] = sessions.SHAPE, samples: int = 6) -> Packet:
    draw = torch.Generator().manual_seed(1)
    x, labels = torch.randn(samples, *shape, generator=draw), torch.arange(samples) % sessions.CLASSES
    return Packet.of(Kind.TRAIN, Position(1, 0), x, labels)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_each_takes_what_a_block_may_hand_on(name: str, shape: tuple[int, ...]) -> None:
    head = CLASSIFIERS[name](shape, 5, True)
    x = torch.randn(4, *shape, requires_grad=True)
    F.cross_entropy(head(x), torch.tensor([0, 1, 2, 3])).backward()
    assert head(x).shape == (4, 5)
    assert x.grad is not None and not x.grad.any(), "the last layer's weights start at zero"
    assert all((weight.grad is not None) == weight.requires_grad for weight in head.parameters())
    other = CLASSIFIERS[name](shape, 5, False)
    F.cross_entropy(other(x), torch.tensor([0, 1, 2, 3])).backward()
    assert x.grad.any() or shape == (3, 1, 1), "else every weight learns from the first step"


def test_they_are_as_large_as_their_sources_say() -> None:
    c, half = 256, 128
    convolutions = 9 * (c * half + 2 * half * half)
    assert parameters("copy", c, 8, 8) == convolutions + 3 * 2 * half + half * 10 + 10
    assert parameters("copy", 8, 4, 4) == 9 * (8 * 32 + 2 * 32 * 32) + 3 * 2 * 32 + 32 * 10 + 10, (
        "at least 32 channels"
    )
    assert parameters("fast-copy", c, 8, 8) == parameters("copy", c, 8, 8) - 10, "it has no bias for scores"
    assert parameters("copy", 1024) == 1024 * 512 + 512 * 512 + 2 * 2 * 512 + 512 * 10 + 10
    dense = 3 * ((4 * c) ** 2 + 2 * 4 * c)
    assert parameters("mlp-sr", c, 8, 8) == 3 * (c * c + 2 * c) + dense + 4 * c * 10 + 10
    assert parameters("mlp-sr", 1024) == 1024 * 64 + 2 * 64 + 64 * 10 + 10


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4))
def test_means_are_those_of_adaptive_average_pooling(height: int, width: int, rows: int, columns: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    found, expected = AdaptiveMeans(height, width, rows, columns)(x), F.adaptive_avg_pool2d(x, (rows, columns))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_equal_maxima_share_the_gradient() -> None:
    x = torch.tensor([[[[1.0, 3.0], [3.0, 0.0]]]], requires_grad=True)
    GlobalMax()(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[[[0.0, 0.5], [0.5, 0.0]]]]


@pytest.mark.parametrize("loss", ["pred", "predsim", "glob+pred"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_they_judge_what_is_handed_on_and_train_the_block_through_its_pooling(name: str, loss: str) -> None:
    stage = stage_of(loss=loss, classifier=name, head_start="random")
    block = next(one for one in stage.blocks if one.name.startswith("conv") and one.name.endswith("pool"))
    assert isinstance(block.loss, LocalLoss) and block.loss.judges_handed_on
    seen: list[tuple[int, ...]] = []
    assert block.loss.decoder is not None
    block.loss.decoder.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    before = {name: weight.clone() for name, weight in block.block.named_parameters() if name != "encoder.bias"}
    stage.step(batch())
    channels, height, width = block.gives.shape
    assert seen == [(6, channels, height, width)]
    after = dict(block.block.named_parameters())
    assert all(not torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_papers_classifier_sees_the_map_before_the_pooling() -> None:
    stage = stage_of(loss="pred")
    assert not any(one.loss.judges_handed_on for one in stage.blocks if isinstance(one.loss, LocalLoss))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_evaluation_moves_no_statistics_of_a_classifier(name: str) -> None:
    stage = stage_of(loss="pred", classifier=name)
    stage.step(batch())
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items() if "meter" not in name}
    stage.evaluate(batch())
    after = stage.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert any("local_head.decoder" in name and "running_mean" in name for name in before)


def test_smoothing_spreads_a_share_of_every_target() -> None:
    scores, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 4])
    soft = F.one_hot(labels, 5) * 0.8 + 0.2 / 5
    expected = -(soft * scores.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(OutputLoss(smoothing=0.2)(scores, Targets(labels))[0], expected)
    local = create_local_loss(TrainConfig(loss="pred", label_smoothing=0.2, head_start="random"), (5,), 5)
    assert local.decoder is not None
    outputs = local.decoder(scores)
    expected = -(soft * outputs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(local(scores, Targets(labels))[0], expected)


def test_a_random_start_is_that_of_any_linear_layer() -> None:
    local = create_local_loss(TrainConfig(loss="pred", head_start="random"), (400,), 5)
    assert isinstance(local.decoder, nn.Linear)
    bound = 1 / math.sqrt(400)
    assert 0.9 * bound < local.decoder.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"loss": "sim", "classifier": "copy"},
            "--classifier copy needs a loss with a local classifier that is trained",
        ),
        ({"loss": "pred-bio", "classifier": "copy"}, "--classifier copy needs a loss with a local classifier that is"),
        ({"loss": "glob", "head_start": "random"}, "--head-start random needs a loss with a local classifier that is"),
        ({"classifier": "cnn"}, "--classifier is 'cnn'; choose one of linear, mlp-sr, copy, fast-copy"),
        ({"head_start": "one"}, "--head-start is 'one'; choose one of zero, random"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1; give 0 up to below 1"),
        ({"label_smoothing": -0.1}, "--label-smoothing is -0.1; give a finite number at least 0"),
    ],
)
def test_what_does_not_fit_is_told(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**given)  # type: ignore[arg-type]
    assert str(caught.value).startswith(told)
