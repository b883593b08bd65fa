"""Losses: the maths against plain formulas, and edge cases that stay finite."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.config.schema import TrainConfig
from pipeline.learning.heads import FeedbackLinear
from pipeline.learning.losses import LocalLoss, OutputLoss, Targets, create_local_loss, similarity_matrix
from tests.support.activations import random_batch

LOCAL = ("pred", "sim", "predsim", "pred-bio", "sim-bio", "predsim-bio")
SHAPES = ((8, 6, 6), (8, 1, 1), (3, 4, 4), (12,))


def make(name: str, shape: tuple[int, ...], classes: int = 5, beta: float = 0.9) -> LocalLoss:
    config = TrainConfig(loss=name, beta=beta, decoder_dim=64, target_projection=16)
    return create_local_loss(config, shape, classes)


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


def test_predsim_weighs_similarity_by_beta() -> None:
    loss = make("predsim", (8, 6, 6), beta=0.7)
    h, labels = random_batch((8, 6, 6))
    assert isinstance(loss.decoder, torch.nn.Linear) and loss.similarity is not None and loss.pool is not None
    torch.nn.init.normal_(loss.decoder.weight)
    scores = loss.decoder(loss.pool(h).flatten(1))
    matching = F.mse_loss(
        similarity_matrix(loss.similarity(h)), similarity_matrix(F.one_hot(labels, loss.classes).float())
    )
    total, seen = loss(h, Targets(labels))
    torch.testing.assert_close(total, 0.3 * F.cross_entropy(scores, labels) + 0.7 * matching)
    torch.testing.assert_close(seen, scores.detach())


def test_classifiers_start_with_zero_weights_and_random_bias() -> None:
    decoder = make("pred", (8, 6, 6)).decoder
    assert isinstance(decoder, torch.nn.Linear)
    assert not decoder.weight.any() and decoder.bias.all()


def test_prediction_gives_the_block_no_gradient_on_the_first_step() -> None:
    loss = make("pred", (12,))
    h, labels = random_batch((12,))
    loss(h, Targets(labels))[0].backward()
    assert h.grad is not None and not h.grad.any()


def test_bio_prediction_is_binary_cross_entropy_against_the_binarised_projection() -> None:
    loss = make("pred-bio", (12,))
    h, labels = random_batch((12,))
    assert loss.projection is not None and loss.decoder is not None
    codes = (loss.projection.T[labels] > 0).float()
    value, _ = loss(h, Targets(labels))
    torch.testing.assert_close(value, F.binary_cross_entropy_with_logits(loss.decoder(h), codes))


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
    scores = loss(h, Targets(labels))[1]
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
    value, _ = loss(h, Targets(labels))
    value.backward()
    assert value.isfinite()
    assert h.grad is not None and h.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_the_output_loss_carries_its_scale() -> None:
    scores, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(OutputLoss(0.25)(scores, Targets(labels))[0], 0.25 * F.cross_entropy(scores, labels))


def test_targets_filled_again_are_those_of_a_new_batch_in_mixed_precision() -> None:
    """A batch is worked out anew after a pause, where a run that goes on fills the last one's: -1/99 is no bf16."""
    classes = 100
    first, second = torch.randint(classes, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        fresh, filled = Targets(second.clone()), Targets(first.clone())
        wanted = fresh.similarities(classes, torch.float32)
        filled.similarities(classes, torch.float32)
    filled.refill(second)
    found = filled.similarities(classes, torch.float32)
    assert found.dtype == wanted.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert torch.equal(wanted, similarity_matrix(F.one_hot(second, classes).float()))
