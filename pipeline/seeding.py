"""Keyed random numbers: every draw has a key, so that it never depends on which process draws, or when."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_seed", "keyed_generator", "others_kept", "seed_default_generator"]


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as `(seed, "dropout", block, step)`; distinct keys give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own on `device`, seeded by the key."""
    return torch.Generator(device).manual_seed(derive_seed(*key))


def seed_default_generator(device: torch.device, *key: int | str) -> None:
    """Seed the generator that modules on `device` draw from, such as `nn.Dropout`; no host synchronisation."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(derive_seed(*key))
    else:
        torch.default_generator.manual_seed(derive_seed(*key))


@contextmanager
def others_kept() -> Iterator[Callable[[], bool]]:
    """Python's and numpy's generators, which nothing here is drawn from, afterwards as they were before.

    Yields a function that tells whether they have been drawn from since.
    """
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002  the one that modules draw from

    def drawn() -> bool:
        now = np.random.get_state()  # noqa: NPY002
        return random.getstate() != python or repr(now) != repr(numbers)

    try:
        yield drawn
    finally:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
