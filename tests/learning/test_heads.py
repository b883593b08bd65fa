"""Local heads: pooling by the rule of the reference, feedback alignment, similarity heads and what they cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders.heads import CANDIDATES, with_head
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.heads import SIMILARITY_HEADS, AveragePool, FeedbackLinear, decoder_pool
from pipeline.learning.losses import LocalLoss, Targets, create_local_loss
from pipeline.learning.numerics import Numerics
from pipeline.learning.stage import build_stage
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from tests.support.activations import random_batch


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("side", "kernel", "padding"),
    [(8, (4, 2), (0, 0)), (28, (16, 8), (8, 4)), (7, (4, 4), (2, 2)), (3, (2, 1), (0, 0)), (9, (4, 4), (0, 0))],
)
def test_average_pool_equals_torch_with_its_gradient(
    side: int, kernel: tuple[int, int], padding: tuple[int, int], channels_last: bool
) -> None:
    x = torch.randn(3, 5, side, side, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    pooled, expected = AveragePool(kernel, padding)(ours), nn.AvgPool2d(kernel, kernel, padding)(theirs)
    torch.testing.assert_close(pooled, expected)
    weights = torch.randn_like(expected)
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None and ours.grad.shape == ours.shape
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_gradient_of_average_pool_needs_no_copy_to_channels_last() -> None:
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    AveragePool((4, 4))(x).sum().backward()
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "limit", "kernel", "padding", "outputs"),
    [
        # vgg8b, 32 pixels
        ((128, 32, 32), 2048, (8, 8), (0, 0), 2048),
        ((256, 32, 32), 2048, (16, 8), (0, 0), 2048),
        ((256, 16, 16), 2048, (8, 4), (0, 0), 2048),
        ((512, 4, 4), 2048, (2, 2), (0, 0), 2048),
        ((128, 32, 32), 4096, (8, 4), (0, 0), 4096),
        ((512, 4, 4), 4096, (2, 1), (0, 0), 4096),
        # vgg11b at three times the width
        ((384, 32, 32), 4096, (16, 8), (0, 0), 3072),
        # vgg8b, 28 pixels: odd maps get padding
        ((128, 28, 28), 1024, (16, 8), (8, 4), 1024),
        ((512, 3, 3), 1024, (4, 2), (2, 1), 1024),
        # vgg8b, 96 pixels
        ((256, 48, 48), 2048, (32, 16), (16, 0), None),
        # small enough already
        ((16, 4, 4), 4096, (1, 1), (0, 0), 256),
        # more maps than features allowed: one value each
        ((100, 8, 8), 64, (8, 8), (0, 0), 100),
    ],
)
def test_decoder_pooling_follows_the_reference(
    shape: tuple[int, int, int], limit: int, kernel: tuple[int, int], padding: tuple[int, int], outputs: int | None
) -> None:
    pool = decoder_pool(shape, limit)
    if kernel == (1, 1):
        assert isinstance(pool, nn.Identity)
    else:
        assert isinstance(pool, AveragePool) and (pool.kernel, pool.padding) == (kernel, padding)
    if outputs is not None:
        assert pool(torch.zeros(1, *shape)).numel() == outputs


def test_feedback_alignment_sends_errors_back_through_fixed_weights() -> None:
    layer = FeedbackLinear(7, 4)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(3, 7, requires_grad=True)
    error = torch.randn(3, 4)
    layer(x).backward(error)
    torch.testing.assert_close(x.grad, error @ layer.feedback)
    torch.testing.assert_close(layer.weight.grad, error.T @ x)
    torch.testing.assert_close(layer.bias.grad, error.sum(0))
    assert "feedback" not in dict(layer.named_parameters())


def test_feedback_weights_are_uniform_within_the_bound_of_their_inputs() -> None:
    feedback = FeedbackLinear(100, 50).feedback
    assert feedback.abs().max() <= 0.1
    assert feedback.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


HEADS = {**SIMILARITY_HEADS, **CANDIDATES}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("shape", [(16, 32, 32), (16, 14, 14), (12, 7, 5), (8, 2, 2), (8, 1, 1), (20,)])
def test_every_similarity_head_learns(name: str, shape: tuple[int, ...]) -> None:
    loss = create_local_loss(TrainConfig(loss="sim"), shape, 5, HEADS[name])
    h, labels = random_batch(shape)
    assert loss.similarity is not None
    maps = loss.similarity(h.detach())
    assert len(shape) != 3 or shape[1] < 2 or maps.shape[2] >= 2, "a spatial deviation needs two rows"
    value, _ = loss(h, Targets(labels))
    value.backward()
    assert h.grad is not None and torch.isfinite(h.grad).all() and h.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.similarity.parameters())


def macs_of(name: str, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of a sample in a head, counted."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        HEADS[name](shape)(torch.empty(1, *shape))
    return int(counter.get_total_flops()) // 2


def test_the_heads_save_what_their_names_say() -> None:
    full = 9 * 64 * 64 * 32 * 32
    assert {name: macs_of(name, (64, 32, 32)) for name in HEADS} == {
        "conv": full,
        "pool-2": full // 4,
        "pool-4": full // 16,
        "pool-4x4": full // 16,
        "stride-4": full // 16,
        "grouped-8": full // 8,
        "none": 0,
    }
    assert macs_of("pool-4", (64, 8, 8)) == full // 16 // 16  # 2x2
    assert macs_of("pool-4x4", (64, 8, 8)) == full // 16 // 4  # 4x4
    assert macs_of("conv", (20,)) == macs_of("pool-4x4", (20,)) == 400


def test_a_network_may_bring_similarity_heads_of_its_own() -> None:
    network = with_head(named_network(ModelConfig(model="vgg6a", width=0.0625), (3, 8, 8), 4, "predsim"), "none")
    config, shapes = TrainConfig(loss="predsim", decoder_dim=32), infer_shapes(network, (3, 8, 8))
    stage = build_stage(config, network, shapes, 4, [6], 0, Numerics(torch.device("cpu")))
    heads = [block.loss.similarity for block in stage.blocks if isinstance(block.loss, LocalLoss)]
    assert len(heads) == 5 and all(isinstance(head, nn.Identity | nn.Flatten) for head in heads)
