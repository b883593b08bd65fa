"""A user's block, tried out on a copy before training: whether it trains, its shapes, how it treats its input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, first_line, out_of_memory
from pipeline.network.blocks import Block, canonical
from pipeline.network.buffers import Buffers
from pipeline.network.copies import copied
from pipeline.network.flops import FlopCounter
from pipeline.network.formats import lay_out
from pipeline.network.manners import Manners
from pipeline.network.misfit import misfit
from pipeline.seeding import (
    HostGenerators,
    host_generators_kept,
    keyed_generator,
    seed_default_generator,
    seed_host_generators,
)

__all__ = ["SIZES", "Trial", "try_out"]

SIZES = (2, 3)  # of a batch: what a sample's shape says must not depend on it
_TRIES = 8  # of the gradients: layers may be left out at random, as in stochastic depth


@dataclass(frozen=True)
class Trial:
    """What came of it: shapes of one sample, multiply-accumulates of its forward."""

    features: tuple[int, ...]
    outputs: tuple[int, ...]
    macs: int
    manners: Manners


def try_out(
    block: Block,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    *,
    single: bool = False,
    output: bool = False,
) -> Trial:
    """Let copies of a block compute, learn and evaluate as in training, maps channels last if it takes them so.

    Numbers are from a normal distribution, or from 0 to 1 if it does not take those.

    Args:
        block: is left as it was.
        shape: of one sample.
        device, dtype: of the computation; mixed precision where the dtype is a half one.
        name: of the block, for people.
        single: whether a batch of one sample is evaluated, too.
        output: whether the block gives the class scores, whose number format is the loss's business.

    Raises ConfigError if it cannot be trained, whatever it raises itself.
    """
    failures = list[ConfigError]()
    for unit, last in itertools.product((False, True), (True, False)):
        trial = _Trial(block, shape, device, dtype, name, Manners(last, unit=unit), single, output)
        try:
            return trial.run()
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            failures.append(misfit(name, shape, error, trial.tried))
            failures[-1].__cause__ = error
            if out_of_memory(error):
                break
    raise failures[:2][-1]  # the second is in torch's own memory format


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
        single: bool,
        output: bool,
    ) -> None:
        self.given, self.shape, self.device, self.dtype, self.name = block, shape, device, dtype, name
        self.manners, self.single, self.output = manners, single, output
        self.tried = ""  # last, for people
        self.draws_in_backward = any(map(_has_hooks, block.parameters()))  # which a copy has not
        self.learns_in_hand_on = False

    def run(self) -> Trial:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), host_generators_kept(of_torch=False):
            seed_host_generators("trial")
            seed_default_generator(self.device, "trial")
            return self._run()

    def _run(self) -> Trial:
        self.block = self._copy()
        before, drawn = _sizes(self.block), self._generators()
        self.block.train()
        (features, outputs), macs = self._watch(SIZES[0])
        self._compare((features, outputs), self._watch(SIZES[1])[0], f"in batches of {SIZES[1]}")
        self._learn()
        trained, buffers = self._generators(), Buffers(self.block)
        self.block.eval()
        self._compare((features, outputs), self._watch(SIZES[0])[0], "in evaluation")
        if self.single:
            self._compare((features, outputs), self._watch(1)[0], "in evaluation in batches of 1")
        self._check_kept(before)
        evaluated = self._generators()
        manners = replace(
            self.manners,
            draws_on_host=drawn[0] != evaluated[0],
            draws_in_evaluation=trained != evaluated,
            draws_in_backward=self.draws_in_backward,
            writes_in_evaluation=buffers.changed(),
            learns_in_hand_on=self.learns_in_hand_on,
        )
        return Trial(features, outputs, macs, manners)

    def _generators(self) -> tuple[HostGenerators, bytes]:
        """States of those of the host that are not the device's, and of the device's."""
        on_gpu = self.device.type == "cuda"
        own = torch.cuda.get_rng_state(self.device) if on_gpu else torch.random.get_rng_state()
        return HostGenerators.now(of_torch=on_gpu), own.numpy().tobytes()

    def _copy(self) -> Block:
        try:
            block = copied(self.given).to(self.device)
        except Exception as error:
            raise ConfigError(
                f"{self.name} cannot be copied, which trying it out needs ({type(error).__name__}: "
                f"{first_line(error)}); give what it holds a __deepcopy__, or leave it out"
            ) from error
        lay_out(block, self.manners.channels_last)
        return block

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

    def _learn(self) -> None:
        """Forward and backward, without the gradient of the input and with it; some weight must get one.

        What a block keeps of one batch must not harm the next.
        """
        plainly = self._weights_get_gradients(of_input=False)
        if not self._weights_get_gradients(of_input=True):
            raise ConfigError(
                f"{self.name} gives none of its weights a gradient, so that they cannot learn; let its result depend "
                "on them without .detach(), .data or torch.no_grad()"
            )
        self.manners = replace(self.manners, wants_gradient=not plainly)

    def _weights_get_gradients(self, *, of_input: bool) -> bool:
        theirs = list(self.given.parameters())  # what a user's function keeps of the block is the original's
        own, kept = list(self.block.parameters()), [parameter.grad for parameter in theirs]
        try:
            for parameter in (*own, *theirs):
                parameter.grad = None
            for _ in range(_TRIES):
                self._backward(of_input)
                if any(parameter.grad is not None for parameter in (*own, *theirs)):
                    return True
            return False
        finally:
            for parameter, gradient in zip(theirs, kept, strict=True):
                parameter.grad = gradient

    def _backward(self, of_input: bool) -> None:
        x = self._batch(SIZES[0]).requires_grad_(of_input)
        with torch.enable_grad(), self._autocast():
            h = self.block.features(self.manners.given(x))
            out = self.block.hand_on(self.manners.handed(h))
            if h.requires_grad:
                self._check_own(h, out, x)
                self.learns_in_hand_on |= {*map(id, _leaves(out))} > {*map(id, _leaves(h))}
                before = self._generators()
                (h.float().square().mean() + out.float().mean()).backward()
                self.draws_in_backward |= self._generators() != before
            elif of_input:
                raise ConfigError(self._without_gradient())

    def _check_own(self, h: Tensor, out: Tensor, x: Tensor) -> None:
        """What learns must be known, to be optimized, sent and saved."""
        known = {id(each) for each in (x, *self.block.parameters(), *self.given.parameters())}
        unknown = next((leaf for leaf in _leaves(h, out) if id(leaf) not in known), None)
        if unknown is not None:
            raise ConfigError(
                f"{self.name} computes with weights of shape {list(unknown.shape)} that are none of its parameters; "
                "register them there, such as by an nn.ModuleList in place of a list; blocks share none"
            )

    def _without_gradient(self) -> str:
        return (
            f"{self.name} gives a result without gradient, so that its weights cannot learn; leave out what "
            "detaches it, such as .detach(), .data, torch.no_grad() or torch.inference_mode()"
        )

    def _batch(self, samples: int) -> Tensor:
        self.tried = f"{samples} sample{'s' * (samples > 1)} in {self._mode}"
        x = self.manners.made_up(samples, *self.shape, generator=keyed_generator("trial", samples))
        return canonical(x.to(self.device, self.dtype), self.manners.channels_last)

    @property
    def _mode(self) -> str:
        return "training" if self.block.training else "evaluation"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self._mixed, cache_enabled=False)

    @property
    def _mixed(self) -> bool:
        return self.dtype.itemsize < 4

    def _tensor(self, out: Any, samples: int) -> Tensor:
        mode = f"in {self._mode}"
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"{self.name} gives a {type(out).__name__} {mode} where a tensor is wanted; wrap it in a module that "
                "gives the tensor alone"
            )
        if not out.is_floating_point():
            raise ConfigError(f"{self.name} gives {_named(out.dtype)} {mode}, but gradients need floating point")
        if out.is_inference():
            raise ConfigError(self._without_gradient())
        if not self.output and (out.dtype == torch.float64 or not (self._mixed or out.dtype == self.dtype)):
            raise ConfigError(
                f"{self.name} gives {_named(out.dtype)} {mode} where {_named(self.dtype)} is wanted; end it with "
                ".float()"
            )
        if out.ndim < 2 or len(out) != samples:
            raise ConfigError(
                f"{self.name} gives a tensor of shape {list(out.shape)} for a batch of {samples} "
                f"sample{'s' * (samples > 1)} {mode}; let it keep the batch apart, as [{samples}, ...]"
            )
        return out

    def _compare(self, wanted: tuple[tuple[int, ...], ...], found: tuple[tuple[int, ...], ...], when: str) -> None:
        for one, other in zip(wanted, found, strict=True):
            if one != other:
                raise ConfigError(
                    f"{self.name} gives samples of shape {list(one)} in training in batches of {SIZES[0]}, but "
                    f"{list(other)} {when}; let both be the same"
                )

    def _check_kept(self, before: dict[str, list[int]]) -> None:
        """What is kept with the weights is sent and saved by its size at start."""
        for name, size in _sizes(self.block).items():
            if before.get(name) != size:
                was = f"of shape {size}{f', before it {before[name]}' if name in before else ''}"
                raise ConfigError(
                    f"the first forward of {self.name} makes {name} {was}, but what is kept with the weights must be "
                    "there from the start; make it when the module is built, or run a batch through the network first"
                )


def _leaves(*results: Tensor) -> Iterator[Tensor]:
    """The tensors that get gradients of these."""
    nodes, seen = [result.grad_fn for result in results], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of autograd's AccumulateGrad
        if isinstance(leaf, Tensor):
            yield leaf
        nodes += [before for before, _ in node.next_functions]


def _has_hooks(parameter: Tensor) -> bool:
    """Whether something of a user's happens to its gradient."""
    return any(getattr(parameter, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks"))


def _sizes(block: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in block.state_dict().items()}


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _written_to(x: Tensor) -> Iterator[list[bool]]:
    """Whether the tensor has been changed inside, in the list that is given."""
    found: list[bool] = []
    version, before = x._version, x.clone()
    yield found
    found.append(x._version != version or not torch.equal(x, before))
