"""Frozen configuration that checks itself: the only place that knows defaults. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pipeline.config.catalog import DATASETS, LOSSES, MODELS, LossSpec, block_count, check_fits
from pipeline.config.checks import check_choice, check_number
from pipeline.errors import ConfigError

__all__ = [
    "LOCALITIES",
    "NONLINEARITIES",
    "OPTIMIZERS",
    "PRECISIONS",
    "SIMILARITY_HEADS",
    "WIRES",
    "DataConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "override",
]

NONLINEARITIES = ("auto", "relu", "leaky_relu")
OPTIMIZERS = ("adam", "amsgrad", "sgd")
SIMILARITY_HEADS = ("conv", "pool-2", "pool-4", "pool-4x4", "stride-4", "grouped-8", "none")
LOCALITIES = ("block", "group")
PRECISIONS = ("fp32", "bf16")
WIRES = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, where they lie, and how they are altered for training."""

    dataset: str = "digits"
    data_dir: str = "./data"
    """Root folder in torchvision's layout."""
    download: bool = False
    """Let torchvision fetch what is missing."""
    train_limit: int | None = None
    """First N samples only; None is all."""
    test_limit: int | None = None
    cutout: int = 0
    """Side of the hole in pixels, 0 is off (DeVries & Taylor 2017)."""

    def __post_init__(self) -> None:
        check_choice(self, "dataset", tuple(DATASETS))
        for name in ("train_limit", "test_limit"):
            if getattr(self, name) is not None:
                check_number(self, name, low=1)
        check_number(self, "cutout", low=0)
        shape = DATASETS[self.dataset].shape
        if shape is not None and self.cutout > 2 * min(shape[1:]):
            raise ConfigError(
                f"--cutout is {self.cutout}, more than twice the side of {self.dataset}'s {shape[1]}x{shape[2]} "
                f"images; give at most {2 * min(shape[1:])}"
            )
        if self.train_limit == 1:
            raise ConfigError("--train-limit is 1, but a batch needs at least 2 samples; give at least 2")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name."""

    model: str = "vgg8b"
    width: float = 1.0
    """Multiplies the channels of a convolutional network."""
    hidden_units: int = 1024
    hidden_layers: int | None = None
    """Hidden fully connected layers; None is 3 for mlp, 1 for vgg."""
    nonlinearity: str = "auto"
    """auto: leaky_relu where the loss holds sim, else relu, as in the paper's recipes."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self, "model", MODELS)
        check_number(self, "width", low=0.0, high=64.0, open_low=True)
        check_number(self, "hidden_units", low=1)
        if self.hidden_layers is None:
            object.__setattr__(self, "hidden_layers", 3 if self.model == "mlp" else 1)
        check_number(self, "hidden_layers", low=1 if self.model == "mlp" else 0)
        check_choice(self, "nonlinearity", NONLINEARITIES)
        check_number(self, "dropout", low=0.0)
        if self.dropout >= 1:
            raise ConfigError(f"--dropout is {self.dropout}; give 0 up to below 1")
        if self.model == "mlp" and self.width != 1:
            raise ConfigError(f"--width is {self.width:g}, but mlp has no channels; use --hidden-units")
        if self.model != "mlp" and int(64 * self.width) < 1:
            raise ConfigError(
                f"--width is {self.width:g}, which leaves {self.model} without channels; give 1/64 or more"
            )

    def nonlinearity_for(self, loss: str) -> str:
        """The nonlinearity, `auto` resolved as in the paper's recipes."""
        if self.nonlinearity != "auto":
            return self.nonlinearity
        return LOSSES[loss].nonlinearity

    @property
    def blocks(self) -> int:
        """Number of blocks, the output layer included."""
        assert self.hidden_layers is not None
        return block_count(self.model, self.hidden_layers)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How blocks learn and where they run. The defaults are the paper's, the placement is one process."""

    loss: str = "predsim"
    beta: float | None = None
    """Weight of the similarity loss in predsim; None is 0.99, and 0.01 for predsim-bio."""
    decoder_dim: int = 4096
    """Most inputs of a local classifier; feature maps are average-pooled down to it."""
    target_projection: int = 128
    """Length of the fixed random projection of the targets in the -bio losses."""
    similarity_head: str = "conv"
    """What stands before the similarity matrix: the paper's 3x3 convolution, or a cheaper layer."""
    locality: str = "block"
    """block: every block has its local loss; group: one at the end of each stage, backprop inside it."""
    epochs: int = 10
    batch_size: int = 128
    lr: float = 5e-4
    lr_milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is multiplied by `lr_decay`."""
    lr_decay: float = 0.25
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    seed: int = 1
    stages: int | None = None
    """Stages in one process (None: 1, or as `split` says); under torchrun the world size."""
    split: tuple[int, ...] | None = None
    """Blocks of each stage; None balances them by measured cost."""
    queue_depth: int = 4
    """Packets sent and not yet taken between two stages, both ends together."""
    device: str = "auto"
    precision: str = "fp32"
    deterministic: bool = False
    threads: int | None = None
    """CPU threads of each process; None is cores / processes on this host, at least 1."""
    wire: str = "auto"
    """Number format between stages; auto is the activation's own, lossless."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    timeout: float = 60.0
    """Seconds of silence from a peer (not of slowness) until the run fails."""

    def __post_init__(self) -> None:
        check_choice(self, "loss", tuple(LOSSES))
        self._coerce()
        self._check_method()
        self._check_placement()

    def _coerce(self) -> None:
        for name in ("lr_milestones", "split"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, tuple):
                object.__setattr__(self, name, tuple(value))
        if self.beta is None:
            object.__setattr__(self, "beta", self.loss_spec.beta)

    def _check_method(self) -> None:
        check_number(self, "beta", low=0.0, high=1.0)
        check_number(self, "decoder_dim", low=1)
        check_number(self, "target_projection", low=1)
        check_choice(self, "similarity_head", SIMILARITY_HEADS)
        check_choice(self, "locality", LOCALITIES)
        check_number(self, "epochs", low=1)
        check_number(self, "batch_size", low=2)
        check_number(self, "lr", low=0.0, open_low=True)
        check_number(self, "lr_decay", low=0.0, open_low=True)
        check_choice(self, "optimizer", OPTIMIZERS)
        check_number(self, "momentum", low=0.0)
        check_number(self, "weight_decay", low=0.0)
        check_number(self, "seed", low=0, high=2**63 - 1)
        for epoch in self.lr_milestones:
            if not isinstance(epoch, int) or epoch < 1:
                raise ConfigError(f"--lr-milestones has {epoch!r}; give epochs, whole numbers of at least 1")
        if list(self.lr_milestones) != sorted(set(self.lr_milestones)):
            raise ConfigError(f"--lr-milestones {' '.join(map(str, self.lr_milestones))} do not rise; give each once")
        if self.momentum and self.optimizer != "sgd":
            raise ConfigError(f"--momentum {self.momentum:g} needs --optimizer sgd, not {self.optimizer}")
        if self.momentum >= 1:
            raise ConfigError(f"--momentum is {self.momentum:g}; give 0 up to below 1")
        if self.similarity_head != "conv" and not self.loss_spec.similarity_head:
            raise ConfigError(
                f"--similarity-head {self.similarity_head} needs a loss with a similarity head, not {self.loss}; "
                "choose sim, predsim, glob+sim or glob+predsim"
            )
        if self.locality == "group" and self.backpropagates:
            raise ConfigError(f"--locality group needs a local loss, not {self.loss}; choose pred, sim or predsim")

    def _check_placement(self) -> None:
        if self.stages is not None:
            check_number(self, "stages", low=1)
        check_number(self, "queue_depth", low=1)
        check_number(self, "eval_every", low=1)
        check_number(self, "timeout", low=0.0, open_low=True)
        check_choice(self, "precision", PRECISIONS)
        check_choice(self, "wire", WIRES)
        if self.threads is not None:
            check_number(self, "threads", low=1, high=1024)
        name, _, number = self.device.partition(":")
        if self.device not in ("auto", "cpu", "cuda") and not (name == "cuda" and number.isdecimal()):
            raise ConfigError(f"--device is {self.device!r}; choose auto, cpu, cuda or cuda:N")
        if self.split is not None:
            self._check_split(self.split)

    def _check_split(self, split: tuple[int, ...]) -> None:
        if not split or any(not isinstance(n, int) or n < 1 for n in split):
            raise ConfigError(f"--split is {_join(split)!r}; give auto or block counts of at least 1, such as 3,2,2,1")
        if self.stages is not None and self.stages != len(split):
            raise ConfigError(
                f"--split {_join(split)} makes {len(split)} stages, but --stages is {self.stages}; drop one of them"
            )

    @property
    def backpropagates(self) -> bool:
        """Whether the loss is `glob` or `glob+X`: gradients pass from block to block, and stages take turns."""
        return self.loss_spec.backpropagates

    @property
    def loss_spec(self) -> LossSpec:
        """What the name of the loss says."""
        return LOSSES[self.loss]

    def stage_count(self, world_size: int) -> int:
        """Number of stages in a run of `world_size` processes. Raises ConfigError if the flags say otherwise."""
        if world_size == 1:
            return len(self.split) if self.split is not None else (self.stages or 1)
        if self.split is not None and len(self.split) != world_size:
            raise ConfigError(
                f"--split {_join(self.split)} makes {len(self.split)} stages, but there are {world_size} processes, "
                f"one stage each; give {world_size} counts or --split auto"
            )
        if self.stages is not None and self.stages != world_size:
            raise ConfigError(
                f"--stages is {self.stages}, but under torchrun stages are the {world_size} processes; drop --stages"
            )
        return world_size

    def check_blocks(self, blocks: int, world_size: int) -> None:
        """Raise ConfigError if a network of `blocks` blocks cannot be laid out over the stages."""
        stages = self.stage_count(world_size)
        if self.split is not None and sum(self.split) != blocks:
            raise ConfigError(
                f"--split {_join(self.split)} places {sum(self.split)} blocks, but the network has {blocks}; "
                f"make the counts add up to {blocks}"
            )
        if stages > blocks:
            what = f"{world_size} processes" if world_size > 1 else f"--stages {stages}"
            raise ConfigError(f"{what} for a network of {blocks} blocks leave stages empty; use at most {blocks}")

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1: decayed once for each milestone passed."""
        passed = sum(milestone <= epoch - 1 for milestone in self.lr_milestones)
        return float(self.lr * self.lr_decay**passed)

    def evaluates(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, ends with an evaluation."""
        return epoch % self.eval_every == 0 or epoch == self.epochs


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


SECTIONS: Mapping[str, type[DataConfig] | type[ModelConfig] | type[TrainConfig]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
}


def section_of(name: str) -> str:
    """The section of RunConfig that holds a field."""
    return next(s for s, cls in SECTIONS.items() if name in {f.name for f in fields(cls)})


def override(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`config` with the named fields replaced, whichever section holds them."""
    changed = {s: {k: v for k, v in values.items() if section_of(k) == s} for s in SECTIONS}
    if "loss" in values and "beta" not in values and changed["train"]["loss"] != config.train.loss:
        changed["train"]["beta"] = None  # the default follows the loss
    if "split" in values and "stages" not in values:
        changed["train"]["stages"] = None  # a split says how many stages there are, and the other way round
    if "stages" in values and "split" not in values:
        changed["train"]["split"] = None
    if "model" in values and "hidden_layers" not in values and changed["model"]["model"] != config.model.model:
        changed["model"]["hidden_layers"] = None
    return RunConfig(
        data=replace(config.data, **changed["data"]),
        model=replace(config.model, **changed["model"]),
        train=replace(config.train, **changed["train"]),
    )


def _join(split: tuple[int, ...]) -> str:
    return ",".join(map(str, split))
