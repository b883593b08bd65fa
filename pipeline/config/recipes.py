"""Named complete configurations."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from pipeline.errors import ConfigError

__all__ = ["RECIPES", "recipe"]

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
    if name not in RECIPES:
        raise ConfigError(f"--recipe is {name!r}; choose one of {', '.join(RECIPES)} (see --list-recipes)")
    return RECIPES[name]
