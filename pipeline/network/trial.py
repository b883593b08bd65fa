"""A user's block, tried out on a copy before training: whether it trains, its shapes, how it treats its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pipeline.errors import ConfigError, first_line
from pipeline.network.blocks import Block, canonical
from pipeline.network.copies import copied
from pipeline.network.flops import FlopCounter
from pipeline.network.formats import lay_out
from pipeline.seeding import HostGenerators, keyed_generator, seed_default_generator

__all__ = ["Manners", "Trial", "materialize", "try_out"]

_SIZES = (2, 3)  # of a batch: what a sample's shape says must not depend on it


@dataclass(frozen=True)
class Manners:
    """How a block treats what it is given."""

    channels_last: bool = True  # takes maps in this memory format; else they are row-major
    writes_input: bool = False
    writes_features: bool = False  # when it hands them on
    wants_gradient: bool = False  # of its input: without, its weights get none either
    draws_on_host: bool = False  # from generators of the host that are not the device's
    draws_in_evaluation: bool = False

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


def materialize(block: Block, shape: tuple[int, ...], seed: int, index: int) -> None:
    """Let lazy layers find their sizes and draw their weights, keyed by (seed, block)."""
    if not any(map(is_lazy, (*block.parameters(), *block.buffers()))):
        return
    training = block.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seed_default_generator(torch.device("cpu"), seed, "weights", index)
        block.eval()(torch.zeros(_SIZES[0], *shape))
    block.train(training)


def try_out(
    block: Block,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    *,
    hidden: bool = True,
) -> Trial:
    """Let copies of a block compute, learn and evaluate as in training, maps channels last if it takes them so.

    Args:
        block: is left as it was.
        shape: of one sample.
        device, dtype: of the computation; mixed precision where the dtype is a half one.
        name: of the block, for people.
        hidden: whether another block follows.

    Raises ConfigError if it cannot be trained, whatever it raises itself.
    """
    devices, generators = [device] if device.type == "cuda" else [], HostGenerators.now(of_torch=False)
    failure: Exception | None = None
    for last in (True, False):
        try:
            with torch.random.fork_rng(devices=devices):
                return _Trial(block, shape, device, dtype, name, hidden, Manners(channels_last=last)).run()
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises; of two the second, in torch's own format
            failure = error
        finally:
            generators.restore()
    raise ConfigError(
        f"{name} does not take input of shape {list(shape)}: {_reason(failure)}; change the block or the one before it"
    ) from failure


def _reason(error: Exception | None) -> str:
    text = first_line(error) if error is not None else ""
    if "indices" in text and "Long" in text:
        return f"it looks up token ids, which are not supported, since what blocks take are floats ({text})"
    if "through the graph a second time" in text:
        return "it computes with what it kept of the batch before, as with a hidden state; detach what it keeps"
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
        hidden: bool,
        manners: Manners,
    ) -> None:
        self.block = self._copy(block, name).to(device)
        lay_out(self.block, manners.channels_last)
        self.shape, self.device, self.dtype, self.name, self.manners = shape, device, dtype, name, manners
        self.hidden = hidden

    @staticmethod
    def _copy(block: Block, name: str) -> Block:
        try:
            return copied(block)
        except Exception as error:  # such as of a lock or an open file
            raise ConfigError(
                f"{name} cannot be copied, to be tried out before training ({type(error).__name__}: "
                f"{first_line(error)}); keep what cannot be copied outside of it"
            ) from error

    def run(self) -> Trial:
        drawn = self._generators()
        self.block.train()
        (features, outputs), macs = self._watch(_SIZES[0])
        self._compare((features, outputs), self._watch(_SIZES[1])[0], f"in batches of {_SIZES[1]}")
        self._learn_twice()
        trained = self._generators()
        self.block.eval()
        self._compare((features, outputs), self._watch(_SIZES[0])[0], "in evaluation")
        evaluated = self._generators()
        manners = replace(
            self.manners,
            draws_on_host=drawn[0] != evaluated[0],
            draws_in_evaluation=trained != evaluated,
        )
        return Trial(features, outputs, macs, manners)

    def _generators(self) -> tuple[HostGenerators, bytes]:
        """States of those of the host that are not the device's, and of the device's."""
        on_gpu = self.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.device) if on_gpu else torch.random.get_rng_state()
        return HostGenerators.now(of_torch=on_gpu), own.numpy().tobytes()

    def _watch(self, samples: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], int]:
        """Shapes of a sample's features and of what is handed on, and arithmetic; takes note of what is written to."""
        x, counter = self._batch(samples), FlopCounter()
        with torch.no_grad(), self._autocast():
            with counter, _written_to(x) as input_written:
                h = self._tensor(self.block.features(x), samples)
            with counter, _written_to(h) as features_written:
                out = self._tensor(self.block.hand_on(h), samples)
        self.manners = replace(
            self.manners,
            writes_input=self.manners.writes_input or any(input_written),
            writes_features=self.manners.writes_features or any(features_written),
        )
        return (tuple(h.shape[1:]), tuple(out.shape[1:])), counter.flops // (2 * samples)

    def _learn_twice(self) -> None:
        """Without the gradient of the input and with it; what a block keeps of one batch must not harm the next."""
        for with_gradient in (False, True):
            learns = self._learn(with_gradient)
            if not learns and with_gradient:
                raise ConfigError(
                    f"{self.name} gives a result without gradient, so that its weights cannot learn; leave out what "
                    "detaches it, such as .detach(), .data or torch.no_grad()"
                )
            self.manners = replace(self.manners, wants_gradient=self.manners.wants_gradient or not learns)

    def _learn(self, with_gradient: bool) -> bool:
        """Forward and backward; whether a weight has got a gradient."""
        parameters = list(self.block.parameters())
        for parameter in parameters:
            parameter.grad = None
        x = self._batch(_SIZES[0]).requires_grad_(with_gradient)
        with torch.enable_grad(), self._autocast():
            h = self.block.features(self.manners.given(x))
            out = self.block.hand_on(self.manners.handed(h))
            if h.requires_grad:
                (h.float().square().mean() + out.float().mean()).backward()
        return h.requires_grad and any(parameter.grad is not None for parameter in parameters)

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
        if self.hidden and out.dtype not in (torch.float32, self.dtype):
            raise ConfigError(
                f"{self.name} gives {str(out.dtype).removeprefix('torch.')} {mode}, but the weights that follow are "
                "float32; let it give that, as by .float()"
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
