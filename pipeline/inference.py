"""A trained network without the machinery of training: no process group, no local heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from pipeline.config.paths import expanded
from pipeline.config.toml import read_model
from pipeline.errors import ConfigError, DataError
from pipeline.network.sequential import CUSTOM, given_network
from pipeline.network.spec import build_block
from pipeline.network.zoo import named_network
from pipeline.settings import plain_settings

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
    try:
        data = (path / "model.safetensors").read_bytes()  # the library opens no path that is not UTF-8
        weights = load(data)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} holds no finished run ({error}); give the folder of a run that has ended") from error
    known = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    if blocks is not None:
        network = given_network(blocks)
    elif known.get("model", CUSTOM) == CUSTOM:
        raise ConfigError(f"the network of {path} was your own; pass it as `blocks`")
    else:
        config, loss = read_model(str(path / "config.toml"))
        shape = tuple(int(side) for side in known["input_shape"].split(","))
        network = named_network(config, shape, int(known["classes"]), loss)
    model = nn.Sequential(*(build_block(spec, 0, index) for index, spec in enumerate(network)))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"the weights of {path} do not fit the network ({reason}); pass the one trained") from error
    return model.eval()
