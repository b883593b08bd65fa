"""What is known about losses, networks and data sets without importing torch: parts, plans, shapes, class counts.

The command line checks its flags against these tables, so a mistake is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.errors import ConfigError

__all__ = [
    "CUSTOM",
    "DATASETS",
    "FASTNET",
    "FASTNET_PLAN",
    "LOSSES",
    "MODELS",
    "POOL",
    "RESIDUAL_PLANS",
    "VGG_PLANS",
    "DatasetInfo",
    "LossSpec",
    "ResidualPlan",
    "check_fits",
    "stem_stride",
]


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """What a loss name says; the only reader of such names."""

    name: str
    prediction: bool = False  # a local classifier
    similarity: bool = False  # similarities between activations are matched to those between targets
    bio: bool = False  # nothing is propagated back even inside a block: projected targets, feedback alignment
    backpropagates: bool = False  # gradients pass from block to block, so that stages take turns

    @property
    def local(self) -> bool:
        """Whether there are local losses at all; only `glob` has none."""
        return self.prediction or self.similarity

    @property
    def similarity_head(self) -> bool:
        """Whether a layer with weights stands before the similarity matrix."""
        return self.similarity and not self.bio

    @property
    def head_weights(self) -> bool:
        """Whether local heads have weights at all."""
        return self.prediction or self.similarity_head

    @property
    def beta(self) -> float:
        """The reference's weight of similarity where the user gives none."""
        return 0.01 if self.prediction and self.similarity and self.bio else 0.99

    @property
    def nonlinearity(self) -> str:
        """What `auto` means, as in the paper's recipes."""
        return "leaky_relu" if self.similarity else "relu"

    @property
    def isolated(self) -> LossSpec:
        """The same local losses in blocks that learn alone; `glob` has no such counterpart and stays."""
        twins = (spec for spec in LOSSES.values() if replace(spec, name=self.name, backpropagates=True) == self)
        return next(twins, self)

    def output_scale(self, beta: float) -> float:
        """Factor of the output layer's loss: the reference scales it in predsim too, unless that leaves nothing."""
        return 1.0 - beta if self.prediction and self.similarity and beta < 1 else 1.0


_PARTS = (
    LossSpec(name="pred", prediction=True),
    LossSpec(name="sim", similarity=True),
    LossSpec(name="predsim", prediction=True, similarity=True),
)

_SPECS = (  # the losses of the paper and of its reference implementation (Nøkland & Eidnes 2019)
    LossSpec(name="glob", backpropagates=True),
    *_PARTS,
    *(replace(spec, name=f"{spec.name}-bio", bio=True) for spec in _PARTS),
    *(replace(spec, name=f"glob+{spec.name}", backpropagates=True) for spec in _PARTS),
)

LOSSES: Mapping[str, LossSpec] = {spec.name: spec for spec in _SPECS}

POOL = "M"  # stands for a 2x2 max pooling in a plan, whose numbers are output channels of 3x3 convolutions

