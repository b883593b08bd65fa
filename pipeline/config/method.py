"""How blocks learn: everything that decides the bits of the weights, apart from data, network and number of epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.config.catalog import LOSSES, LossSpec
from pipeline.config.fields import Bounds, are_counts, check_fields, flag_name, joined, option, several
from pipeline.errors import ConfigError
from pipeline.text import brief, shown

__all__ = ["Method"]


_MEMORY, _FLOAT = "more take too much memory", "weights hold no more"


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is learned from a batch, and in which order batches come. The defaults are the paper's."""

    loss: str = option(
        "predsim",
        "what trains a block",
        tuple(LOSSES),
        doc="what trains a block: its local loss, or `glob`, global backpropagation, or `glob+X`, both in one graph",
    )
    beta: float | None = option(
        None, "weight of sim in predsim", Bounds(0.0, 1.0), shown="0.99; 0.01 for predsim-bio", metavar="F"
    )
    decoder_dim: int = option(
        4096, "most inputs of a local classifier, pooled down to it", Bounds(1, 1_000_000, why=_MEMORY)
    )
    target_projection: int = option(
        128, "length of the fixed random projection of -bio targets", Bounds(1, 65_536, why=_MEMORY)
    )
    classifier: str = option(
        "linear",
        "local classifier",
        ("linear", "mlp-sr", "copy", "fast-copy"),
        doc="local classifier: `linear` is the paper's; `mlp-sr` (Belilovsky et al. 2020), `copy` (after Ma et al. "
        "2024: a small network like what follows) and `fast-copy` (the same of fastnet's blocks) judge what the block "
        "hands on, after its pooling",
    )
    head_start: str = option(
        "zero",
        "first weights of local classifiers",
        ("zero", "random"),
        doc="first weights of the local classifiers' last layer: `zero` is the paper's, with which blocks below learn "
        "nothing from the first step; `random` are those of any linear layer",
    )
    label_smoothing: float = option(
        0.0,
        "share of the target of every cross-entropy that is spread over all classes",
        Bounds(0.0),
        given="0 up to below 1",
    )
    similarity_head: str = option("conv", "before the similarity matrix, conv is the paper's", ("conv", "pool-4x4"))
    segments: tuple[int, ...] | int | None = option(
        None,
        "blocks trained by one local loss at their end, backprop inside",
        shown="block",
        metavar="WHICH",
        given="block, a number of segments, or counts such as 3,3,2",
        doc="consecutive blocks trained by one local loss at their end, with backprop inside: `block`, every block is "
        "one, as in the paper; a number, so many, balanced by counted forward arithmetic; or block counts",
    )
    first_cut_after: int | None = option(
        None,
        "blocks that the first of so many --segments has at least",
        Bounds(1, 1_000_000, why="no network has more"),
        shown="1",
        doc="blocks that the first segment has at least, where `--segments` is a number: with several, "
        "accuracy gains from a first cut that comes late, not before the second pooling",
    )
    batch_size: int = option(128, "samples of a step", Bounds(2, 10_000_000, why=_MEMORY))
    lr: float = option(5e-4, "learning rate", Bounds(0.0, 1e38, open_low=True, why=_FLOAT))
    lr_milestones: tuple[int, ...] = option(
        (), "epochs after which the learning rate is multiplied", shown="none", metavar="E", given="at least 1, rising"
    )
    lr_decay: float = option(0.25, "what it is multiplied by", Bounds(0.0, open_low=True))
    lr_schedule: str = option(
        "milestones",
        "how the learning rate goes on",
        ("milestones", "cosine", "triangle"),
        doc="how the learning rate goes on: `milestones` by epochs, as in the paper; `cosine` and `triangle` step "
        "by step from `--lr` down to nothing at the end of the last epoch, along a cosine or a line",
    )
    lr_peak: float = option(
        0.0, "share of all steps over which cosine and triangle first rise", Bounds(0.0), given="0 up to below 1"
    )
    head_lr: float = option(
        1.0,
        "factor of the learning rate for local heads",
        Bounds(0.0, 1e6, open_low=True, why=_FLOAT),
        doc="factor of the learning rate for local heads, classifiers and layers before a similarity matrix alike; "
        "at rates of sgd that suit backpropagation `copy` diverges with 1 and learns with 0.3",
    )
    optimizer: str = option(
        "adam",
        "optimizer of every block",
        ("adam", "amsgrad", "sgd", "muon"),
        doc="optimizer of every block; `muon` (Jordan et al. 2024) learns the matrices and filters of hidden layers, "
        "of blocks and local heads, in steps as long as Adam's (Liu et al. 2025), and leaves the output layer, the "
        "last layers of classifiers and all that is no matrix to `adam`",
    )
    momentum: float | None = option(
        None,
        "momentum of sgd and muon",
        Bounds(0.0),
        shown="0; 0.95 of muon",
        metavar="F",
        given="0 up to below 1",
    )
    nesterov: bool = option(False, "momentum that looks ahead")
    weight_decay: float = option(
        0.0,
        "weight decay of every optimizer",
        Bounds(0.0, 1e38, why=_FLOAT),
        doc="weight decay of every optimizer: so much of a weight is added to its gradient; what muon itself learns "
        "shrinks by so much times its learning rate instead (decoupled), as torch's Muon does it",
    )
    ema: float = option(
        0.0,
        "average of the weights that is evaluated and kept: what stays of it in a step",
        Bounds(0.0),
        given="0 up to below 1",
        doc="evaluate and keep an exponential average of the weights, of which so much stays in a step, less in the "
        "first ones; training itself is the same with and without, and 0 is without",
    )
    norm_momentum: float | None = option(
        None,
        "share of a batch in the running statistics of batch norms",
        Bounds(0.0, 1.0, open_low=True),
        shown="the network's, 0.1",
        metavar="F",
    )
    norm_bias_lr: float = option(
        1.0,
        "factor of the learning rate for the biases of batch norms",
        Bounds(0.0, 1e6, open_low=True, why=_FLOAT),
    )
    precision: str = option("fp32", "number format of the arithmetic", ("fp32", "bf16"))
    compile: bool = option(
        False,
        "each block through torch.compile",
        doc="each block's training step through torch.compile, with bits of its own, the same for every placement; "
        "the first steps take a minute or more",
    )
    seed: int = option(1, "key of all random numbers", Bounds(0, 2**63 - 1), given="at least 0")

    def __post_init__(self) -> None:
        check_fields(self, Method)
        if self.beta is None:
            object.__setattr__(self, "beta", self.loss_spec.beta)
        if self.momentum is None:
            object.__setattr__(self, "momentum", 0.95 if self.optimizer == "muon" else 0.0)
        self._check_milestones()
        self._check_combinations()

    def _check_milestones(self) -> None:
        for epoch in self.lr_milestones:
            if not are_counts((epoch,)):
                raise ConfigError(f"--lr-milestones has {shown(epoch)}; give epochs, whole numbers of at least 1")
        try:
            last = self.lr * self.lr_decay ** len(self.lr_milestones)
        except OverflowError:
            last = math.inf
        if not 0 < last < math.inf:
            raise ConfigError(
                f"--lr {self.lr:g} times --lr-decay {self.lr_decay:g} for {len(self.lr_milestones)} milestones "
                f"comes to {last:g}; give a decay nearer to 1"
            )
        if list(self.lr_milestones) != sorted(set(self.lr_milestones)):
            raise ConfigError(f"--lr-milestones {' '.join(map(str, self.lr_milestones))} do not rise; give each once")

    def _check_schedule(self) -> None:
        if self.lr_peak >= 1:
            raise ConfigError(f"--lr-peak is {self.lr_peak:g}; give 0 up to below 1")
        by_step = self.lr_schedule != "milestones"
        if by_step and self.lr_milestones:
            given = " ".join(map(str, self.lr_milestones))
            raise ConfigError(
                f"--lr-milestones {given} needs --lr-schedule milestones, not {self.lr_schedule}; drop one"
            )
        if self.lr_peak and not by_step:
            raise ConfigError(f"--lr-peak {self.lr_peak:g} needs --lr-schedule cosine or triangle, not milestones")

    def _check_combinations(self) -> None:
        self._check_schedule()
        self._check_momentum(self.momentum or 0.0)
        if self.ema >= 1:
            raise ConfigError(f"--ema is {self.ema:g}; give 0 up to below 1")
        if self.label_smoothing >= 1:
            raise ConfigError(f"--label-smoothing is {self.label_smoothing:g}; give 0 up to below 1")
        self._check_heads()
        self._check_classifier()
        if self.similarity_head != "conv" and not self.loss_spec.similarity_head:
            raise ConfigError(
                f"--similarity-head {self.similarity_head} needs a loss with a similarity head, not {self.loss}; "
                "choose sim, predsim, glob+sim or glob+predsim"
            )
        if self.segments is not None:
            self._check_segments()
        if self.first_cut_after is not None and not isinstance(self.segments, int):
            raise ConfigError(
                f"--first-cut-after {self.first_cut_after} needs a number of --segments, not {self.segments_text}; "
                "give one, such as --segments 2, or the block counts of all"
            )

    def _check_momentum(self, momentum: float) -> None:
        if self.nesterov and not momentum:
            raise ConfigError("--nesterov needs a --momentum above 0; give one, such as 0.9")
        if momentum and self.optimizer not in ("sgd", "muon"):
            raise ConfigError(f"--momentum {momentum:g} needs --optimizer sgd or muon, not {self.optimizer}")
        if momentum >= 1:
            raise ConfigError(f"--momentum is {momentum:g}; give 0 up to below 1")

    def _check_heads(self) -> None:
        if self.head_lr != 1 and not self.loss_spec.head_weights:
            raise ConfigError(
                f"--head-lr {self.head_lr:g} needs a loss whose local heads have weights, not {self.loss}; drop one "
                "of them"
            )

    def _check_classifier(self) -> None:
        for name, default in (("classifier", "linear"), ("head_start", "zero")):
            value = getattr(self, name)
            if value != default and (not self.loss_spec.prediction or self.loss_spec.bio):
                raise ConfigError(
                    f"{flag_name(name)} {value} needs a loss with a local classifier that is trained by backprop, not "
                    f"{self.loss}; choose pred, predsim, glob+pred or glob+predsim"
                )

    def _check_segments(self) -> None:
        if not are_counts(several(self.segments)):
            raise ConfigError(
                f"--segments is {brief(self.segments_text)}; give block, a number of segments, or block counts of at "
                "least 1, such as 3,3,2"
            )
        if self.backpropagates:
            raise ConfigError(
                f"--segments {self.segments_text} needs a local loss, not {self.loss}, which is one segment over "
                "everything; choose pred, sim or predsim"
            )

    @property
    def segments_text(self) -> str:
        """`segments` as the command line takes it."""
        if self.segments is None:
            return "block"
        return joined(self.segments) if isinstance(self.segments, tuple) else shown(self.segments)

    @property
    def loss_spec(self) -> LossSpec:
        """What the name of the loss says."""
        return LOSSES[self.loss]

    @property
    def backpropagates(self) -> bool:
        """Whether gradients pass from block to block, so that stages take turns."""
        return self.loss_spec.backpropagates

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1: decayed once for each milestone passed."""
        passed = sum(milestone <= epoch - 1 for milestone in self.lr_milestones)
        return float(self.lr * self.lr_decay**passed)
