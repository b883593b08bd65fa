"""A trained network without the machinery of training: no process group, no local heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.config.paths import expanded
from pipeline.config.toml import read_model
from pipeline.errors import ConfigError, DataError
from pipeline.network.sequential import CUSTOM, given_network
from pipeline.network.spec import build_block
from pipeline.network.zoo import named_network
from pipeline.runtime.weights_file import read_weights
from pipeline.settings import plain_settings
from pipeline.text import brief

__all__ = ["load_model"]


@plain_settings()
def load_model(run_folder: str | Path, blocks: Sequence[nn.Module] | None = None) -> nn.Sequential:
    """The trained network of a run folder as an ordinary module in evaluation mode: images in, class scores out.

    `blocks` is the network where it was a user's own, filled in place; a named network is built anew.

    Raises:
        DataError: the folder holds no finished run, or weights that do not fit the network.
        ConfigError: the network was a user's own and `blocks` is missing.
    """
    path = Path(expanded("run_folder", run_folder))
    weights = read_weights(path / "model.safetensors")
    if blocks is None and weights.known.get("model", CUSTOM) == CUSTOM:
        raise ConfigError(f"the network of {path} was your own; pass it as `blocks`")
    if blocks is not None:
        model = nn.Sequential(*(build_block(spec, 0, index) for index, spec in enumerate(given_network(blocks))))
    else:
        config, loss = read_model(str(path / "config.toml"))
        network = named_network(config, *weights.sizes(str(path / "model.safetensors")), loss)
        with torch.device("meta"):  # it takes memory once it is known to fit
            model = nn.Sequential(*(spec.build() for spec in network))
    for name, tensor in weights.tensors.items():
        wanted = model.state_dict().get(name)
        if wanted is not None and wanted.dtype != tensor.dtype:
            raise DataError(
                f"the weights of {path} do not fit the network ({brief(name)} is {tensor.dtype}); pass the one trained"
            )
    try:
        model.load_state_dict(weights.tensors, assign=blocks is None)
    except RuntimeError as error:
        raise DataError(
            f"the weights of {path} do not fit the network ({brief(str(error))}); pass the one trained"
        ) from error
    for name, parameter in model.named_parameters():  # in a buffer an infinity may be a mask
        if not bool(parameter.isfinite().all()):
            raise DataError(
                f"{path} holds a weight that is infinite, in {brief(name)}; give the weights of a run that has not "
                "diverged"
            )
    return model.eval()
