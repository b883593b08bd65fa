"""What may be asked of an evaluation of a finished run, checked. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.fields import Bounds
from pipeline.config.paths import expanded
from pipeline.errors import ConfigError
from pipeline.text import brief, shown

__all__ = ["THRESHOLDS", "Evaluation"]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)

_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which run, on which images, and what is told of it.

    Attributes:
        run: its folder.
        data_dir, test_limit, batch_size: in place of the run's own, where given.
        download: let torchvision fetch what is missing.
        device: auto, cpu or cuda.
        thresholds: probabilities from which samples leave early, rising.
        confusion: whether to count which classes are taken for which.
        output: folder for the results; None is the run's.
        command: that asked for it.
    """

    run: str
    data_dir: str | None = None
    download: bool = False
    test_limit: int | None = None
    batch_size: int | None = None
    device: str = "auto"
    thresholds: Sequence[float] = THRESHOLDS
    confusion: bool = False
    output: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for name, flag in (("run", "RUN"), ("data_dir", "--data-dir"), ("output", "--output")):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, expanded(flag, getattr(self, name)))
        if self.test_limit is not None:
            Bounds(1, 10**12, why="no data set has more").check("test_limit", self.test_limit)
        if self.batch_size is not None:
            Bounds(1, 10_000_000, why="more take too much memory").check("batch_size", self.batch_size)
        if self.device not in _DEVICES:
            raise ConfigError(f"--device is {brief(self.device)}; choose one of {', '.join(_DEVICES)}")
        for threshold in self.thresholds:
            if not 0 <= threshold <= 1:
                raise ConfigError(f"--thresholds has {shown(threshold)}; give probabilities, from 0 to 1")
        object.__setattr__(self, "thresholds", tuple(sorted(set(self.thresholds))))
