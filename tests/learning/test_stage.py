"""Stages and blocks: what learns, what must not, and that the order of calls never changes the bits."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.catalog import LOSSES
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.errors import StageFailure
from pipeline.learning.balance import cut_segments
from pipeline.learning.losses import similarity_matrix
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.blocks import Dropout
from pipeline.network.sequential import given_network
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.checkpoint import digest

SHAPE, CLASSES = (3, 8, 8), 4
MODEL = ModelConfig(model="vgg6a", width=0.0625, hidden_units=8, dropout=0.3)
CPU = Numerics(torch.device("cpu"))


def stages(config: TrainConfig, split: tuple[int, ...], numerics: Numerics = CPU) -> list[Stage]:
    network = named_network(MODEL, SHAPE, CLASSES, config.loss)
    shapes = infer_shapes(network, SHAPE)
    return [build_stage(config, network, shapes, CLASSES, split, index, numerics) for index in range(len(split))]


def batch(step: int, kind: Kind = Kind.TRAIN) -> Packet:
    draw = torch.Generator().manual_seed(step)
    images, labels = torch.randn(6, *SHAPE, generator=draw), torch.randint(CLASSES, (6,), generator=draw)
    return Packet.of(kind, Position(1, step), images, labels)


def state(made: list[Stage]) -> str:
    return digest({name: x for s in made for block in s.blocks for name, x in block.full_state(s.optimizer).items()})


def weights(stage: Stage) -> dict[str, Tensor]:
    return {name: tensor for block in stage.blocks for name, tensor in block.inference_state().items()}


def config(loss: str = "predsim", **values: object) -> TrainConfig:
    return TrainConfig(loss=loss, batch_size=6, decoder_dim=32, target_projection=8, lr=1e-2, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [name for name, spec in LOSSES.items() if not spec.backpropagates])
def test_forward_and_update_give_the_bits_of_block_by_block(loss: str) -> None:
    (whole,), (apart,) = stages(config(loss), (6,)), stages(config(loss), (6,))
    for step in range(3):
        whole.step(batch(step))
        apart.forward(batch(step))
        apart.update()
    assert state([whole]) == state([apart])


@pytest.mark.parametrize("loss", LOSSES)
def test_the_split_never_changes_the_bits(loss: str) -> None:
    digests = set()
    for split in ((6,), (1, 5), (2, 2, 2), (1, 1, 1, 1, 1, 1)):
        made = stages(config(loss), split)
        for step in range(3):
            packet, gradient = batch(step), None
            for stage in made:
                packet = stage.forward(packet)
            for stage in reversed(made):
                gradient = stage.update(gradient)
        digests.add(state(made))
    assert len(digests) == 1


def test_no_gradient_crosses_a_block() -> None:
    """What a block learns must not depend on the loss of any later block."""
    (plain,), (other,) = stages(config(), (6,)), stages(config(), (6,))
    for block in other.blocks[3:]:
        block.loss = None if block.loss is None else copy.deepcopy(block.loss)
        for parameter in block.block.parameters():
            torch.nn.init.normal_(parameter)
    for step in range(3):
        plain.step(batch(step))
        other.step(batch(step))
    for mine, theirs in zip(plain.blocks[:3], other.blocks[:3], strict=True):
        assert digest(mine.full_state(plain.optimizer)) == digest(theirs.full_state(other.optimizer))


def test_what_is_handed_on_carries_no_graph() -> None:
    for loss in LOSSES:
        for stage in stages(config(loss), (3, 3))[:1]:
            out = stage.forward(batch(0)).x
            assert not out.requires_grad and out.grad_fn is None


def test_a_global_gradient_equals_backpropagation_through_the_whole_network() -> None:
    made = stages(config("glob", optimizer="sgd"), (2, 4))
    network = torch.nn.Sequential(*(copy.deepcopy(block.block) for stage in made for block in stage.blocks)).train()
    for module in network.modules():
        if isinstance(module, Dropout):
            module.rate = 0.0
    for stage in made:
        for block in stage.blocks:
            for module in block.block.modules():
                if isinstance(module, Dropout):
                    module.rate = 0.0
    packet, gradient = batch(0), None
    torch.nn.functional.cross_entropy(network(packet.x), packet.labels).backward()
    expected = {n: p - 1e-2 * p.grad for n, p in network.named_parameters() if p.grad is not None}
    for stage in made:
        packet = stage.forward(packet)
    for stage in reversed(made):
        gradient = stage.update(gradient)
    for stage in made:
        for name, tensor in weights(stage).items():
            if name in expected:
                torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_gradients_flow_inside_a_segment_only() -> None:
    made = stages(config(segments=(3, 3)), (3, 3))
    assert [block.loss is not None for stage in made for block in stage.blocks] == [False, False, True] * 2
    before = [digest(block.inference_state()) for stage in made for block in stage.blocks]
    packet = batch(0)
    for step in range(2):
        packet = batch(step)
        for stage in made:
            packet = stage.forward(packet)
            assert stage.update() is None
    after = [digest(block.inference_state()) for stage in made for block in stage.blocks]
    assert all(a != b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("segments", [2, 3, (1, 4, 1), (6,)])
def test_segments_give_the_same_bits_in_any_stages_and_order_of_calls(segments: int | tuple[int, ...]) -> None:
    counts = config(segments=segments)
    (whole,) = stages(counts, (6,))
    cut = cut_segments(counts, infer_shapes(named_network(MODEL, SHAPE, CLASSES, counts.loss), SHAPE))
    apart = stages(counts, cut)
    for step in range(3):
        packet = batch(step)
        whole.step(packet)
        for stage in apart:
            packet = stage.forward(packet)
            assert stage.update() is None, "nothing flows back between segments"
    assert state([whole]) == state(apart)
    assert [block.loss is not None for block in whole.blocks].count(True) == len(cut)


def test_evaluation_changes_nothing_and_draws_nothing() -> None:
    (stage,) = stages(config(), (6,))
    stage.step(batch(0))
    before = state([stage])
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first, second = (stage.evaluate(batch(1, Kind.EVALUATE)).x for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(2), expected)
    assert state([stage]) == before


def test_random_numbers_are_keyed_by_step_and_seed() -> None:
    def outputs(seed: int, step: int) -> Tensor:
        (stage,) = stages(TrainConfig(loss="pred", batch_size=6, decoder_dim=32, seed=seed), (6,))
        out = stage.blocks[0].forward(torch.ones(6, *SHAPE), step)
        return out != 0

    assert torch.equal(outputs(1, 5), outputs(1, 5))
    assert not torch.equal(outputs(1, 5), outputs(1, 6))


def test_a_stage_holds_only_its_own_blocks() -> None:
    made = stages(config(), (1, 2, 3))
    assert [[block.index for block in stage.blocks] for stage in made] == [[0], [1, 2], [3, 4, 5]]
    owned = [{id(p) for block in stage.blocks for p in block.block.parameters()} for stage in made]
    assert not owned[0] & owned[1] and not owned[1] & owned[2]
    for stage in made:
        trained = {id(p) for group in stage.optimizer.param_groups for p in group["params"]}
        heads = (block.loss.parameters() for block in stage.blocks if block.loss is not None)
        assert trained == {id(p) for p in (*chain(*(b.block.parameters() for b in stage.blocks)), *chain(*heads))}


def test_gradients_that_a_user_has_left_in_the_weights_are_forgotten() -> None:
    layer = nn.Linear(6, 3)
    layer(torch.ones(2, 6)).sum().backward()
    network = given_network([layer])
    build_stage(config(), network, infer_shapes(network, (6,)), 3, (1,), 0, CPU)
    assert layer.weight.grad is None


def test_the_learning_rate_follows_the_epoch_of_the_packet() -> None:
    (stage,) = stages(config(lr_milestones=(1, 2)), (6,))
    for epoch, expected in ((1, 1e-2), (2, 2.5e-3), (3, 6.25e-4)):
        packet = batch(0)
        stage.step(replace(packet, at=Position(epoch, 0)))
        assert [group["lr"] for group in stage.optimizer.param_groups] == [pytest.approx(expected)]


def test_meters_count_losses_and_errors() -> None:
    (stage,) = stages(config("sim"), (6,))
    stage.evaluate(batch(0, Kind.EVALUATE))
    scores = stage.scores(reset=True)[1]
    assert all(score.loss is not None for score in scores)
    assert [score.error_percent is None for score in scores] == [True] * 5 + [False]


def test_divergence_is_told_by_block_epoch_and_step() -> None:
    (stage,) = stages(config(), (6,))
    for step in range(4):
        if step == 2:
            next(stage.blocks[3].block.parameters()).data.fill_(torch.inf)
        stage.step(batch(step))
    message = (
        r"the loss of block 3 \(.+\) became nan or infinite in epoch 1, at step 2 of the run; lower --lr, which is "
        r"0\.01 there, or look for numbers in the data that are not finite"
    )
    with pytest.raises(StageFailure, match=f"^{message}$"):
        stage.check(Position(1, 4))


def test_divergence_in_the_last_step_shows_in_the_weights() -> None:
    (stage,) = stages(config(), (6,))
    stage.step(batch(0))
    stage.check(Position(1, 1))
    stage.blocks[1].block.get_parameter("encoder.bias").data[3] = torch.nan
    message = r"^encoder\.bias of block 1 \(.+\) became nan or infinite in epoch 1, before step 1 of"
    with pytest.raises(StageFailure, match=message):
        stage.check(Position(1, 1))


def test_a_test_loss_that_is_not_finite_gives_no_error_and_fails_nothing() -> None:
    (stage,) = stages(config(), (6,))
    stage.step(batch(0))
    packet = batch(0, Kind.EVALUATE)
    stage.evaluate(packet.with_x(torch.full_like(packet.x, torch.nan)))
    stage.check(Position(1, 1))
    train, test = stage.scores(reset=True)
    assert all(score.loss is not None for score in train)
    assert all(score.loss is score.error_percent is None for score in test)


@pytest.mark.parametrize("loss", ["pred", "predsim", "glob+sim"])
def test_what_losses_compare_with_is_worked_out_once_a_batch(loss: str) -> None:
    (stage,) = stages(config(loss), (6,))
    with (
        patch("torch.nn.functional.one_hot", wraps=torch.nn.functional.one_hot) as one_hot,
        patch("pipeline.learning.losses.similarity_matrix", wraps=similarity_matrix) as matrix,
    ):
        stage.step(batch(0))
    matrices = 1 if stage.config.loss_spec.similarity else 0  # of the labels, for the losses of five blocks
    assert (one_hot.call_count, matrix.call_count) == (1 if matrices else 0, matrices)


def test_a_stage_goes_on_from_a_copy_of_its_state_to_the_same_bits() -> None:
    """In mid-epoch: what has been counted of it goes along, and every tensor keeps its memory layout."""
    changes = ({"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "amsgrad"}, {"optimizer": "muon"}, {"ema": 0.5})
    for values in ({}, *changes, {"loss": "glob+predsim"}):
        (straight,), (fresh,) = stages(config(**values), (6,)), stages(config(**values), (6,))
        for step in range(2):
            straight.step(batch(step))
        fresh.load_state_dict({name: tensor.clone() for name, tensor in straight.state_dict().items()})
        for stage in (straight, fresh):
            stage.step(batch(2))
        assert state([straight]) == state([fresh])
        strides = [[x.stride() for x in stage.state_dict().values()] for stage in (straight, fresh)]
        assert strides[0] == strides[1]
        assert straight.scores(reset=True) == fresh.scores(reset=True)


def test_a_state_holds_copies_nothing_and_shares_nothing_once_loaded() -> None:
    (first,), (second,) = stages(config(), (6,)), stages(config(), (6,))
    first.step(batch(0))
    second.load_state_dict(first.state_dict())
    before = state([first])
    second.step(batch(1))
    assert state([first]) == before


@pytest.mark.parametrize("loss", LOSSES)
def test_the_output_layer_learns_at_any_beta(loss: str) -> None:
    for beta in (0.0, 1.0):
        (stage,) = stages(config(loss, beta=beta), (6,))
        before = digest(stage.blocks[-1].inference_state())
        for step in range(2):
            stage.step(batch(step))
        assert digest(stage.blocks[-1].inference_state()) != before


@pytest.mark.parametrize("loss", LOSSES)
def test_bf16_trains_every_loss_to_finite_weights(loss: str) -> None:
    made = stages(config(loss, precision="bf16"), (3, 3), Numerics(torch.device("cpu"), "bf16"))
    for step in range(2):
        packet, gradient = batch(step), None
        for stage in made:
            packet = stage.forward(packet)
            assert packet.x.dtype == torch.bfloat16
        for stage in reversed(made):
            gradient = stage.update(gradient)
    assert all(tensor.isfinite().all() for stage in made for tensor in weights(stage).values())
