"""The paper's experiments: complete, of the size that it tells, and each of them learns."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

import pipeline
from pipeline.config.catalog import DATASETS
from pipeline.config.paper import Experiment, experiments
from pipeline.network.zoo import named_network
from tests.support.processes import ROOT

pytestmark = pytest.mark.runs


def parameters(found: Experiment) -> int:
    """Of the network, which is not built: the widest has 91 million."""
    info = DATASETS[found.config.data.dataset]
    assert info.shape is not None and info.classes is not None
    network = named_network(found.config.model, info.shape, info.classes, found.config.train.loss)
    with torch.device("meta"):
        return sum(weight.numel() for spec in network for weight in spec.build().parameters())


def test_there_is_one_for_every_cell_that_the_authors_publish_and_some_of_ours() -> None:
    tables = [name.partition("/")[0] for name in experiments()]
    assert {table: tables.count(table) for table in dict.fromkeys(tables)} == {
        "paper": 9 * 4 + 5,
        "table4": 5 * 4 + 1 + 2 * 2,
        "table5": 4,
        "table6": 5 * 4 + 2 * 2,
        "table9": 7 * 3,
        "figure2": 4,
        "segments": 4,
    }


def test_networks_have_as_many_parameters_as_the_paper_tells() -> None:
    told = {name: found for name, found in experiments().items() if found.parameters is not None}
    assert len(told) > 90
    for name, found in told.items():
        millions = parameters(found) / 1e6
        assert abs(millions - float(found.parameters or 0)) <= (0.5 if "wrn" in name else 0.06), (
            f"{name}: {millions} M"
        )


def learn(name: str) -> None:
    """Two steps on data of its shape, of a network with few channels."""
    config = experiments()[name].config
    info = DATASETS[config.data.dataset]
    assert info.shape is not None and info.classes is not None
    model = replace(config.model, hidden_units=16, nonlinearity=config.model.nonlinearity_for(config.train.loss))
    if model.model != "mlp":
        model = replace(model, width=model.width / (32 if "vgg" in model.model else 16))
    train = replace(config.train, epochs=1, lr_milestones=(), batch_size=4, threads=1, decoder_dim=64)
    images = torch.randn(8, *info.shape, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.linspace(0, info.classes - 1, 8).long())
    given = vars(model).copy()
    blocks = pipeline.create_model(given.pop("model"), input_shape=info.shape, classes=info.classes, **given)
    summary = pipeline.train(blocks, data, data, train).summary
    assert summary.test_error_percent is not None and summary.loss == config.train.loss


def test_some_learn_on_data_of_their_shape() -> None:
    for name in list(experiments())[::12]:
        learn(name)


@pytest.mark.long
@pytest.mark.parametrize("name", experiments())
def test_each_learns_on_data_of_its_shape(name: str) -> None:
    learn(name)


def test_a_command_lists_them_with_the_papers_errors() -> None:
    script = str(ROOT / "launch" / "pipeline_train.py")
    done = subprocess.run([sys.executable, script, "--list-recipes"], capture_output=True, text=True, check=True)
    # Ours come with every row that is run, in full or not.
    lines = re.sub(r", ours [^%]* %( \([^)]*\))?", "", done.stdout).splitlines()
    assert lines[0] == "digits" and len(lines) == 1 + len(experiments())
    assert "table4/cifar10/vgg11b-3x/predsim         paper  3.97 %, 400 epochs" in lines
    assert lines[-1].endswith("predsim-4-segments paper     -  , 10 epochs, assumed: all, it is not the paper's")
    assert "table9/svhn/vgg8b/glob+sim               paper  1.95 %, 100 epochs, assumed: the settings of glob" in lines
