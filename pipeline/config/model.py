"""Which network learns."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.catalog import FASTNET, FASTNET_PLAN, LOSSES, MODELS, POOL, RESIDUAL_PLANS, VGG_PLANS
from pipeline.config.fields import Bounds, check_fields, option
from pipeline.errors import ConfigError

__all__ = ["ModelConfig"]


_MEMORY = "more take too much memory"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    model: str = option("vgg8b", "network", MODELS)
    width: float = option(
        1.0, "multiplies the channels of a convolutional network", Bounds(0.0, 64.0, open_low=True, why=_MEMORY)
    )
    hidden_units: int = option(1024, "units of each hidden fully connected layer", Bounds(1, 1_000_000, why=_MEMORY))
    hidden_layers: int | None = option(
        None,
        "hidden fully connected layers",
        shown="3 for mlp, 1 for vgg, 0 for others",
        given="0, 1 for mlp, to 1000",
    )
    nonlinearity: str = option(
        "auto",
        "after each hidden layer",
        ("auto", "relu", "leaky_relu", "gelu"),
        shown="auto: leaky_relu where the loss holds sim, else relu; gelu for fastnet",
    )
    dropout: float = option(0.0, "rate on what a block hands on", Bounds(0.0), given="0 up to below 1")

    def __post_init__(self) -> None:
        check_fields(self, ModelConfig)
        width, perceptron = self.width, self.model == "mlp"
        residual = RESIDUAL_PLANS.get(self.model)
        if self.hidden_layers is None:
            object.__setattr__(self, "hidden_layers", 3 if perceptron else int(self.model in VGG_PLANS))
        Bounds(1 if perceptron else 0, 1000, why=_MEMORY).check("hidden_layers", self.hidden_layers)
        if self.dropout >= 1:
            raise ConfigError(f"--dropout is {self.dropout}; give 0 up to below 1")
        if self.dropout > 0.9999:
            raise ConfigError(f"--dropout is {self.dropout}, which leaves nothing; give at most 0.9999")
        if perceptron and width != 1:
            raise ConfigError(f"--width is {width:g}, but mlp has no channels; use --hidden-units")
        fewest = residual.stem if residual else 64
        if not perceptron and int(fewest * width) < 1:
            raise ConfigError(
                f"--width is {width:g}, which leaves {self.model} without channels; give 1/{fewest} or more"
            )

    def nonlinearity_for(self, loss: str) -> str:
        """The nonlinearity, `auto` resolved as in the paper's recipes, or as the network has it."""
        if self.nonlinearity != "auto":
            return self.nonlinearity
        return "gelu" if self.model == FASTNET else LOSSES[loss].nonlinearity

    @property
    def blocks(self) -> int:
        """Number of blocks, the output layer included."""
        assert self.hidden_layers is not None
        residual = RESIDUAL_PLANS.get(self.model)
        convolutions = sum(entry != POOL for entry in VGG_PLANS.get(self.model, ()))
        if self.model == FASTNET:
            convolutions = len(FASTNET_PLAN)
        return (residual.blocks if residual else convolutions) + self.hidden_layers + 1