VGG_PLANS: Mapping[str, tuple[int | str, ...]] = {  # of the paper's appendix; vgg8b and vgg11b are its main networks
    "vgg6a": (128, "M", 256, "M", 512, "M", 512),
    "vgg6b": (128, "M", 256, "M", 512, "M", 512, "M"),
    "vgg8": (64, "M", 128, "M", 256, "M", 512, "M", 512, "M"),
    "vgg8a": (128, 256, "M", 256, 512, "M", 512, "M", 512),
    "vgg8b": (128, 256, "M", 256, 512, "M", 512, "M", 512, "M"),
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg11b": (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M"),
    "vgg13": (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
    "vgg19": (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"),
}


@dataclass(frozen=True)
class ResidualPlan:
    """Groups of residual blocks, each of which but the first halves the map.

    Attributes:
        kind: `basic` or `bottleneck` (He et al. 2016), or `wide` (Zagoruyko & Komodakis 2016).
        stem: channels of the first convolution.
        groups: blocks in each, and channels of their inner convolutions.
    """

    kind: str
    stem: int
    groups: tuple[tuple[int, int], ...]

    @property
    def blocks(self) -> int:
        """The stem included."""
        return 1 + sum(count for count, _ in self.groups)


def _residual(kind: str, *counts: int) -> ResidualPlan:
    return ResidualPlan(kind, 64, tuple(zip(counts, (64, 128, 256, 512), strict=True)))


def _wide(blocks: int) -> ResidualPlan:
    """Ten times as wide; the depth is six times the blocks of a group and four more."""
    return ResidualPlan("wide", 16, ((blocks, 160), (blocks, 320), (blocks, 640)))


RESIDUAL_PLANS: Mapping[str, ResidualPlan] = {
    "resnet18": _residual("basic", 2, 2, 2, 2),
    "resnet34": _residual("basic", 3, 4, 6, 3),
    "resnet50": _residual("bottleneck", 3, 4, 6, 3),
    "resnet101": _residual("bottleneck", 3, 4, 23, 3),
    "resnet152": _residual("bottleneck", 3, 8, 36, 3),
    "wrn-28-10": _wide(4),
    "wrn-40-10": _wide(6),
}

FASTNET = "fastnet"  # one network of a kind of its own
FASTNET_PLAN = ((64, True), (64, False), (256, True), (256, False), (256, True), (256, False))
"""Channels of its convolutions, and whether a pooling comes before the norm."""

_FASTNET_SIDE = 9  # 2x2 patches of it leave 8 x 8, and the poolings 1 x 1

MODELS = ("mlp", *VGG_PLANS, *RESIDUAL_PLANS, FASTNET)

CUSTOM = "custom"  # the model's name where the network is a user's own


@dataclass(frozen=True)
class DatasetInfo:
    """Shape and normalisation of a data set; `shape` is None where only the files can tell."""

    shape: tuple[int, int, int] | None  # channels, height, width
    classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0  # pixels of zero padding before the random crop, 0 is no crop
    flip: bool = False


# Means, deviations and augmentations are those of the reference recipes; its CIFAR constants are unusual but kept.
DATASETS: Mapping[str, DatasetInfo] = {
    "digits": DatasetInfo((1, 16, 16), 10, (0.3054,), (0.3183,), crop_padding=1),
    "mnist": DatasetInfo((1, 28, 28), 10, (0.1307,), (0.3081,), crop_padding=2),
    "fashion_mnist": DatasetInfo((1, 28, 28), 10, (0.286,), (0.353,), crop_padding=2, flip=True),
    "kmnist": DatasetInfo((1, 28, 28), 10, (0.1904,), (0.3475,)),
    "cifar10": DatasetInfo((3, 32, 32), 10, (0.424, 0.415, 0.384), (0.283, 0.278, 0.284), crop_padding=4, flip=True),
    "cifar100": DatasetInfo((3, 32, 32), 100, (0.438, 0.418, 0.377), (0.300, 0.287, 0.294), crop_padding=4, flip=True),
    "svhn": DatasetInfo((3, 32, 32), 10, (0.431, 0.430, 0.446), (0.197, 0.198, 0.199)),
    "stl10": DatasetInfo((3, 96, 96), 10, (0.447, 0.440, 0.407), (0.260, 0.257, 0.271)),
    # Channel statistics of ImageNet, the usual choice for photographs.
    "image_folder": DatasetInfo(None, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), flip=True),
    "synthetic": DatasetInfo((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_padding=4, flip=True),
}


def stem_stride(side: int) -> int:
    """Stride of the first convolution: images larger than 64 pixels get a 7x7 stem of stride 2."""
    return 2 if side > 64 else 1


def check_fits(model: str, shape: tuple[int, int, int]) -> None:
    """Raise ConfigError if images of `shape` (channels, height, width) are too small for the pools of `model`."""
    _, height, width = shape
    if model == FASTNET and min(height, width) < _FASTNET_SIDE:
        raise ConfigError(
            f"images of {height}x{width} pixels are too small for {model}, which needs at least {_FASTNET_SIDE}x"
            f"{_FASTNET_SIDE}; choose mlp or vgg6a, or larger images"
        )
    side, pools = min(height, width), VGG_PLANS.get(model, ()).count(POOL)
    need = 2**pools
    if side // stem_stride(max(height, width)) < need:
        raise ConfigError(
            f"images of {height}x{width} pixels are too small for {model}, whose {pools} poolings need at least "
            f"{need}x{need}; choose a network with fewer poolings, such as vgg6a or mlp, or larger images"
        )
