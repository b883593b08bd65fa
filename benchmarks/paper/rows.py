"""Which experiments are run, and how: a pattern, a number of seeds and a share of the epochs become plans. Pure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from benchmarks.harness.settings import departures
from pipeline.config.cli import parse
from pipeline.config.fields import flag_name, joined
from pipeline.config.paper import experiments, first_of
from pipeline.config.placement import Placement
from pipeline.config.schedule import Schedule
from pipeline.config.schema import RunConfig, override
from pipeline.errors import ConfigError
from pipeline.text import brief, shown

__all__ = ["MOST_SEEDS", "Plan", "changes", "plans", "select", "shortened"]

MOST_SEEDS = 100

_LAYS_OUT = {
    *(f.name for f in fields(Placement) if f.name != "wire"),
    *(f.name for f in fields(Schedule)),
    *("data_dir", "download", "seed", "lr_milestones", "classes_per_batch_until"),
}
"""What leaves the method as it is, or goes with the number of epochs, which is told by itself."""

_OURS = {
    **dict.fromkeys(("epochs", "lr_milestones", "classes_per_batch_until"), "--epoch-scale"),
    **dict.fromkeys(("dataset", "model", "loss"), "--rows"),
    "seed": "--seeds",
}
"""What the plans set, and by which of their flags."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training: a row of the paper with a seed.

    Attributes:
        row: name of the experiment, the first of those that are the same.
        config: complete.
        recipe_epochs: of the paper's schedule; `config` may have fewer.
        changes: what else differs from the recipe, by field; empty where nothing does.
    """

    row: str
    config: RunConfig
    recipe_epochs: int
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def epochs(self) -> int:
        return self.config.train.epochs

    @property
    def folder(self) -> str:
        """Of its run, relative to that of all runs: other settings, another folder."""
        changed = "".join(f"-{name.replace('_', '-')}-{_text(value)}" for name, value in self.changes.items())
        return f"{self.row}/epochs-{self.epochs}{changed}-seed-{self.seed}"


def _text(value: Any) -> str:
    return joined(value) if isinstance(value, tuple) else str(value).replace("/", "-")


def select(patterns: Sequence[str]) -> list[str]:
    """The experiments that patterns such as `table4/*/predsim` or `table4` name, in the paper's order.

    Raises ConfigError that names the nearest ones for a pattern that names none.
    """
    found: set[str] = set()
    for pattern in patterns:
        named = [name for name in experiments() if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*")]
        if not named:
            near = difflib.get_close_matches(pattern, experiments(), n=3, cutoff=0.3) or list(experiments())[:3]
            raise ConfigError(
                f"--rows {brief(pattern)!r} names no experiment; near are {', '.join(near)}; patterns take * and ?, "
                "and --list-recipes of launch/pipeline_train.py lists all"
            )
        found.update(named)
    return [name for name in experiments() if name in found]


def shortened(config: RunConfig, scale: float) -> RunConfig:
    """The schedule for a share of its epochs, at least one: milestones and limits keep their places in it.

    400 epochs with milestones 200 300 350 375, a tenth -> 40 with 20 30 35 38.
    """
    epochs = max(1, round(config.train.epochs * scale))
    milestones = sorted({max(1, round(epoch * scale)) for epoch in config.train.lr_milestones})
    grouped = config.data.classes_per_batch_until
    data = replace(config.data, classes_per_batch_until=None if grouped is None else max(1, round(grouped * scale)))
    train = replace(config.train, epochs=epochs, lr_milestones=tuple(e for e in milestones if e < epochs))
    return replace(config, data=data, train=train)


def changes(recipe: RunConfig, config: RunConfig) -> dict[str, Any]:
    """What a configuration changes of a recipe's method, data and network, by field, the schedule left out."""
    return {name: value for name, value in departures(config, recipe).items() if name not in _LAYS_OUT}


def plans(rows: Sequence[str], seeds: int, scale: float, flags: Sequence[str] = ()) -> list[Plan]:
    """Seed after seed, all rows of each, so that every row soon has a figure.

    Args:
        rows: from `select`.
        seeds: how many, from 1.
        scale: share of the recipes' epochs, above 0 and at most 1.
        flags: of `launch/pipeline_train.py`, over the recipes.

    Raises ConfigError for a value out of range, and for flags that do not fit a row, named.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ConfigError(f"--seeds is {shown(seeds)}; give 1 to {MOST_SEEDS}")
    if not (math.isfinite(scale) and 0 < scale <= 1):
        raise ConfigError(f"--epoch-scale is {scale:g}; give a number above 0 and at most 1")
    firsts = [_first(row, scale, flags) for row in dict.fromkeys(first_of(row) for row in rows)]
    return [
        replace(plan, config=override(plan.config, {"seed": seed})) for seed in range(1, seeds + 1) for plan in firsts
    ]


def _first(row: str, scale: float, flags: Sequence[str]) -> Plan:
    """A row's plan with the recipe's seed."""
    recipe = experiments()[row].config
    config = shortened(_given(row, recipe, flags), scale)
    return Plan(row=row, config=config, recipe_epochs=recipe.train.epochs, changes=changes(recipe, config))


def _given(row: str, recipe: RunConfig, flags: Sequence[str]) -> RunConfig:
    """The recipe under the flags, which may only say what a plan does not."""
    try:
        command = parse(["--recipe", row, *flags])
    except ConfigError as error:
        raise ConfigError(f"{row}: {error}") from error
    given = departures(command.config, recipe)
    for name, ours in _OURS.items():
        if name in given:
            raise ConfigError(f"{flag_name(name)} is not for this command, whose {ours} decides it; drop it")
    for name in ("output", "resume", "init_from", "trace"):
        if getattr(command, name) is not None:
            raise ConfigError(f"{flag_name(name)} is not for this command, which names the run folders itself")
    return command.config
