"""Named complete configurations."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from pipeline.config.paper import experiments, first_of
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.text import brief

__all__ = ["RECIPES", "list_recipes", "recipe"]

RECIPES: Mapping[str, RunConfig] = {
    # Real handwritten digits with scikit-learn, no download: about a minute on two cores.
    "digits": RunConfig(
        data=DataConfig(dataset="digits"),
        model=ModelConfig(model="vgg8b", width=0.25, dropout=0.1),
        train=TrainConfig(loss="predsim", epochs=12, lr=1e-3, lr_milestones=(8, 10), decoder_dim=1024),
    ),
}


def recipe(name: str) -> RunConfig:
    """The configuration of a named recipe. Raises ConfigError for an unknown name."""
    if name in RECIPES:
        return RECIPES[name]
    if name in experiments():
        return experiments()[name].config
    near = difflib.get_close_matches(name, [*RECIPES, *experiments()], n=3, cutoff=0.3) or list(RECIPES)
    raise ConfigError(f"--recipe is {brief(name)!r}; choose one of --list-recipes, such as {', '.join(near)}")


def list_recipes(measured: Mapping[str, str] = MappingProxyType({})) -> str:
    """A line for each; those of the paper with the error that it publishes.

    `measured` says what came of some of them here, in a few words.
    """
    lines = list(RECIPES)
    for name, found in experiments().items():
        paper = "    -  " if found.error_percent is None else f"{found.error_percent:5.2f} %"
        ours = f", ours {measured[first_of(name)]}" if first_of(name) in measured else ""
        assumed = f", assumed: {found.assumed}" if found.assumed else ""
        lines.append(f"{name:<40} paper {paper}{ours}, {found.config.train.epochs} epochs{assumed}")
    return "\n".join(lines)
