"""The images that experiments read: looked for, or fetched, before hours of training."""

from __future__ import annotations

from pipeline.config.schema import DataConfig
from pipeline.data.named_sets import load_images

__all__ = ["DATASETS", "look_for_images"]

DATASETS = ("cifar10", "fashion_mnist")


def look_for_images(data_dir: str, *, download: bool) -> None:
    """Read all data sets once, fetching what is missing where `download` says so.

    Raises DataError that names the one which is missing, damaged or not to be had.
    """
    for dataset in DATASETS:
        load_images(DataConfig(dataset=dataset, data_dir=data_dir, download=download))
