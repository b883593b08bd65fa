"""Frozen configuration that checks itself: the only place that knows defaults. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import Any

from pipeline.config.catalog import DATASETS, check_fits
from pipeline.config.data import DataConfig
from pipeline.config.fields import joined
from pipeline.config.method import Method
from pipeline.config.model import ModelConfig
from pipeline.config.placement import Placement
from pipeline.config.schedule import Schedule
from pipeline.errors import ConfigError

__all__ = ["SECTIONS", "DataConfig", "ModelConfig", "RunConfig", "TrainConfig", "override"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Placement, Schedule, Method):  # fields come in the reverse order of the bases
    """How blocks learn, how long, and where they run."""

    def __post_init__(self) -> None:
        for part in (Method, Schedule, Placement):
            part.__post_init__(self)

    def rate(self, epoch: int, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0 over the whole run.

        Of 10 steps with a peak at 0.2, in parts of --lr:

            triangle   1/2 1 | 8/8 7/8 6/8 5/8 4/8 3/8 2/8 1/8
        """
        if self.lr_schedule == "milestones":
            return self.learning_rate(epoch)
        total = self.epochs * steps_per_epoch
        rising = round(self.lr_peak * total)
        if step < rising:
            return self.lr * (step + 1) / rising
        done = (step - rising) / (total - rising)
        return self.lr * (1 - done if self.lr_schedule == "triangle" else (1 + math.cos(math.pi * done)) / 2)

    @property
    def wire_rounds(self) -> bool:
        """Whether numbers change where they go from stage to stage, so that the split decides bits."""
        return self.wire not in ("auto", "fp32", self.precision)

    def check_blocks(self, blocks: int, world_size: int) -> None:
        """As for a placement, and segments against the network and the stages; counts not yet found come later."""
        super().check_blocks(blocks, world_size)
        if self.segments is None:
            return
        named, stages = f"--segments {self.segments_text}", self.stage_count(world_size)
        count = len(self.segments) if isinstance(self.segments, tuple) else self.segments
        if isinstance(self.segments, int) and count > blocks:
            raise ConfigError(f"{named} for a network of {blocks} blocks leaves some empty; use at most {blocks}")
        least = self.first_cut_after or 1
        if isinstance(self.segments, int) and least + count - 1 > blocks:
            raise ConfigError(
                f"--first-cut-after {least} leaves {blocks - least} of the {blocks} blocks for the other {count - 1} "
                f"of {named}; give at most {blocks - count + 1}"
            )
        if isinstance(self.segments, tuple) and sum(self.segments) != blocks:
            raise ConfigError(
                f"{named} covers {sum(self.segments)} blocks, but the network has {blocks}; make the counts add "
                f"up to {blocks}"
            )
        if stages > count:
            raise ConfigError(
                f"{stages} stages for the {count} segments of {named} leave stages empty; use at most {count} stages, "
                "or more segments"
            )
        if self.split is not None and isinstance(self.segments, tuple):
            cuts = set(accumulate(self.split)) - set(accumulate(self.segments))
            if cuts:
                raise ConfigError(
                    f"--split {joined(self.split)} cuts a segment of {named} after {min(cuts)} blocks; let "
                    "stages end where segments end"
                )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete run: what `config.toml` holds."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        shape = DATASETS[self.data.dataset].shape
        if shape is not None:
            check_fits(self.model.model, shape)
        limit = self.data.train_limit
        if limit is not None and self.data.dataset == "digits" and limit > 1437:
            raise ConfigError(f"--train-limit is {limit}, but digits has 1437 training samples; give at most 1437")

    def check_world(self, world_size: int) -> None:
        """Raise ConfigError if this run cannot be laid out over `world_size` processes."""
        self.train.check_blocks(self.model.blocks, world_size)
        self.train.threads_of(world_size)


SECTIONS: Mapping[str, type] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}


def override(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`config` with the named fields replaced, whichever section holds them."""
    home = {f.name: section for section, cls in SECTIONS.items() for f in fields(cls)}
    changed = {section: {k: v for k, v in values.items() if home[k] == section} for section in SECTIONS}
    if "loss" in values and "beta" not in values and changed["train"]["loss"] != config.train.loss:
        changed["train"]["beta"] = None  # the default follows the loss
    if "optimizer" in values and "momentum" not in values and changed["train"]["optimizer"] != config.train.optimizer:
        changed["train"]["momentum"] = None  # likewise
    if "split" in values and "stages" not in values:
        changed["train"]["stages"] = None  # a split says how many stages there are, and the other way round
    if "stages" in values and "split" not in values:
        changed["train"]["split"] = None
    if "model" in values and "hidden_layers" not in values and changed["model"]["model"] != config.model.model:
        changed["model"]["hidden_layers"] = None
    return replace(config, **{s: replace(getattr(config, s), **found) for s, found in changed.items()})
