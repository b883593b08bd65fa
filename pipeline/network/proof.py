"""Whether pieces of a module, one after the other, compute what it does: shown by a run."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pipeline.network.copies import copied
from pipeline.seeding import host_generators_kept, seed_default_generator, seed_host_generators

__all__ = ["same_by_run"]

_RUNS = ((False, (2,)), (True, (3, 2)))  # training or not, and the samples of batches, one after the other
_MOST = 256**2  # numbers of a channel


def same_by_run(module: nn.Module, pieces: Sequence[nn.Module]) -> bool | None:
    """Whether the pieces compute what the module does, to the bit, in evaluation and in training.

    Run on copies, with the same random numbers, in batches of two sizes. None where that cannot be said: no batch is
    found that the module takes, or it does not compute the same twice.
    """
    for shape in _shapes_to_try(module):
        wanted = _computed(module, shape)
        if isinstance(wanted[0], Tensor):
            if _same(wanted, _computed(nn.Sequential(*pieces), shape)):
                return True
            return False if _same(wanted, _computed(module, shape)) else None
    return None


def _computed(module: nn.Module, shape: tuple[int, ...]) -> list[object]:
    """What a copy makes of the batch of each run; None for what it does not take."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    devices, results = [device] if device.type == "cuda" else [], list[object]()
    kept = host_generators_kept(of_torch=False)
    with _uncompiled(), torch.no_grad(), torch.random.fork_rng(devices=devices), kept:
        for training, sizes in _RUNS:
            seed_host_generators("proof")
            seed_default_generator(device, "proof")
            found = list[object]()
            with contextlib.suppress(Exception):  # whatever the user's code raises
                alone = copied(module).train(training)
                for samples in sizes:
                    found.append(alone(torch.randn(samples, *shape, device=device)))
            results += [*found, None, None][: len(sizes)]
    return results


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """Lets what is to be compiled run as it is: compiling takes long, and rounds otherwise."""
    if "torch._dynamo" not in sys.modules:  # whose import takes long, too: nothing is to be compiled
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def _same(wanted: Sequence[object], found: Sequence[object]) -> bool:
    """Whether results are equal; what is no tensor, which no block hands on, does not count."""
    pairs = [(one, other) for one, other in zip(wanted, found, strict=True) if isinstance(one, Tensor)]
    return all(isinstance(other, Tensor) and torch.equal(one, other) for one, other in pairs)


def _shapes_to_try(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Of a sample that the first layer of a network takes."""
    given = getattr(module, "image_size", None)
    sides = [*([given] if isinstance(given, int) else []), 64, 32, 28, 224, 16, 8, 96, 128]
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            axes = len(layer.kernel_size)
            fitting = [side for side in sides if side**axes <= _MOST]
            yield from ((layer.in_channels, *(side,) * axes) for side in fitting)
        elif isinstance(layer, nn.Linear):
            features = layer.in_features
            yield (features,)
            yield (5, features)
            for channels in (1, 3):
                side = math.isqrt(features // channels)
                if side * side * channels == features:
                    yield (channels, side, side)
        elif isinstance(layer, nn.RNNBase):
            yield (5, layer.input_size)
        else:
            continue
        return
