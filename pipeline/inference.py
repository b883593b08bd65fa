"""A trained network without the machinery of training: no process group, and local classifiers only if asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn

from pipeline.config.fields import several
from pipeline.config.method import Method
from pipeline.config.paths import expanded
from pipeline.config.toml import read_method, read_model
from pipeline.errors import ConfigError, DataError
from pipeline.learning.exits import EarlyExits, create_classifiers
from pipeline.network.sequential import CUSTOM, given_network
from pipeline.network.spec import Network, build_block, infer_shapes
from pipeline.network.zoo import named_network
from pipeline.runtime.checkpoint import digest
from pipeline.runtime.weights_file import Weights, read_weights
from pipeline.settings import plain_settings
from pipeline.text import brief, printable

__all__ = ["load_model"]


@overload
def load_model(
    run_folder: str | Path, blocks: Sequence[nn.Module] | None = None, *, exits: Literal[False] = False
) -> nn.Sequential: ...


@overload
def load_model(
    run_folder: str | Path, blocks: Sequence[nn.Module] | None = None, *, exits: Literal[True]
) -> EarlyExits: ...


@plain_settings()
def load_model(
    run_folder: str | Path, blocks: Sequence[nn.Module] | None = None, *, exits: bool = False
) -> nn.Sequential | EarlyExits:
    """The trained network of a run folder as an ordinary module in evaluation mode: images in, class scores out.

    `blocks` is the network where it was a user's own, filled in place; a named network is built anew. With `exits` the
    blocks' own classifiers come with it: class scores of every exit out, and answers at the first that is sure.

    Raises:
        DataError: the folder holds no finished run, or weights that do not fit the network.
        ConfigError: the network was a user's own and `blocks` is missing.
    """
    path = Path(expanded("run_folder", run_folder))
    if path.is_file():
        raise DataError(f"run_folder is {printable(str(path))}, a file; give the folder of a run that has ended")
    weights = read_weights(path / "model.safetensors")
    if blocks is None and weights.known.get("model", CUSTOM) == CUSTOM:
        raise ConfigError(f"the network of {path} was your own; pass it as `blocks`")
    if blocks is not None:
        network = given_network(blocks)
        model = nn.Sequential(*(build_block(spec, 0, index) for index, spec in enumerate(network)))
    else:
        config, loss = read_model(str(path / "config.toml"))
        network = named_network(config, *weights.sizes(str(path / "model.safetensors")), loss)
        with torch.device("meta"):  # it takes memory once it is known to fit
            model = nn.Sequential(*(spec.build() for spec in network))
    _fill(model, weights.tensors, str(path), "the network", "pass the one trained", assign=blocks is None)
    return _with_exits(path, weights, network, model).eval() if exits else model.eval()


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str, what: str, remedy: str, assign: bool) -> None:
    """Give a module the weights of `where`. Raises DataError where they are not those of `what`, or infinite."""
    state = module.state_dict()
    for name, tensor in tensors.items():
        if name in state and state[name].dtype != tensor.dtype:
            raise DataError(f"the weights of {where} do not fit {what} ({brief(name)} is {tensor.dtype}); {remedy}")
    try:
        module.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        raise DataError(f"the weights of {where} do not fit {what} ({brief(str(error))}); {remedy}") from error
    for name, parameter in module.named_parameters():  # in a buffer an infinity may be a mask
        if not bool(parameter.isfinite().all()):
            raise DataError(
                f"{where} holds a weight that is infinite, in {brief(name)}; give the weights of a run that has not "
                "diverged"
            )


def _with_exits(path: Path, weights: Weights, network: Network, model: nn.Sequential) -> EarlyExits:
    """A network with its local classifiers, which have a file of their own where the loss has any."""
    method = read_method(str(path / "config.toml"))
    _check_segments(path, method, len(network))
    custom = any(spec.given is not None for spec in network)
    shape, classes = weights.sizes(str(path / "model.safetensors"), axes=None if custom else 3)
    shapes = infer_shapes(network, shape)
    classifiers = create_classifiers(method, shapes, classes)
    module = EarlyExits(model, classifiers, shapes, [spec.name for spec in network], classes)
    if classifiers:
        file = path / "exits.safetensors"
        found = _read_exits(file, weights)
        _fill(module.classifiers, found, str(file), "the run", "give the folder as its run has left it", assign=True)
    return module


def _check_segments(path: Path, method: Method, blocks: int) -> None:
    """Raise ConfigError for segments of another network."""
    if method.segments is None:
        return
    counts = several(method.segments)
    fits = sum(counts) == blocks if isinstance(method.segments, tuple) else counts[0] <= blocks
    if not fits:
        raise ConfigError(
            f"{path / 'config.toml'} has segments {brief(method.segments_text)} for a network of {blocks} blocks; "
            "give the folder as its run has left it"
        )


def _read_exits(file: Path, weights: Weights) -> Mapping[str, Tensor]:
    """The local classifiers' tensors. Raises DataError where they are missing, or were trained with other weights."""
    if not file.exists() and not file.is_symlink():
        raise DataError(
            f"{file.parent} has no {file.name}, which versions before this one did not write; go on with --resume "
            f"{file.parent}, or pipeline.train(..., resume=...), which writes it, or train it anew"
        )
    found = read_weights(file)
    if found.known.get("weights_sha256") != digest(weights.tensors):
        raise DataError(
            f"{file} is not of the weights beside it; give the folder as its run has left it, or go on with --resume "
            f"{file.parent}, which writes both"
        )
    return found.tensors
