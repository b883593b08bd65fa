"""A user's block, tried out on a copy before training: whether it trains, its shapes, how it treats its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline.errors import ConfigError, first_line
from pipeline.network.blocks import Block, canonical
from pipeline.network.copies import copied
from pipeline.network.flops import FlopCounter
from pipeline.seeding import keyed_generator, seed_default_generator

__all__ = ["Manners", "Trial", "lay_out", "materialize", "try_out"]

_SIZES = (2, 3)  # of a batch: what a sample's shape says must not depend on it


@dataclass(frozen=True)
class Manners:
    """How a block treats what it is given."""

    channels_last: bool = True  # takes maps in this memory format; else they are row-major
    writes_input: bool = False
    writes_features: bool = False  # when it hands them on

    def given(self, x: Tensor) -> Tensor:
        """The input as the block wants it, its own to write to if it does."""
        x = x if self.channels_last else canonical(x, channels_last=False)
        return x.clone() if self.writes_input else x

    def handed(self, h: Tensor) -> Tensor:
        """The features for `hand_on`, likewise."""
        return h.clone() if self.writes_features else h


@dataclass(frozen=True)
class Trial:
    """What came of it: shapes of one sample, multiply-accumulates of its forward."""

    features: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    manners: Manners


def lay_out(module: nn.Module, channels_last: bool) -> None:
    """Give the weights of convolutions of maps, and buffers like them, a memory format."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=layout)


def materialize(block: Block, shape: tuple[int, ...], seed: int, index: int) -> None:
    """Let lazy layers find their sizes and draw their weights, keyed by (seed, block)."""
    if not any(map(is_lazy, (*block.parameters(), *block.buffers()))):
        return
    training = block.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed_default_generator(torch.device("cpu"), seed, "weights", index)
        block.eval()(torch.zeros(_SIZES[0], *shape))
    block.train(training)


def try_out(block: Block, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, name: str) -> Trial:
    """Let copies of a block compute, learn and evaluate as in training, maps channels last if it takes them so.

    Args:
        block: is left as it was.
        shape: of one sample.
        device, dtype: of the computation; mixed precision where the dtype is a half one.
        name: of the block, for people.

    Raises ConfigError if it cannot be trained, whatever it raises itself.
    """
    devices = [device] if device.type == "cuda" else []
    trials = (_Trial(block, shape, device, dtype, name, Manners(channels_last=last)) for last in (True, False))
    failure: Exception | None = None
    for trial in trials:
        try:
            with torch.random.fork_rng(devices=devices):
                return trial.run()
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises; of two the second, in torch's own format
            failure = error
    raise ConfigError(
        f"{name} does not take input of shape {list(shape)}: {_reason(failure)}; change the block or the one before it"
    ) from failure


def _reason(error: Exception | None) -> str:
    text = first_line(error) if error is not None else ""
    if "indices" in text and "Long" in text:
        return f"it looks up token ids, which are not supported, since what blocks take are floats ({text})"
    return f"{type(error).__name__}: {text}"


class _Trial:
    """One copy, in one memory format."""

    def __init__(
        self,
        block: Block,
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        name: str,
        manners: Manners,
    ) -> None:
        self.block = copied(block).to(device)
        lay_out(self.block, manners.channels_last)
        self.shape, self.device, self.dtype, self.name, self.manners = shape, device, dtype, name, manners

    def run(self) -> Trial:
        self.block.train()
        (features, outputs), macs = self._watch(_SIZES[0])
        self._compare((features, outputs), self._watch(_SIZES[1])[0], f"in batches of {_SIZES[1]}")
        self._learn()
        self.block.eval()
        self._compare((features, outputs), self._watch(_SIZES[0])[0], "in evaluation")
        return Trial(features, outputs, macs, self.manners)

    def _watch(self, samples: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], int]:
        """Shapes of a sample's features and of what is handed on, and arithmetic; takes note of what is written to."""
        x, counter = self._batch(samples), FlopCounter()
        with torch.no_grad(), self._autocast():
            with counter, _written_to(x) as input_written:
                h = self._tensor(self.block.features(x), samples)
            with counter, _written_to(h) as features_written:
                out = self._tensor(self.block.hand_on(h), samples)
        self.manners = Manners(
            self.manners.channels_last,
            self.manners.writes_input or any(input_written),
            self.manners.writes_features or any(features_written),
        )
        return (tuple(h.shape[1:]), tuple(out.shape[1:])), counter.flops // (2 * samples)

    def _learn(self) -> None:
        """Forward and backward, with the gradient of the input too."""
        x = self._batch(_SIZES[0]).requires_grad_()
        with torch.enable_grad(), self._autocast():
            h = self.block.features(self.manners.given(x))
            out = self.block.hand_on(self.manners.handed(h))
            if not h.requires_grad:
                raise ConfigError(
                    f"{self.name} gives a result without gradient, so that its weights cannot learn; leave out what "
                    "detaches it, such as .detach(), .data or torch.no_grad()"
                )
            (h.float().square().mean() + out.float().mean()).backward()

    def _batch(self, samples: int) -> Tensor:
        x = torch.randn(samples, *self.shape, generator=keyed_generator("trial", samples))
        return canonical(x.to(self.device, self.dtype), self.manners.channels_last)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype.itemsize < 4, cache_enabled=False)

    def _tensor(self, out: Any, samples: int) -> Tensor:
        mode = "in training" if self.block.training else "in evaluation"
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"{self.name} gives a {type(out).__name__} {mode} where a tensor is wanted; wrap it in a module that "
                "gives the tensor alone"
            )
        if not out.is_floating_point():
            raise ConfigError(
                f"{self.name} gives {str(out.dtype).removeprefix('torch.')} {mode}, but gradients need floating point"
            )
        if out.ndim < 2 or len(out) != samples:
            raise ConfigError(
                f"{self.name} gives a tensor of shape {list(out.shape)} for a batch of {samples} samples {mode}; "
                f"let it keep the batch apart, as [{samples}, ...]"
            )
        return out

    def _compare(self, wanted: tuple[tuple[int, ...], ...], found: tuple[tuple[int, ...], ...], when: str) -> None:
        for one, other in zip(wanted, found, strict=True):
            if one != other:
                raise ConfigError(
                    f"{self.name} gives samples of shape {list(one)} in training in batches of {_SIZES[0]}, but "
                    f"{list(other)} {when}; let both be the same"
                )


@contextmanager
def _written_to(x: Tensor) -> Iterator[list[bool]]:
    """Whether the tensor has been changed inside, in the list that is given."""
    found: list[bool] = []
    version, before = x._version, x.clone()
    yield found
    found.append(x._version != version or not torch.equal(x, before))
