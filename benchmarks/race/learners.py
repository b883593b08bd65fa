"""Every way to learn in one process, step by step: what several would compute, too.

blocks     local losses: the product's own stage
parts      one optimizer, gradients of a batch's parts: microbatches, or with norms apart DistributedDataParallel
replicas   that learn alone and are averaged now and then
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from benchmarks.contenders.averaging import Outer, averaged_model, go_on_from
from benchmarks.contenders.backprop import backprop_optimizer, part_of
from benchmarks.contenders.common import Mixed, build_blocks, cross_entropy, describe, error_percent
from benchmarks.race.lines import Line
from pipeline.config.schema import RunConfig
from pipeline.data.batches import Batches
from pipeline.learning.numerics import Numerics
from pipeline.learning.optimizer import set_learning_rate
from pipeline.learning.packet import Kind, Packet, Position
from pipeline.learning.stage import build_stage
from pipeline.network.spec import infer_shapes
from pipeline.runtime.preparation import prepare

__all__ = ["Learner", "create_learner"]


class Learner(Protocol):
    """A network that is being trained."""

    def step(self, at: Position, images: Tensor, labels: Tensor) -> None:
        """Learn from a batch."""

    def error(self) -> float:
        """Test error in percent, as it is now."""


def create_learner(line: Line, config: RunConfig, batches: Batches, device: torch.device) -> Learner:
    """Before its first step."""
    if line.is_local:
        return _Blocks(config, batches, device)
    if line.every is None:
        return _Parts(line, config, batches, device)
    return _Replicas(line, config, batches, device)


class _Blocks:
    """All blocks in one stage, each segment with its own loss."""

    def __init__(self, config: RunConfig, batches: Batches, device: torch.device) -> None:
        network, shape = describe(config, batches), tuple(batches.shape)
        shapes = infer_shapes(network, shape)
        numerics = Numerics(device, config.train.precision)
        self._batches = batches
        split = [len(network)]
        self._stage = build_stage(
            config.train, network, shapes, batches.classes, split, 0, numerics, batches.steps_per_epoch
        )
        prepare(self._stage.blocks[0].block, batches)

    def step(self, at: Position, images: Tensor, labels: Tensor) -> None:
        self._stage.step(Packet.of(Kind.TRAIN, at, images, labels))

    def error(self) -> float:
        for images, labels in self._batches.test():
            self._stage.evaluate(Packet.of(Kind.EVALUATE, Position(), images, labels))
        _, scores = self._stage.scores(reset=True)
        found = scores[-1].error_percent
        assert found is not None, "the last block is the output layer"
        return found


class _Backprop:
    """What every form of global backprop needs."""

    def __init__(self, line: Line, config: RunConfig, batches: Batches, device: torch.device) -> None:
        self.line, self.config, self.batches, self.device = line, config, batches, device
        blocks = build_blocks(describe(config, batches), config.train.seed, device, batches)
        self.model: nn.Module = Mixed(blocks, config.train, device)
        self.loss = cross_entropy(config.train)

    def rate(self, at: Position) -> float:
        return self.config.train.rate(at.epoch, at.step, self.batches.steps_per_epoch)

    def part(self, index: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of one part, on the device."""
        mine = [part_of(x, index, self.line.parts) for x in (images, labels)]
        return mine[0], mine[1].to(self.device, non_blocking=True)

    def error_of(self, model: nn.Module) -> float:
        return error_percent(model, self.batches.test(), self.device)


class _Parts(_Backprop):
    """One set of weights; the gradients of the parts of a batch are averaged."""

    def __init__(self, line: Line, config: RunConfig, batches: Batches, device: torch.device) -> None:
        super().__init__(line, config, batches, device)
        others = line.parts - 1
        # Norms of their own, the same weights.
        twins = [_twin(self.model) for _ in range(others)] if line.replicas else [self.model] * others
        self._models = [self.model, *twins]
        self._optimizer = backprop_optimizer(config.train, self.model)

    def step(self, at: Position, images: Tensor, labels: Tensor) -> None:
        set_learning_rate(self.rate(at), self._optimizer)
        for index, model in enumerate(self._models):
            mine, targets = self.part(index, images, labels)
            (self.loss(model(mine), targets) / self.line.parts).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def error(self) -> float:
        return self.error_of(self.model)


class _Replicas(_Backprop):
    """Weights and optimizers of their own."""

    def __init__(self, line: Line, config: RunConfig, batches: Batches, device: torch.device) -> None:
        super().__init__(line, config, batches, device)
        self._models = [self.model, *(copy.deepcopy(self.model) for _ in range(line.parts - 1))]
        self._optimizers = [backprop_optimizer(config.train, model) for model in self._models]
        self._weights = [[p for p in model.parameters() if p.requires_grad] for model in self._models]
        self._outer = Outer(self._weights[0], diloco=line.diloco)

    def step(self, at: Position, images: Tensor, labels: Tensor) -> None:
        set_learning_rate(self.rate(at), *self._optimizers)
        for index, (model, optimizer) in enumerate(zip(self._models, self._optimizers, strict=True)):
            mine, targets = self.part(index, images, labels)
            self.loss(model(mine), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        if (at.step + 1) % cast(int, self.line.every) == 0:
            agreed = self._outer.follow([_mean(alike) for alike in zip(*self._weights, strict=True)])
            for weights in self._weights:
                go_on_from(weights, agreed)

    def error(self) -> float:
        states = [model.state_dict() for model in self._models]
        return self.error_of(averaged_model(self.model, lambda name, own: _mean([state[name] for state in states])))


def _mean(alike: Sequence[Tensor]) -> Tensor:
    total = alike[0].detach().clone()
    for other in alike[1:]:
        total += other.detach()
    return total.div_(len(alike))


def _twin(model: nn.Module) -> nn.Module:
    """A copy with buffers of its own over the same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
