"""Keyed random numbers: every draw has a key, so that it never depends on which process draws, or when."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

__all__ = [
    "HostGenerators",
    "derive_seed",
    "host_generators_kept",
    "keyed_generator",
    "seed_default_generator",
    "seed_host_generators",
]


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


def seed_host_generators(*key: int | str) -> None:
    """Seed the global generators of Python, of NumPy, and of torch on the CPU, from which some modules draw."""
    seed = derive_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the one that modules draw from
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class HostGenerators:
    """States of the global generators of Python, of NumPy, and of torch on the CPU."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    host: bytes

    @classmethod
    def now(cls, *, of_torch: bool = True) -> Self:
        """As they are, torch's only if asked for."""
        state: Any = np.random.get_state()  # noqa: NPY002
        kind, keys, *rest = state
        own = torch.random.get_rng_state().numpy().tobytes() if of_torch else b""
        return cls(random.getstate(), (kind, keys.tobytes(), *rest), own)

    def restore(self) -> None:
        """Set them back."""
        random.setstate(self.python)
        kind, keys, *rest = self.numpy
        np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        if self.host:
            torch.random.set_rng_state(torch.frombuffer(bytearray(self.host), dtype=torch.uint8))


@contextmanager
def host_generators_kept(*, of_torch: bool = True) -> Iterator[None]:
    """Leave these generators, torch's only if asked for, as they were before, whatever is drawn inside."""
    before = HostGenerators.now(of_torch=of_torch)
    try:
        yield
    finally:
        before.restore()
