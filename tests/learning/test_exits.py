"""Exits: which blocks have one, the bits of their scores, what they cost, and leaving at the first that is sure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.config.schema import TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning.exit_figures import confidence, threshold_figures
from pipeline.learning.exits import EarlyExits, create_classifiers
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import Network, infer_shapes
from pipeline.network.zoo import named_network
from tests.support import sessions
from tests.support.data import message
from tests.support.in_place import Adds

CPU = Numerics(torch.device("cpu"))
SHAPE, CLASSES = sessions.SHAPE, sessions.CLASSES


def trained(
    loss: str,
    network: Network | None = None,
    shape: tuple[int, ...] = SHAPE,
    classes: int = CLASSES,
    steps: int = 3,
    **values: Any,
) -> tuple[Stage, EarlyExits]:
    """A network after a few steps, and with the same blocks its exits."""
    config = sessions.settings(loss, **values)
    network = network or named_network(sessions.MODEL, shape, classes, loss)
    shapes = infer_shapes(network, shape)
    stage = build_stage(config, network, shapes, classes, [len(network)], 0, CPU)
    for step in range(steps):
        stage.step(packet(shape, classes, step))
    classifiers = create_classifiers(config, shapes, classes)
    names = [spec.name for spec in network]
    exits = EarlyExits(nn.Sequential(*(one.block for one in stage.blocks)), classifiers, shapes, names, classes)
    state = {name: x.clone() for block in stage.blocks for name, x in block.classifier_state().items()}
    exits.classifiers.load_state_dict(state, assign=True)
    return stage, exits.eval()


def packet(shape: tuple[int, ...], classes: int, step: int, kind: Kind = Kind.TRAIN, samples: int = 4) -> Packet:
    draw = torch.Generator().manual_seed(step)
    x, labels = torch.randn(samples, *shape, generator=draw), torch.randint(classes, (samples,), generator=draw)
    return Packet.of(kind, Position(1, step), x, labels)


KINDS = [
    ("pred", {}, (0, 1, 2, 3, 4, 5)),
    ("predsim", {}, (0, 1, 2, 3, 4, 5)),
    ("pred-bio", {}, (0, 1, 2, 3, 4, 5)),
    ("predsim-bio", {}, (0, 1, 2, 3, 4, 5)),
    ("glob+pred", {}, (0, 1, 2, 3, 4, 5)),
    ("glob+predsim", {}, (0, 1, 2, 3, 4, 5)),
    ("predsim", {"segments": (2, 1, 3)}, (1, 2, 5)),
    ("pred-bio", {"segments": 2}, (1, 5)),
    ("sim", {}, (5,)),
    ("sim-bio", {}, (5,)),
    ("glob", {}, (5,)),
    ("glob+sim", {}, (5,)),
]


@pytest.mark.parametrize(("loss", "values", "exits"), KINDS)
def test_every_exit_gives_the_bits_that_its_block_was_judged_by(
    loss: str, values: dict[str, Any], exits: tuple[int, ...]
) -> None:
    stage, model = trained(loss, **values)
    assert model.exits == exits
    assert model.layers == tuple(stage.blocks[index].name for index in exits)
    test = packet(SHAPE, CLASSES, 9, Kind.EVALUATE, samples=5)
    stage.evaluate(test)
    judged = {block.index: block.scored.scores for block in stage.blocks if block.scored is not None}
    found = model.as_trained()(test.x)
    assert [index for index, scores in judged.items() if scores is not None] == list(exits)
    for index, scores in zip(model.exits, found, strict=True):
        expected = judged[index]
        assert expected is not None and torch.equal(scores, expected)


def test_an_untrained_classifier_gives_other_scores() -> None:
    _, model = trained("pred")
    x = packet(SHAPE, CLASSES, 9).x
    before = model(x)
    decoder = model.classifiers["2"].decoder
    assert isinstance(decoder, nn.Linear)
    with torch.no_grad():
        decoder.weight.zero_()
    after = model(x)
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert same == [True, True, False, True, True, True]


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_last_exit_is_the_network_to_the_bit(channels_last: bool) -> None:
    _, model = trained("predsim")
    if channels_last:
        model.to(memory_format=torch.channels_last)
    x = packet(SHAPE, CLASSES, 9).x
    assert torch.equal(model(x)[-1], model.blocks(x))


def test_costs_are_counted_arithmetic() -> None:
    network = given_network([nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 3)])
    whole = 6 * 8 + 8 * 4 + 4 * 3
    _, model = trained("pred", network, (6,))
    assert model.costs == ((48 + 24) / whole, (80 + 12) / whole, 1.0)
    assert model.cumulative_costs == ((48 + 24) / whole, (80 + 24 + 12) / whole, (whole + 24 + 12) / whole)
    _, bio = trained("pred-bio", network, (6,))
    assert bio.costs[0] == (48 + 8 * 8 + 8 * 3) / whole, "outputs as long as the projection, then a product with codes"


def sizes_seen(model: EarlyExits, x: Tensor, threshold: float) -> tuple[list[int], Tensor]:
    """Batches that the blocks compute, and where the samples leave."""
    seen: list[int] = []
    handles = []
    for block in model.blocks:
        layer = next(one for one in block.modules() if isinstance(one, nn.Conv2d | nn.Linear))
        handles.append(layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))))
    found = model.confident(x, threshold)
    for handle in handles:
        handle.remove()
    return seen, found.exit


def test_what_has_left_is_not_computed_further() -> None:
    model = learned("pred")
    x = packet(SHAPE, CLASSES, 9, samples=32).x
    with torch.no_grad():
        sure = confidence(model(x)[0])
    seen, left = sizes_seen(model, x, float(sure.median()))
    assert seen[0] == 32 and seen[1] == int((left > 0).sum()) <= 16
    assert seen == [int((left >= number).sum()) for number in range(len(seen))]
    assert sizes_seen(model, x, 0.0)[0] == [32], "all leave at once, and no other block computes anything"
    assert sizes_seen(model, x, 1.0)[0] == [32] * 6


@cache
def learned(loss: str) -> EarlyExits:
    return trained(loss, steps=30)[1]


@pytest.mark.parametrize("loss", ["pred", "pred-bio"])
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(threshold=st.floats(0.2, 1.0))
def test_leaving_agrees_with_the_figures(loss: str, threshold: float) -> None:
    model = learned(loss)
    test = packet(SHAPE, CLASSES, 9, samples=24)
    with torch.no_grad():
        scores = model(test.x)
    # Smaller batches may round otherwise.
    assume(all(float((confidence(each) - threshold).abs().min()) > 1e-5 for each in scores))
    found = model.confident(test.x, threshold)
    figures = threshold_figures(scores, test.labels, threshold, model.cumulative_costs)
    assert (torch.bincount(found.exit, minlength=6) / 24).tolist() == pytest.approx(figures.shares)
    assert 100 * float((found.scores.argmax(1) != test.labels).double().mean()) == pytest.approx(figures.error_percent)
    wanted = torch.stack(scores)[found.exit, torch.arange(24)]
    torch.testing.assert_close(found.scores, wanted)


def test_a_network_with_one_exit_leaves_there() -> None:
    _, model = trained("sim")
    x = packet(SHAPE, CLASSES, 9).x
    found = model.confident(x, 0.0)
    assert torch.equal(found.scores, model(x)[0]) and found.exit.tolist() == [0] * 4
    assert model.costs == model.cumulative_costs == (1.0,)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability_is_told(threshold: float) -> None:
    _, model = trained("pred", steps=0)
    told = message(lambda: model.confident(torch.zeros(1, *SHAPE), threshold), ConfigError)
    assert told == f"threshold is {threshold!r}; give a probability, from 0 to 1"


def own(first: nn.Module) -> Sequence[nn.Module]:
    return [first, nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5, inplace=True), Adds(), nn.SiLU(), nn.Linear(8, 3)]


def test_blocks_that_write_in_place_spoil_neither_input_nor_scores() -> None:
    network = given_network(blocks_from(nn.Sequential(*own(nn.SiLU(inplace=True)))))
    stage, model = trained("pred", network, (6,))
    test = packet((6,), CLASSES, 9, Kind.EVALUATE)
    kept = test.x.clone()
    found = model(test.x)
    assert torch.equal(test.x, kept) and torch.equal(model.confident(test.x, 1.0).scores, found[-1])
    stage.evaluate(test)
    for block, scores in zip(stage.blocks, found, strict=True):
        assert block.scored is not None and block.scored.scores is not None
        assert torch.equal(block.scored.scores, scores)
    x = kept.clone().requires_grad_()
    torch.stack(model(x)).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_a_block_that_wants_rows_gets_them() -> None:
    class Viewed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.view(x.size(0), -1)

    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Viewed(), nn.Linear(16, 3)]
    network = given_network(blocks_from(nn.Sequential(*layers)))
    stage, model = trained("pred", network, (2, 6, 6))
    test = packet((2, 6, 6), CLASSES, 9, Kind.EVALUATE)
    plain = model(test.x)
    stage.evaluate(test)
    found = model.as_trained()(test.x)
    for block, scores, other in zip(stage.blocks, found, plain, strict=True):
        assert block.scored is not None and block.scored.scores is not None
        assert torch.equal(block.scored.scores, scores)
        torch.testing.assert_close(scores, other)


def test_what_a_classifier_keeps_is_what_it_needs_to_answer() -> None:
    def names(loss: str, **values: Any) -> set[str]:
        stage, _ = trained(loss, steps=0, **values)
        return {name for block in stage.blocks for name in block.classifier_state()}

    linear = {f"{index}.decoder.{name}" for index in range(5) for name in ("weight", "bias")}
    assert names("predsim") == names("glob+pred") == linear
    assert names("predsim-bio") == linear | {f"{index}.projection" for index in range(5)}
    assert names("pred", segments=(4, 2)) == {"3.decoder.weight", "3.decoder.bias"}
    assert names("sim") == names("sim-bio") == names("glob") == set()


def test_classifiers_without_weights_take_no_memory() -> None:
    network = named_network(sessions.MODEL, SHAPE, CLASSES, "pred-bio")
    config = TrainConfig(loss="pred-bio", target_projection=65_536)
    for head in create_classifiers(config, infer_shapes(network, SHAPE), CLASSES).values():
        assert all(tensor.is_meta for tensor in (*head.parameters(), *head.buffers()))
