"""Losses: the maths against plain formulas, the pooling rule of the reference, and edge cases that stay finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.catalog import LOSSES
from pipeline.config.method import SIMILARITY_HEADS
from pipeline.learning.heads import AveragePool, FeedbackLinear, decoder_pooling, similarity_macs
from pipeline.learning.losses import LocalLoss, OutputLoss, create_local_loss, similarity_matrix
from pipeline.learning.ops import spatial_std

LOCAL = ("pred", "sim", "predsim", "pred-bio", "sim-bio", "predsim-bio")
SHAPES = ((8, 6, 6), (8, 1, 1), (3, 4, 4), (12,))


def make(name: str, shape: tuple[int, ...], classes: int = 5, beta: float = 0.9) -> LocalLoss:
    return create_local_loss(LOSSES[name], shape, classes, beta=beta, decoder_dim=64, target_projection=16)


def random_batch(shape: tuple[int, ...], samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, *shape, requires_grad=True), torch.randint(classes, (samples,))


@pytest.mark.parametrize("channels_last", [False, True])
def test_spatial_std_equals_torch_with_its_gradient(channels_last: bool) -> None:
    x = torch.randn(4, 5, 3, 7, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weights = torch.randn(4, 5, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (spatial_std(ours) * weights).sum().backward()
    (theirs.std(dim=(2, 3)) * weights).sum().backward()
    torch.testing.assert_close(spatial_std(x), x.std(dim=(2, 3)))
    torch.testing.assert_close(ours.grad, theirs.grad)


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


def test_similarity_is_the_centred_cosine() -> None:
    x = torch.randn(5, 9)
    centred = x - x.mean(1, keepdim=True)
    expected = F.cosine_similarity(centred.unsqueeze(1), centred.unsqueeze(0), dim=2)
    torch.testing.assert_close(similarity_matrix(x), expected)


def test_similarity_of_one_hot_labels_is_minus_one_over_k_minus_one() -> None:
    matrix = similarity_matrix(torch.eye(10))
    torch.testing.assert_close(matrix, torch.full((10, 10), -1 / 9).fill_diagonal_(1.0))


def test_similarity_reduces_only_maps_with_more_than_three_channels_and_one_row() -> None:
    maps = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(similarity_matrix(maps), similarity_matrix(maps.std(dim=(2, 3))))
    for shape in ((3, 5, 5), (4, 1, 5)):
        flat = torch.randn(3, *shape)
        torch.testing.assert_close(similarity_matrix(flat), similarity_matrix(flat.flatten(1)))


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
    pooling = decoder_pooling(*shape, limit)
    assert (pooling.kernel, pooling.padding) == (kernel, padding)
    pooled = pooling.module()(torch.zeros(1, *shape))
    assert pooled.numel() == pooling.outputs(*shape)
    if outputs is not None:
        assert pooled.numel() == outputs


def test_predsim_weighs_similarity_by_beta() -> None:
    loss = make("predsim", (8, 6, 6), beta=0.7)
    h, labels = random_batch((8, 6, 6))
    assert isinstance(loss.decoder, torch.nn.Linear) and loss.similarity is not None
    torch.nn.init.normal_(loss.decoder.weight)
    scores = loss.decoder(loss.pool(h).flatten(1))
    matching = F.mse_loss(
        similarity_matrix(loss.similarity(h)), similarity_matrix(F.one_hot(labels, loss.classes).float())
    )
    total, seen = loss(h, labels)
    torch.testing.assert_close(total, 0.3 * F.cross_entropy(scores, labels) + 0.7 * matching)
    torch.testing.assert_close(seen, scores.detach())


def test_classifiers_start_with_zero_weights_and_random_bias() -> None:
    decoder = make("pred", (8, 6, 6)).decoder
    assert isinstance(decoder, torch.nn.Linear)
    assert not decoder.weight.any() and decoder.bias.all()


def test_prediction_gives_the_block_no_gradient_on_the_first_step() -> None:
    loss = make("pred", (12,))
    h, labels = random_batch((12,))
    loss(h, labels)[0].backward()
    assert h.grad is not None and not h.grad.any()


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


def test_bio_prediction_is_binary_cross_entropy_against_the_binarised_projection() -> None:
    loss = make("pred-bio", (12,))
    h, labels = random_batch((12,))
    assert loss.projection is not None and loss.decoder is not None
    targets = (loss.projection.T[labels] > 0).float()
    torch.testing.assert_close(loss(h, labels)[0], F.binary_cross_entropy_with_logits(loss.decoder(h), targets))


def test_bio_prediction_decodes_to_the_class_whose_code_fits_best() -> None:
    loss = make("pred-bio", (12,))
    h, labels = random_batch((12,), samples=40)
    assert loss.projection is not None and isinstance(loss.decoder, FeedbackLinear)
    torch.nn.init.normal_(loss.decoder.weight)
    outputs = loss.decoder(h)
    codes = (loss.projection.T > 0).float()
    fits = torch.stack(
        [
            F.binary_cross_entropy_with_logits(outputs, code.expand_as(outputs), reduction="none").sum(1)
            for code in codes
        ]
    )
    scores = loss(h, labels)[1]
    assert scores is not None
    assert torch.equal(scores.argmax(1), fits.argmin(0))


def test_bio_heads_hold_no_similarity_weights() -> None:
    for shape in SHAPES:
        assert not list(make("sim-bio", shape).parameters())


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["zero rows", "constant maps", "one sample", "one class"])
def test_edge_cases_give_finite_values_and_gradients(name: str, shape: tuple[int, ...], case: str) -> None:
    loss = make(name, shape)
    samples = 1 if case == "one sample" else 6
    h, labels = random_batch(shape, samples)
    with torch.no_grad():
        if case == "zero rows":
            h[::2] = 0
        elif case == "constant maps":
            h[:] = torch.arange(6.0).view(6, *[1] * len(shape))
        elif case == "one class":
            labels[:] = 3
    value, _ = loss(h, labels)
    value.backward()
    assert value.isfinite()
    assert h.grad is not None and h.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_the_output_loss_carries_its_scale() -> None:
    scores, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(OutputLoss(0.25)(scores, labels)[0], 0.25 * F.cross_entropy(scores, labels))


@pytest.mark.parametrize("name", SIMILARITY_HEADS)
@pytest.mark.parametrize("shape", [(16, 32, 32), (16, 14, 14), (12, 7, 5), (8, 2, 2), (8, 1, 1), (20,)])
def test_every_similarity_head_learns_and_costs_what_it_says(name: str, shape: tuple[int, ...]) -> None:
    sizes = {"decoder_dim": 64, "target_projection": 16}
    loss = create_local_loss(LOSSES["sim"], shape, 5, beta=0.99, **sizes, similarity_head=name)
    h, labels = random_batch(shape)
    assert loss.similarity is not None
    with FlopCounterMode(display=False) as counter:
        maps = loss.similarity(h.detach())
    assert counter.get_total_flops() == 2 * len(labels) * similarity_macs(shape, name)
    assert len(shape) != 3 or shape[1] < 2 or maps.shape[2] >= 2, "a spatial deviation needs two rows"
    value, _ = loss(h, labels)
    value.backward()
    assert h.grad is not None and torch.isfinite(h.grad).all() and h.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.similarity.parameters())


def test_the_heads_save_what_their_names_say() -> None:
    macs = {name: similarity_macs((64, 32, 32), name) for name in SIMILARITY_HEADS}
    full = 9 * 64 * 64 * 32 * 32
    assert macs == {
        "conv": full,
        "pool-2": full // 4,
        "pool-4": full // 16,
        "pool-4x4": full // 16,
        "stride-4": full // 16,
        "grouped-8": full // 8,
        "none": 0,
    }
    assert similarity_macs((64, 8, 8), "pool-4") == full // 16 // 16  # 2x2
    assert similarity_macs((64, 8, 8), "pool-4x4") == full // 16 // 4  # 4x4
