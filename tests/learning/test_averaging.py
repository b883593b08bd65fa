"""Averages of weights: their numbers, what they follow, and that the weights stay where they are."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from pipeline.config.catalog import LOSSES
from pipeline.learning.averaging import Average, follow, share_of_new
from pipeline.learning.numerics import Numerics
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import Stage, build_stage
from pipeline.network.spec import infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.checkpoint import digest
from tests.support import sessions


class Odd(nn.Module):
    """A tied weight, a mask, a count, and a buffer that every forward replaces."""

    mask: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, math.inf]))
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)))
        self.seen = self.seen + x.detach().mean(0)
        return x


def drawn(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(key))


def module() -> Odd:
    torch.manual_seed(0)
    return Odd()


def step(odd: Odd, key: int) -> None:
    """Change everything that changes in training."""
    odd.train()(drawn(4, 3, key=key))
    with torch.no_grad():
        for parameter in odd.parameters():
            parameter.add_(drawn(*parameter.shape, key=key))


def test_it_goes_further_in_the_first_steps() -> None:
    assert [share_of_new(0.5, step) for step in (0, 1, 8, 9, 99)] == [0.9, 9 / 11, 0.5, 0.5, 0.5]
    decays = [1 - share_of_new(0.999, step) for step in (0, 10, 1000, 100_000)]
    assert decays == pytest.approx([1 / 10, 11 / 20, 1001 / 1010, 0.999])


def test_it_is_the_average_written_out() -> None:
    odd = module()
    average = Average({"": odd})
    average.begin()
    wanted = {name: x.clone() for name, x in odd.state_dict().items()}
    for number in range(5):
        step(odd, number)
        share = share_of_new(0.6, number)
        follow([average], share)
        for name, x in odd.state_dict().items():
            wanted[name] = (1 - share) * wanted[name] + share * x if x.is_floating_point() else x
    found = average.state()
    assert set(found) == set(wanted) - {"norm.num_batches_tracked"}
    assert all(torch.allclose(x, wanted[name], equal_nan=True) for name, x in found.items() if name != "mask")
    assert torch.equal(found["mask"], odd.mask), "halfway between infinities is no number"
    assert torch.equal(found["first.weight"], found["second.weight"])


def test_until_training_begins_it_is_the_weights() -> None:
    odd = module()
    average = Average({"": odd})
    step(odd, 1)
    assert all(torch.equal(x, odd.state_dict()[name]) for name, x in average.state().items())
    with average.in_place():
        assert torch.equal(odd.first.weight, average.state()["first.weight"])
    average.begin()
    step(odd, 2)
    before = average.state()["first.weight"].clone()
    average.begin()
    assert torch.equal(average.state()["first.weight"], before) and not torch.equal(odd.first.weight, before)


def test_it_takes_the_place_of_the_weights_for_a_while_and_moves_none() -> None:
    odd = module()
    average = Average({"": odd})
    average.begin()
    step(odd, 1)
    follow([average], 0.25)
    kept = {name: x.clone() for name, x in average.state().items()}
    before = copy.deepcopy(odd.state_dict())
    memory = {name: x.data_ptr() for name, x in odd.state_dict().items()}
    now: dict[str, Tensor] = {}

    def evaluate() -> None:
        with average.in_place():
            now.update({name: x.clone() for name, x in odd.state_dict().items()})
            assert odd.first.weight is odd.second.weight
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert all(torch.equal(now[name], x) for name, x in kept.items())
    assert not torch.equal(now["first.weight"], before["first.weight"])
    assert torch.equal(now["norm.num_batches_tracked"], before["norm.num_batches_tracked"])
    assert {name: x.data_ptr() for name, x in odd.state_dict().items()} == memory
    assert all(torch.equal(x, before[name]) for name, x in odd.state_dict().items())
    assert all(torch.equal(x, kept[name]) for name, x in average.state().items())


def test_scripted_modules_have_one_too() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = [torch.jit.script(copy.deepcopy(plain)), plain]
    for each in modules:
        average = Average({"": each})
        average.begin()
        each.train()(drawn(4, 3))
        with torch.no_grad():
            next(each.parameters()).add_(1)
        follow([average], 0.25)
        before = each.eval()(drawn(4, 3))
        with average.in_place():
            found.append(each(drawn(4, 3)))
        assert torch.equal(each(drawn(4, 3)), before) and not torch.equal(found[-1], before)
    assert torch.equal(*found)


def test_it_goes_on_from_a_copy_of_its_state() -> None:
    straight, resumed = module(), module()
    first, second = Average({"": straight}), Average({"": resumed})
    first.begin()
    step(straight, 1)
    follow([first], 0.3)
    resumed.load_state_dict(straight.state_dict())
    second.load({name: x.clone() for name, x in first.state().items()})
    for odd, average in ((straight, first), (resumed, second)):
        average.begin()
        step(odd, 2)
        follow([average], 0.3)
    found = second.state()
    assert all(torch.equal(x, found[name]) for name, x in first.state().items())


def test_several_are_one_call_and_names_have_their_beginnings() -> None:
    one, other = nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last), nn.Linear(2, 2)
    together, alone = Average({"": one, "head.": other}), Average({"": one})
    for average in (together, alone):
        average.begin()
    for module in (one, other):
        nn.init.ones_(module.weight)
    follow([together, alone], 0.5)
    assert set(together.state()) == {"weight", "bias", "head.weight", "head.bias"}
    assert torch.equal(together.state()["weight"], alone.state()["weight"])
    assert together.state()["weight"].stride() == one.weight.stride()
    follow([Average({"": nn.ReLU()})], 0.5)


def stage_of(loss: str = "predsim", ema: float = 0.0) -> Stage:
    config = sessions.settings(loss, ema=ema)
    network = named_network(sessions.MODEL, sessions.SHAPE, sessions.CLASSES, loss)
    shapes, numerics = infer_shapes(network, sessions.SHAPE), Numerics(torch.device("cpu"))
    return build_stage(config, network, shapes, sessions.CLASSES, [len(network)], 0, numerics)


def batch(number: int, kind: Kind = Kind.TRAIN) -> Packet:
    labels = torch.tensor([0, 1, 2, 0])
    return Packet.of(kind, Position(1, number), drawn(4, *sessions.SHAPE, key=number), labels)


def train(stage: Stage, number: int) -> None:
    if stage.config.backpropagates:
        stage.forward(batch(number))
        stage.update()
    else:
        stage.step(batch(number))


def test_training_has_the_bits_of_one_without() -> None:
    for loss in LOSSES:
        plain, averaged = stage_of(loss), stage_of(loss, 0.5)
        for number in range(4):
            for stage in (plain, averaged):
                train(stage, number)
                if number % 2:
                    stage.evaluate(batch(50, Kind.EVALUATE))
        names = plain.state_dict().keys()
        kept = {name: x for name, x in averaged.state_dict().items() if name in names and ".meter." not in name}
        assert digest(kept) == digest({name: x for name, x in plain.state_dict().items() if ".meter." not in name})
        others = averaged.state_dict().keys() - names
        assert others and all(name.split(".")[1] == "ema" for name in others)
        (train_plain, test_plain), (train_averaged, test_averaged) = (s.scores(reset=True) for s in (plain, averaged))
        assert train_plain == train_averaged and test_plain != test_averaged


@pytest.mark.parametrize("loss", ["pred", "predsim-bio", "glob+predsim"])
def test_what_is_evaluated_and_kept_is_the_average_of_block_and_head(loss: str) -> None:
    averaged, plain = stage_of(loss, 0.5), stage_of(loss)
    wanted = {name: x.clone() for name, x in averaged.state_dict().items() if ".ema." in name}
    for number in range(3):
        train(averaged, number)
        state, share = averaged.state_dict(), share_of_new(0.5, number)
        wanted = {n: torch.lerp(x, state[n.replace("ema.", "", 1)], share) for n, x in wanted.items()}
    state = averaged.state_dict()
    assert all(torch.equal(state[name], x) for name, x in wanted.items())
    for ours, theirs in zip(averaged.blocks, plain.blocks, strict=True):
        own = {name.partition(".")[2]: x for name, x in ours.inference_state().items()}
        assert torch.equal(own["encoder.weight"], wanted[f"{ours.index}.ema.encoder.weight"])
        theirs.block.load_state_dict(own)
        if theirs.loss is not None and ours.loss is not None:
            prefix = f"{ours.index}.ema.local_head."
            head = {name: wanted.get(prefix + name, x) for name, x in ours.loss.state_dict().items()}
            theirs.loss.load_state_dict(head)
            classifier = {name.partition(".")[2]: x for name, x in ours.classifier_state().items()}
            assert all(torch.equal(x, head[name]) for name, x in classifier.items())
    test = batch(9, Kind.EVALUATE)
    assert torch.equal(averaged.evaluate(test).x, plain.evaluate(test).x)
    assert averaged.scores(reset=True)[1] == plain.scores(reset=True)[1]


def test_a_snapshot_after_an_evaluation_is_of_what_trains() -> None:
    stage = stage_of("predsim", 0.5)
    train(stage, 0)
    before = digest({name: x for name, x in stage.state_dict().items() if ".meter." not in name})
    stage.evaluate(batch(9, Kind.EVALUATE))
    assert digest({name: x for name, x in stage.state_dict().items() if ".meter." not in name}) == before


def test_weights_that_come_before_the_first_step_are_what_it_begins_with() -> None:
    stage = stage_of("predsim", 0.5)
    with torch.no_grad():
        for parameter in stage.blocks[0].block.parameters():
            parameter.fill_(2.0)
    stage.evaluate(batch(9, Kind.EVALUATE))
    train(stage, 0)
    state = stage.state_dict()
    two, now = torch.full_like(state["0.encoder.weight"], 2.0), state["0.encoder.weight"]
    assert torch.equal(state["0.ema.encoder.weight"], torch.lerp(two, now, 0.9))


def test_what_is_kept_has_names_of_its_own_in_the_whole_state() -> None:
    averaged, plain = (stage_of("pred", ema).blocks[0] for ema in (0.5, 0.0))
    assert averaged.source("0.encoder.weight") == "0.ema.encoder.weight"
    assert averaged.source("0.bn.num_batches_tracked") == "0.bn.num_batches_tracked"
    assert averaged.source("0.decoder.bias", head=True) == "0.ema.local_head.decoder.bias"
    assert plain.source("0.encoder.weight") == "0.encoder.weight"
    assert plain.source("0.decoder.bias", head=True) == "0.local_head.decoder.bias"


class Least(nn.Module):
    """A buffer that is infinite until the first batch has been seen."""

    least: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("least", torch.full((3,), math.inf))

    def see(self, key: int) -> None:
        self.least.copy_(torch.minimum(self.least, drawn(4, 3, key=key).amin(0)))


def test_a_buffer_that_becomes_finite_is_averaged_alike_by_a_run_that_goes_on() -> None:
    straight, plain = Least(), Average({"": (least := Least())})
    plain.begin()
    for key in range(3):
        least.see(key)
        follow([plain], 0.5)
    straight.load_state_dict(least.state_dict())
    resumed = Average({"": straight})
    resumed.load(plain.state())
    for key in range(3, 9):
        for each, average in ((least, plain), (straight, resumed)):
            each.see(key)
            follow([average], 0.5)
    assert torch.equal(plain.state()["least"], resumed.state()["least"])
    assert plain.state()["least"].isfinite().all()
    assert not torch.equal(plain.state()["least"], least.least), "averaged, not copied"
