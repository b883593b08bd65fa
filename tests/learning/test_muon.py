"""Muon of torch on the memory of filters, Adam of torch for everything else: the bits of both, which is for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.method import Method
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.learning.muon import MuonAndAdam, as_matrix, learned_by_muon, score_weights
from pipeline.learning.numerics import Numerics
from pipeline.learning.optimizer import create_optimizer, is_recordable, set_learning_rate
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.sequential import blocks_from, given_network
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network

MUON = Method(optimizer="muon", nesterov=True, weight_decay=0.02, lr=0.01)
LAYOUTS = {
    "matrix": ((6, 4), torch.contiguous_format, (0, 1)),
    "filters": ((8, 3, 3, 3), torch.contiguous_format, (0, 1, 2, 3)),
    "filters, channels last": ((8, 3, 3, 3), torch.channels_last, (0, 2, 3, 1)),
    "1x1 filters, channels last": ((4, 6, 1, 1), torch.channels_last, (0, 2, 3, 1)),
    "filters of one channel, channels last": ((9, 1, 3, 3), torch.channels_last, (0, 2, 3, 1)),
    "filters of a line": ((5, 4, 3), torch.contiguous_format, (0, 1, 2)),
}


def drawn(shape: Sequence[int], key: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key))


def laid_out(layout: str) -> nn.Parameter:
    shape, memory, _ = LAYOUTS[layout]
    return nn.Parameter(drawn(shape, 1).contiguous(memory_format=memory) if len(shape) == 4 else drawn(shape, 1))


def learn(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], steps: Sequence[int]) -> None:
    """Steps with made-up gradients, at a rate that changes."""
    for step in steps:
        set_learning_rate(0.01 / (1 + step), optimizer)
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.empty_like(parameter).copy_(drawn(parameter.shape, 100 * step + index))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_filters_learn_as_torchs_muon_lets_matrices_learn(layout: str) -> None:
    weight, order = laid_out(layout), LAYOUTS[layout][2]

    def flat(x: Tensor) -> Tensor:
        return x.detach().permute(order).reshape(len(x), -1).clone()

    matrix = nn.Parameter(flat(weight))
    theirs = torch.optim.Muon(
        [matrix], lr=0.01, momentum=0.95, nesterov=True, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
    )
    ours = create_optimizer(MUON, [weight], True)
    address = weight.data_ptr()
    for step in range(4):
        set_learning_rate(0.01 / (1 + step), ours, theirs)
        weight.grad = torch.empty_like(weight).copy_(drawn(weight.shape, step))
        matrix.grad = flat(weight.grad)
        ours.step()
        theirs.step()
        assert torch.equal(flat(weight), matrix)
    assert torch.equal(flat(ours.state[weight]["momentum_buffer"]), theirs.state[matrix]["momentum_buffer"])
    assert weight.data_ptr() == address == as_matrix(weight, weight).data_ptr()
    assert ours.state[weight]["momentum_buffer"].stride() == weight.stride()


def test_a_gradient_that_lies_otherwise_is_the_same_gradient() -> None:
    one, other = laid_out("filters, channels last"), laid_out("filters, channels last")
    for weight, memory in ((one, torch.channels_last), (other, torch.contiguous_format)):
        optimizer = create_optimizer(MUON, [weight], True)
        weight.grad = drawn(weight.shape, 5).contiguous(memory_format=memory)
        optimizer.step()
    assert torch.equal(one, other)


def parameters() -> list[nn.Parameter]:
    """Filters, their bias, a matrix that gives class scores, and its bias."""
    return [laid_out("filters, channels last"), *(nn.Parameter(drawn(shape, 2)) for shape in ((8,), (3, 8), (3,)))]


def test_vectors_and_what_gives_class_scores_learn_as_with_adam() -> None:
    ours, theirs = parameters(), parameters()
    learn(create_optimizer(MUON, ours, True, scores=ours[2:]), ours, range(3))
    learn(create_optimizer(Method(weight_decay=0.02, lr=0.01), theirs, True), theirs, range(3))
    assert [torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)] == [False, True, True, True]


def test_without_a_hidden_matrix_it_is_adam_and_without_a_vector_muon_alone() -> None:
    vectors = parameters()[1:]
    assert type(create_optimizer(MUON, vectors, True, scores=vectors[1:])) is torch.optim.Adam
    alone = create_optimizer(MUON, parameters()[:1], True)
    assert isinstance(alone, MuonAndAdam) and len(alone.param_groups) == 1


def test_a_parameter_without_a_gradient_stays_and_has_no_state() -> None:
    given = parameters()
    before = [each.detach().clone() for each in given]
    optimizer = create_optimizer(MUON, given, True, scores=given[2:])
    given[1].grad = drawn((8,), 3)
    optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(given, before, strict=True)] == [True, False, True, True]
    assert [parameter in optimizer.state for parameter in given] == [False, True, False, False]


def test_replaced_state_goes_on_to_the_same_bits() -> None:
    straight, resumed = parameters(), parameters()
    ours, other = (create_optimizer(MUON, given, True, scores=given[2:]) for given in (straight, resumed))
    learn(ours, straight, range(2))
    learn(other, resumed, [7])
    for old, new in zip(straight, resumed, strict=True):
        new.detach().copy_(old.detach())
        other.state[new] = {key: value.clone() for key, value in ours.state[old].items()}
    learn(ours, straight, range(2, 5))
    learn(other, resumed, range(2, 5))
    assert all(torch.equal(one, another) for one, another in zip(straight, resumed, strict=True))


def test_weights_that_are_given_other_memory_still_learn() -> None:
    moved, plain = parameters(), parameters()
    plain[0].data = plain[0].data.contiguous()
    ours, theirs = (create_optimizer(MUON, given, True, scores=given[2:]) for given in (moved, plain))
    moved[0].data = moved[0].data.contiguous()
    learn(ours, moved, [0])
    learn(theirs, plain, [0])
    ours.state[moved[0]]["momentum_buffer"] = ours.state[moved[0]]["momentum_buffer"].to(
        memory_format=torch.channels_last
    )
    learn(ours, moved, [1, 2])
    learn(theirs, plain, [1, 2])
    assert all(torch.equal(one, other) for one, other in zip(moved, plain, strict=True))


def test_heads_and_biases_of_norms_have_their_rates_here_too() -> None:
    given = parameters()
    config = Method(optimizer="muon", lr=0.01, head_lr=0.5, norm_bias_lr=4.0)
    optimizer = create_optimizer(config, given, True, [given[1]], heads=given[:2], scores=given[2:])
    set_learning_rate(0.1, optimizer)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(each)] for each in given] == pytest.approx([0.05, 0.2, 0.1, 0.1])


def test_what_is_no_matrix_in_memory_is_left_to_adam() -> None:
    frozen = nn.Parameter(drawn((4, 4), 1), requires_grad=False)
    empty = nn.Parameter(torch.empty(0, 4))
    every_other = nn.Parameter(drawn((4, 4, 6), 1)[:, :, ::2])
    rows = nn.Parameter(drawn((4, 6), 1)[:, ::2])
    vector = nn.Parameter(torch.ones(4))
    scales = [nn.Parameter(torch.ones(shape)) for shape in ((1, 4, 1, 1), (4, 1), (4, 1, 1), (1, 1))]
    found = learned_by_muon([frozen, empty, every_other, rows, vector, *scales], [])
    assert [id(each) for each in found] == [id(rows)]


def stage_of(loss: str, model: str = "vgg6a", **values: Any) -> Stage:
    config = TrainConfig(loss=loss, batch_size=4, decoder_dim=32, target_projection=8, optimizer="muon", **values)
    network = named_network(ModelConfig(model=model, width=0.0625, hidden_units=8), (3, 16, 16), 3, loss)
    shapes = infer_shapes(network, (3, 16, 16))
    numerics = Numerics(torch.device("cpu"))
    stage = build_stage(config, network, shapes, 3, [len(network)], 0, numerics)
    images, labels = drawn((4, 3, 16, 16), 1), torch.tensor([0, 1, 2, 0])
    packet = Packet.of(Kind.TRAIN, Position(1, 0), images, labels)
    if loss.startswith("glob"):
        stage.forward(packet)
        stage.update()
    else:
        stage.step(packet)
    return stage


@pytest.mark.parametrize(
    ("loss", "values", "block", "learned"),
    [
        ("predsim", {}, 0, {"encoder.weight", "local_head.similarity.weight"}),
        ("pred-bio", {}, 4, {"encoder.weight"}),
        (
            "pred",
            {"classifier": "copy"},
            4,
            {"encoder.weight", "local_head.decoder.1.weight", "local_head.decoder.4.weight"},
        ),
        ("sim", {}, 5, set()),
        ("glob", {}, 5, set()),
        ("glob", {}, 4, {"encoder.weight"}),
        ("pred", {"segments": (2, 4)}, 5, set()),
    ],
)
def test_muon_learns_the_hidden_matrices_of_blocks_and_heads(
    loss: str, values: dict[str, Any], block: int, learned: set[str]
) -> None:
    stage = stage_of(loss, **values)
    state = stage.blocks[block].full_state(stage.optimizer)
    prefix = f"{block}.optimizer."
    kinds = {name.removeprefix(prefix).rpartition(".")[::2] for name in state if name.startswith(prefix)}
    assert {name for name, kind in kinds if kind == "momentum_buffer"} == learned
    adam = {name for name, kind in kinds if kind == "exp_avg"}
    assert adam == {name for name, _ in stage.blocks[block].named_trainable()} - learned


def test_the_output_layer_of_a_whole_network_is_its_last() -> None:
    for model in ("vgg6a", "fastnet", "resnet18"):
        network = named_network(ModelConfig(model=model, width=0.0625), (3, 32, 32), 3, "glob")
        whole = nn.Sequential(*(spec.build() for spec in network))
        output = whole[-1].encoder
        assert isinstance(output, nn.Linear)
        assert [id(each) for each in score_weights(whole)] == [id(each) for each in output.parameters()]
    layers = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)))
    (output_block,) = given_network(blocks_from(layers))[1:]
    assert output_block.given is not None
    assert [each.shape for each in score_weights(output_block.given)] == [(3, 5), (3,)]
    assert score_weights(nn.BatchNorm1d(3)) == []


def test_its_step_is_never_recorded() -> None:
    given = parameters()
    assert not is_recordable(create_optimizer(MUON, given, True))
    assert all(is_recordable(create_optimizer(Method(optimizer=name), given, True)) for name in ("adam", "sgd"))
