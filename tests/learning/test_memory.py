"""Memory of weights, local losses and queues, counted before it is taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.memory import buffer_bytes, check_buffers, check_memory, loss_bytes, weight_bytes
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import Network, infer_shapes
from pipeline.network.zoo import named_network
from tests.support.data import message

SHAPE = (2, 50)


def network() -> Network:
    return given_network(blocks_from(nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(200, 3))))


def needed(**values: object) -> list[int]:
    config = TrainConfig(batch_size=8, **values)  # type: ignore[arg-type]
    return loss_bytes(config, network(), infer_shapes(network(), SHAPE), 3)


def test_heads_count_with_gradients_and_what_the_optimizer_keeps() -> None:
    classifier, similarity, matrices = 200 * 3 + 3, 200 * 200, 4 * 8 * 8
    assert needed(loss="pred") == [4 * 4 * classifier, 0]
    assert needed(loss="predsim") == [4 * (4 * (classifier + similarity) + matrices), 0]
    assert needed(loss="pred", optimizer="sgd") == [4 * 2 * classifier, 0]
    assert needed(loss="pred", optimizer="sgd", momentum=0.9) == [4 * 3 * classifier, 0]
    assert needed(loss="pred", optimizer="amsgrad") == [4 * 5 * classifier, 0]
    assert needed(loss="glob") == [0, 0]
    assert needed(loss="pred", segments=1) == [0, 0]


def test_similarity_without_weights_of_its_own_counts_its_matrices() -> None:
    projected, matrices = 200 * 128 + 128, 4 * 8 * 8
    assert needed(loss="sim-bio") == [4 * matrices, 0]
    assert needed(loss="pred-bio") == [4 * 4 * projected, 0]
    assert needed(loss="predsim-bio") == [4 * (4 * projected + matrices), 0]


def test_of_what_muon_learns_itself_there_is_one_moment() -> None:
    """Beside weight and gradient: Adam keeps two of the classifier, which gives class scores, and of vectors."""
    classifier, similarity, matrices = 200 * 3 + 3, 200 * 200, 4 * 8 * 8
    assert needed(loss="pred", optimizer="muon") == [4 * 4 * classifier, 0]
    assert needed(loss="predsim", optimizer="muon") == [4 * (4 * classifier + 3 * similarity + matrices), 0]
    filters, bias, output = 2 * 4 * 3, 4, 200 * 3 + 3
    assert weight_bytes(TrainConfig(optimizer="muon"), network()) == [4 * (3 * filters + 4 * bias), 16 * output]


def test_an_average_is_one_more_of_every_weight() -> None:
    classifier, convolution, output = 200 * 3 + 3, 2 * 4 * 3 + 4, 200 * 3 + 3
    assert needed(loss="pred", ema=0.9) == [4 * 5 * classifier, 0]
    assert needed(loss="pred", optimizer="sgd", ema=0.9) == [4 * 3 * classifier, 0]
    assert weight_bytes(TrainConfig(ema=0.9), network()) == [20 * convolution, 20 * output]


def test_counting_draws_nothing() -> None:
    config, made = TrainConfig(), network()
    shapes = infer_shapes(made, SHAPE)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loss_bytes(config, made, shapes, 3)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({}, "give --loss pred, whose heads are small"),
        ({"batch_size": 100_000}, "give a --batch-size below 100000"),
        ({"loss": "sim-bio"}, "give a --batch-size below 128"),
        ({"loss": "pred"}, "pool what the block hands on, or cut the network into fewer --segments"),
    ],
)
def test_losses_that_do_not_fit_are_told_with_the_way_out(values: dict[str, object], remedy: str) -> None:
    config = TrainConfig(**values)  # type: ignore[arg-type]
    shapes = infer_shapes(network(), SHAPE)
    text = message(lambda: check_memory(config, network(), shapes, 5, 2_000, "this machine"), ConfigError)
    assert "most of it block 0 (conv1d 0): " in text and "for activations of shape [4, 50]" in text
    assert "this machine has 0.0 MB" in text and text.endswith(remedy)
    check_memory(config, network(), shapes, 3, 1 << 40, "this machine")


def test_weights_count_with_gradients_and_what_the_optimizer_keeps() -> None:
    convolution, output = 2 * 4 * 3 + 4, 200 * 3 + 3
    assert weight_bytes(TrainConfig(), network()) == [16 * convolution, 16 * output]
    assert weight_bytes(TrainConfig(optimizer="sgd"), network()) == [8 * convolution, 8 * output]


def test_weights_that_do_not_fit_are_told_and_not_built() -> None:
    config = TrainConfig(loss="glob")
    made = named_network(ModelConfig(model="mlp", hidden_units=10**6, hidden_layers=3), (1, 28, 28), 10, "glob")
    shapes = infer_shapes(made, (1, 28, 28))
    text = message(lambda: check_memory(config, made, shapes, 10, 1 << 36, "this machine"), ConfigError)
    assert text == (
        "the weights need 32.0 TB with gradients and what the optimizer keeps, most of it block 1 (linear "
        "1000000-1000000): 16.0 TB; this machine has 68.7 GB; make the network smaller, such as by --width or "
        "--hidden-units"
    )


def test_queues_hold_as_many_packets_as_they_may_between_processes() -> None:
    shapes, config = infer_shapes(network(), SHAPE), TrainConfig(batch_size=8, queue_depth=5)
    assert buffer_bytes(config, shapes, (2,)) == 0
    assert buffer_bytes(config, shapes, (1, 1)) == 4 * 5 * 8 * 200
    check_buffers(config, shapes, (1, 1), 32_000, "this machine")
    text = message(lambda: check_buffers(config, shapes, (1, 1), 31_999, "this machine"), ConfigError)
    assert text == (
        "the queues need 0.0 MB for 5 batches of 8 samples between 2 stages; this machine has 0.0 MB; give a smaller "
        "--queue-depth or --batch-size"
    )
