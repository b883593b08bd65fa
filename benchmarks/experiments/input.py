"""How many images a second one core can prepare: the first stage must not wait for its input."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.harness.figures import Figure, summarize
from benchmarks.harness.report import Result, Row, at_least, bars
from pipeline.config.catalog import DATASETS
from pipeline.config.schema import DataConfig
from pipeline.data.augment import Augmentation, augment, normalize
from pipeline.data.batches import Batches
from pipeline.seeding import keyed_generator

__all__ = ["run"]

BATCH = 128
WANTED = 30_000  # images a second
_WARM_UP = 20  # batches
_STEPS = {False: 200, True: 20}  # batches per repetition, by `quick`
_REPETITIONS = {False: 15, True: 5}
_AUGMENTATIONS = {
    "crop, flip, cutout": Augmentation(crop_padding=4, flip=True, cutout=8),
    "crop, flip": Augmentation(crop_padding=4, flip=True),
    "crop": Augmentation(crop_padding=4),
    "cutout": Augmentation(cutout=8),
}


def run(quick: bool) -> Result:
    """Measure batches of 128 images of 32x32x3, CIFAR-10's augmentation with a hole of 8 pixels, on one thread."""
    with _one_thread():
        rows = [
            *(_row(name, _augmenting(how), quick) for name, how in _AUGMENTATIONS.items()),
            _row("normalise only", _normalizing(), quick),
            _row("whole path, order to batch", _batching(), quick),
        ]
    name = "augmented images a second, one thread"
    targets = [at_least(name, WANTED, rows[0].figures["images_per_second"])]
    return Result(rows, targets, bars("images_per_second", rows))


def _row(label: str, step: Callable[[], object], quick: bool) -> Row:
    settings = {"batch": BATCH, "shape": [32, 32, 3], "threads": 1, "batches_per_repetition": _STEPS[quick]}
    return Row(label, settings, {"images_per_second": _rate(step, _STEPS[quick], _REPETITIONS[quick])})


def _rate(step: Callable[[], object], steps: int, repetitions: int) -> Figure:
    """Images a second of a step that prepares one batch."""
    for _ in range(_WARM_UP):
        step()
    rates = []
    for _ in range(repetitions):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        rates.append(BATCH * steps / (time.perf_counter() - start))
    return summarize(rates)


def _augmenting(how: Augmentation) -> Callable[[], object]:
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8, generator=keyed_generator("images"))
    info, generator = DATASETS["cifar10"], keyed_generator("augment")
    return lambda: augment(images, how, info.mean, info.std, generator)


def _normalizing() -> Callable[[], object]:
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8, generator=keyed_generator("images"))
    info = DATASETS["cifar10"]
    return lambda: normalize(images, info.mean, info.std)


def _batching() -> Callable[[], object]:
    """What stage 0 asks for: the next batch of an endless run."""
    data = DataConfig(dataset="synthetic", train_limit=32 * BATCH, test_limit=1, cutout=8)
    batches = Batches.from_config(data, seed=1, batch_size=BATCH, device=torch.device("cpu"))

    def endless() -> Iterator[object]:
        epoch = 0
        while True:
            epoch += 1
            yield from batches.train(epoch)

    return endless().__next__


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
