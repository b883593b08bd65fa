"""Which images are learned, where they lie, and how they are altered for training."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.catalog import DATASETS
from pipeline.config.fields import Bounds, check_fields, option
from pipeline.config.paths import expanded
from pipeline.errors import ConfigError

__all__ = ["DataConfig"]


_SAMPLES = "no data set has more"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    dataset: str = option("digits", "images", tuple(DATASETS))
    data_dir: str = option("./data", "root folder in torchvision's layout", metavar="DIR")
    download: bool = option(False, "let torchvision fetch what is missing")
    train_limit: int | None = option(
        None, "first N training samples only", Bounds(1, 10**12, why=_SAMPLES), shown="all", given="at least 2"
    )
    test_limit: int | None = option(None, "first N test samples only", Bounds(1, 10**12, why=_SAMPLES), shown="all")
    held_out: float = option(
        0.0,
        "share of the training samples to be evaluated in place of the test set",
        Bounds(0.0),
        given="0 up to below 1",
        doc="share of the training samples that is evaluated in place of the test set, and not learned from, so that "
        "settings can be chosen by it",
    )
    cutout: int = option(
        0, "side of the hole in training images in pixels, 0 is off", Bounds(0, 1_000_000, why="no image is larger")
    )
    classes_per_batch: int | None = option(
        None, "classes in each training batch", Bounds(1, 1_000_000, why="no data set has more"), shown="as they come"
    )
    classes_per_batch_until: int | None = option(
        None, "epochs for which --classes-per-batch holds", Bounds(1, 1_000_000, why="no run has more"), shown="all"
    )

    def __post_init__(self) -> None:
        check_fields(self, DataConfig)
        if self.classes_per_batch_until is not None and self.classes_per_batch is None:
            raise ConfigError(f"--classes-per-batch-until {self.classes_per_batch_until} needs --classes-per-batch")
        known = DATASETS[self.dataset].classes
        if known is not None and self.classes_per_batch is not None and self.classes_per_batch > known:
            raise ConfigError(
                f"--classes-per-batch is {self.classes_per_batch}, but {self.dataset} has {known} classes; give 1 to "
                f"{known}"
            )
        object.__setattr__(self, "data_dir", _storable(expanded("--data-dir", self.data_dir)))
        shape = DATASETS[self.dataset].shape
        if shape is not None and self.cutout > 2 * min(shape[1:]):
            raise ConfigError(
                f"--cutout is {self.cutout}, more than twice the side of {self.dataset}'s {shape[1]}x{shape[2]} "
                f"images; give at most {2 * min(shape[1:])}"
            )
        if self.held_out >= 1:
            raise ConfigError(f"--held-out is {self.held_out:g}; give 0 up to below 1")
        if self.held_out and self.test_limit is not None:
            raise ConfigError(
                f"--held-out {self.held_out:g} is evaluated in place of the test set, so that --test-limit "
                f"{self.test_limit} limits nothing; drop one"
            )
        if self.train_limit == 1:
            raise ConfigError("--train-limit is 1, but a batch needs at least 2 samples; give at least 2")


def _storable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"--data-dir is {path!r}, whose name is not UTF-8, so that no config.toml can hold it; rename the folder, "
            "or give a link to it"
        ) from None
    return path
