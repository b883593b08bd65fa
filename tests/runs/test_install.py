"""The package as others install it: a wheel, elsewhere, that trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.runs

TRAIN = """
import pipeline, torch
from torch import nn
from torch.utils.data import TensorDataset

data = TensorDataset(torch.randn(40, 4), torch.randint(2, (40,)))
blocks = pipeline.blocks_from(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
result = pipeline.train(blocks, data, data, pipeline.TrainConfig(epochs=1, batch_size=8, threads=1), output="run")
pipeline.load_model("run", pipeline.blocks_from(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))))
print(pipeline.__file__)
"""


def test_the_wheel_installed_elsewhere_trains(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pipeline", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):  # a build leaves files behind
        (source / name).symlink_to(ROOT / name)
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", "dist", str(source)], cwd=tmp_path, check=True
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", "site", str(wheel)], cwd=tmp_path, check=True)
    command = [sys.executable, "-c", TRAIN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "site")
    assert (tmp_path / "site" / "pipeline" / "py.typed").exists()
