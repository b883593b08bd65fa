"""Local learning as research code is commonly written: the slow baseline of our own method.

Eager, float32, NCHW, an optimizer loop without fusion, a generic standard deviation, and numbers read from the device
in every block of every step.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.contenders.common import (
    Trained,
    choose_device,
    describe,
    error_percent,
    open_batches,
    timed_epochs,
)
from benchmarks.harness.crew import Member
from pipeline.config.schema import RunConfig
from pipeline.network.blocks import Block
from pipeline.network.spec import BlockShape, build_block, infer_shapes

__all__ = ["train_reference_style"]


class _Learner(nn.Module):
    """A block with its local head and its optimizer."""

    def __init__(self, block: Block, shape: BlockShape, config: RunConfig, classes: int, output: bool) -> None:
        super().__init__()
        self.block, self.output = block, output
        self.classes, self.beta = classes, config.train.beta or 0.0
        self.pool = nn.Identity() if output else nn.AdaptiveAvgPool2d(_side(shape, config.train.decoder_dim))
        if not output:
            pooled = shape.features[0] * (
                _side(shape, config.train.decoder_dim) ** 2 if len(shape.features) == 3 else 1
            )
            self.decoder = nn.Linear(pooled, classes)
            channels = shape.features[0]
            self.similarity = (
                nn.Conv2d(channels, channels, 3, padding=1, bias=False)
                if len(shape.features) == 3
                else nn.Linear(channels, channels, bias=False)
            )
        self.optimizer = torch.optim.Adam(self.parameters(), lr=config.train.lr, foreach=False)
        self.loss_sum = self.errors = 0.0

    def learn(self, x: Tensor, labels: Tensor) -> Tensor:
        """Forward, local loss, backward, update; what the next block gets."""
        h = self.block.features(x)
        out = self.block.hand_on(h)
        loss, scores = self._loss(h, labels)
        self.loss_sum += loss.item() * len(labels)
        self.errors += (scores.argmax(1) != labels).sum().item()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return out.detach()

    def _loss(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.output:
            return (1 - self.beta) * F.cross_entropy(h, labels), h
        pooled = self.pool(h) if h.ndim == 4 else h
        scores = self.decoder(pooled.flatten(1))
        matching = F.mse_loss(
            _similarities(self.similarity(h)), _similarities(F.one_hot(labels, self.classes).float())
        )
        return (1 - self.beta) * F.cross_entropy(scores, labels) + self.beta * matching, scores


def _side(shape: BlockShape, limit: int) -> int:
    """Side of the pooled map: halved until the classifier's input is small enough."""
    if len(shape.features) != 3:
        return 1
    channels, side, _ = shape.features
    while channels * side * side > limit and side > 1:
        side = -(-side // 2)
    return side


def _similarities(h: Tensor) -> Tensor:
    features = h.flatten(2).std(dim=2) if h.ndim == 4 else h
    centred = features - features.mean(dim=1, keepdim=True)
    unit = centred / (1e-8 + centred.norm(dim=1, keepdim=True))
    return cast(Tensor, (unit @ unit.T).clamp(-1, 1))


def train_reference_style(member: Member, config: RunConfig) -> Trained:
    """Train predsim with the paper's head in one process, block by block."""
    device = choose_device(member, config)
    batches = open_batches(config, device)
    network, classes = describe(config, batches), batches.classes
    learners = []
    for index, (spec, shape) in enumerate(zip(network, infer_shapes(network, tuple(batches.shape)), strict=True)):
        block = build_block(spec, config.train.seed, index)
        learners.append(_Learner(block, shape, config, classes, index == len(network) - 1).to(device))
    model = nn.Sequential(*(learner.block for learner in learners))

    def step(images: Tensor, labels: Tensor) -> None:
        x, targets = images.contiguous(), labels.to(device)
        for learner in learners:
            x = learner.learn(x, targets)

    return timed_epochs(
        member,
        config,
        batches,
        device,
        step=step,
        optimizers=[learner.optimizer for learner in learners],
        error=lambda: error_percent(model, batches.test(), device),
    )
