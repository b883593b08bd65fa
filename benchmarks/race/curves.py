"""Trains one curve: test error against steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from benchmarks.contenders.common import choose_device, open_batches
from benchmarks.harness.crew import Member
from benchmarks.race.learners import create_learner
from benchmarks.race.lines import Line
from pipeline.config.schema import RunConfig
from pipeline.learning.packet import Position
from pipeline.runtime.world import reproducible

__all__ = ["Curve", "looked_after", "train_curve"]


@dataclass(frozen=True)
class Curve:
    """Test error in percent after so many steps, and the seconds that all of it took."""

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    seconds: float


def looked_after(steps_per_epoch: int, looks: int) -> set[int]:
    """Steps of an epoch, counted from 1, after which the error is looked at: evenly, the last one always."""
    return {max(1, round(look * steps_per_epoch / looks)) for look in range(1, looks + 1)}


def train_curve(member: Member, line: Line, config: RunConfig, looks: int) -> Curve:
    """All epochs of a configuration, in this process alone, with `looks` evaluations in each."""
    device, began = choose_device(member, config), time.perf_counter()
    with reproducible(config.train, member.threads, device):
        batches = open_batches(config, device)
        learner = create_learner(line, config, batches, device)
        looked, found = looked_after(batches.steps_per_epoch, looks), list[tuple[int, float]]()
        for epoch in range(1, config.train.epochs + 1):
            first = (epoch - 1) * batches.steps_per_epoch
            for done, images, labels in batches.train(epoch):
                learner.step(Position(epoch, done), images, labels)
                if done + 1 - first in looked:
                    found.append((done + 1, learner.error()))
    steps, errors = zip(*found, strict=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Curve(steps, errors, time.perf_counter() - began)
