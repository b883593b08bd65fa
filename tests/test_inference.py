"""Run folders as networks, those of older versions too."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

import pipeline


def test_a_folder_of_an_older_version_still_loads(tmp_path: Path) -> None:
    blocks = pipeline.create_model("mlp", input_shape=(1, 4, 4), classes=3, hidden_units=8, loss="pred")
    weights = {f"{i}.{name}": x for i, block in enumerate(blocks) for name, x in block.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"model": "mlp", "input_shape": "1,4,4", "classes": "3"})
    train = '[train]\nloss = "pred"\nspeed = "an entry that has gone"\n'
    (tmp_path / "config.toml").write_text('[model]\nmodel = "mlp"\nhidden_units = 8\n\n' + train)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(pipeline.load_model(tmp_path)(x), torch.nn.Sequential(*blocks).eval()(x))
