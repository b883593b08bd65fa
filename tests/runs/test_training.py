"""The public call and the main job: results, run folder, library use, configuration that comes back."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import pipeline
from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.config.toml import read_toml
from pipeline.learning.profile import count_costs
from pipeline.runtime import agreement
from pipeline.runtime.checkpoint import digest
from pipeline.training import Options, run
from tests.runs.exactness_cases import BASE, vary
from tests.support.processes import ROOT, call, spawn, torchrun

pytestmark = pytest.mark.runs

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")
QUICK = ["--epochs", "1", "--train-limit", "100", "--test-limit", "50", "--width", "0.125", "--hidden-units", "16"]


def toy(samples: int = 120) -> tuple[TensorDataset, TensorDataset]:
    """Three classes told apart by the sign of three features."""
    y = torch.randint(3, (samples,))
    x = torch.randn(samples, 6)
    x[:, :3] += 3 * nn.functional.one_hot(y, 3)
    return TensorDataset(x[20:], y[20:]), TensorDataset(x[:20], y[:20])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    folder = tmp_path_factory.mktemp("run") / "out"
    config = vary(BASE, epochs=3, eval_every=2)
    run(config, Options(output=str(folder)))
    return folder, config


def test_the_run_folder_holds_what_the_contract_says(finished: tuple[Path, RunConfig]) -> None:
    folder, config = finished
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [
            *("checkpoints", "config.toml", "metrics.jsonl", "summary.json", "model.safetensors", "exits.safetensors"),
            "curves.png",
        ]
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {
        *("schema", "dataset", "model", "loss", "seed", "epochs", "steps", "batch_size", "processes", "stages"),
        *("threads", "parameters", "parameters_local_heads", "train_error_percent", "test_error_percent"),
        *("best_test_error_percent", "block_test_error_percent", "train_seconds", "samples_per_second"),
        *("weights_sha256", "state_sha256", "stage", "versions"),
    }
    assert set(summary["stage"][0]) == {
        *("rank", "device", "threads", "blocks", "parameters", "busy_fraction", "wait_input_s", "wait_output_s"),
        *("peak_memory_bytes", "bytes_sent"),
    }
    assert (summary["schema"], summary["epochs"], summary["steps"]) == (1, 3, 15)
    assert len(summary["block_test_error_percent"]) == config.model.blocks
    assert summary["block_test_error_percent"][-1] == summary["test_error_percent"]


def test_every_epoch_is_a_line_of_metrics(finished: tuple[Path, RunConfig]) -> None:
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["test_error_percent"] is None for line in lines] == [True, False, False]
    assert set(lines[0]) == {
        *("epoch", "seconds", "lr", "train_error_percent", "test_error_percent", "block_loss"),
        *("block_train_error_percent", "block_test_error_percent", "stage"),
    }


def test_the_saved_weights_have_the_digest_of_the_summary(finished: tuple[Path, RunConfig]) -> None:
    folder, _ = finished
    weights = load_file(folder / "model.safetensors")
    assert digest(weights) == json.loads((folder / "summary.json").read_text())["weights_sha256"]
    assert all(re.match(r"\d+\.", name) and "local_head" not in name for name in weights)


def test_the_saved_configuration_is_complete_and_trains_the_same(finished: tuple[Path, RunConfig]) -> None:
    folder, _ = finished
    table = tomllib.loads((folder / "config.toml").read_text())
    assert table["train"]["split"] == [8] and table["train"]["stages"] == 1
    assert table["train"]["threads"] == 1 and table["model"]["nonlinearity"] == "leaky_relu"
    again = run(read_toml(str(folder / "config.toml")), Options())
    assert again.summary.state_sha256 == json.loads((folder / "summary.json").read_text())["state_sha256"]


def test_the_saved_model_gives_the_error_of_the_summary(finished: tuple[Path, RunConfig]) -> None:
    from pipeline.data.batches import Batches

    folder, config = finished
    model = pipeline.load_model(folder)
    batches = Batches.from_config(config.data, seed=1, batch_size=64, device=torch.device("cpu"))
    with torch.no_grad():
        wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in batches.test())
    expected = json.loads((folder / "summary.json").read_text())["test_error_percent"]
    assert 100 * wrong / batches.test_samples == pytest.approx(expected)


def test_the_run_folder_of_an_older_version_still_loads() -> None:
    """Its config.toml has an entry that has gone since."""
    folder = ROOT / "tests" / "fixtures" / "run-0.1.0"
    assert "locality" in (folder / "config.toml").read_text()
    expected = json.loads((folder / "summary.json").read_text())["weights_sha256"]
    assert digest(dict(pipeline.load_model(folder).state_dict())) == expected


def test_counts_found_for_segments_are_saved_and_train_the_same(tmp_path: Path) -> None:
    first = run(vary(BASE, epochs=1, segments=3), Options(output=str(tmp_path / "run"))).summary
    again = read_toml(str(tmp_path / "run" / "config.toml"))
    assert isinstance(again.train.segments, tuple) and len(again.train.segments) == 3
    assert sum(again.train.segments) == 8
    assert run(again, Options()).summary.state_sha256 == first.state_sha256


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pipeline.DataError, match="holds no finished run"):
        pipeline.load_model(tmp_path)


def test_a_users_own_network_learns(tmp_path: Path) -> None:
    train, test = toy()
    given = network()
    config = pipeline.TrainConfig(loss="predsim", epochs=8, batch_size=20, lr=1e-2)
    result = pipeline.train(pipeline.blocks_from(given), train, test, config, output=str(tmp_path / "run"))
    assert result.summary.test_error_percent <= 20
    assert result.summary.model == "custom"
    x = test.tensors[0]
    with torch.no_grad():
        assert torch.equal(result.model(x), given.eval()(x)), "the blocks are trained in place"
        again = pipeline.load_model(tmp_path / "run", pipeline.blocks_from(network()))
        assert torch.equal(again(x), given(x))
    with pytest.raises(pipeline.ConfigError, match="was your own; pass it as `blocks`"):
        pipeline.load_model(tmp_path / "run")


def test_a_users_own_network_comes_back_with_the_average(tmp_path: Path) -> None:
    train, test = toy()
    averaged, plain = network(), network()
    config = pipeline.TrainConfig(loss="pred", epochs=2, batch_size=20, lr=1e-2, ema=0.8)
    result = pipeline.train(pipeline.blocks_from(averaged), train, test, config, output=str(tmp_path / "run"))
    pipeline.train(pipeline.blocks_from(plain), train, test, replace(config, ema=0.0))
    x, labels = test.tensors
    with torch.no_grad():
        scores = result.model(x)
        assert torch.equal(pipeline.load_model(tmp_path / "run", pipeline.blocks_from(network()))(x), scores)
        assert not torch.equal(plain.eval()(x), scores)
    wrong = 100 * float((scores.argmax(1) != labels).double().mean())
    assert result.summary.test_error_percent == pytest.approx(wrong)


@pytest.mark.parametrize("loss", ["glob", "pred", "sim", "predsim-bio", "glob+pred"])
def test_every_kind_of_loss_learns_a_toy(loss: str) -> None:
    torch.manual_seed(2)
    train, test = toy(420)
    config = pipeline.TrainConfig(loss=loss, epochs=10, batch_size=20, lr=1e-2)
    result = pipeline.train(pipeline.blocks_from(network()), train, test, config)
    assert result.summary.test_error_percent <= 20


def test_training_leaves_the_callers_settings_alone() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train, test = (
        TensorDataset(torch.ones(8, 6), torch.arange(8) % 3),
        TensorDataset(torch.ones(3, 6), torch.arange(3)),
    )
    block = pipeline.create_model("mlp", input_shape=(1, 2, 3), classes=3, hidden_units=4)
    pipeline.train(block, train, test, pipeline.TrainConfig(epochs=1, batch_size=4, threads=2))
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("stages", "counted"), [(1, 0), (2, 1)])
def test_costs_are_counted_only_where_stages_share_them(
    stages: int, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def count(*args: Any) -> list[float]:
        counts.append(args)
        return count_costs(*args)

    monkeypatch.setattr(agreement, "count_costs", count)
    train, test = toy()
    split = {1: (3,), 2: (1, 2)}[stages]
    pipeline.train(pipeline.blocks_from(network()), train, test, pipeline.TrainConfig(epochs=1, split=split))
    assert len(counts) == counted


def test_a_created_model_trains_to_the_bits_of_the_command_line() -> None:
    config = vary(BASE, loss="pred", epochs=1)
    named = run(config, Options())
    from pipeline.data.batches import Batches

    batches = Batches.from_config(config.data, seed=1, batch_size=64, device=torch.device("cpu"))
    model = pipeline.create_model(
        "vgg8b", input_shape=(1, 16, 16), classes=10, width=0.125, hidden_units=32, dropout=0.2, loss="pred"
    )
    images = torch.cat([x for _, x, _ in batches.train(1)])
    assert images.shape[1:] == (1, 16, 16)
    assert sum(p.numel() for block in model for p in block.parameters()) == named.summary.parameters


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": (1, 1)}, "--split 1,1 places 2 blocks, but the network has 3"),
        ({"stages": 4}, "--stages 4 for a network of 3 blocks leave stages empty"),
        ({"device": "cuda:77"}, "--device is cuda:77"),
    ],
)
def test_mistakes_in_a_library_call_are_raised(values: Any, message: str) -> None:
    train, test = toy()
    with pytest.raises(pipeline.ConfigError, match=message):
        pipeline.train(pipeline.blocks_from(network()), train, test, pipeline.TrainConfig(epochs=1, **values))


@pytest.mark.parametrize(
    "given", [{"epochs": 2}, {}, RunConfig(), pipeline.TrainConfig, "config.toml", False], ids=str
)
def test_what_is_no_configuration_is_told(given: Any) -> None:
    train, test = toy()
    with pytest.raises(
        pipeline.ConfigError, match=r"config is .*; give a pipeline\.TrainConfig, such as TrainConfig\("
    ):
        pipeline.train(pipeline.blocks_from(network()), train, test, given)


class Wanders(Dataset[tuple[Tensor, int]]):
    """Changes the working folder, as much code does that reads files."""

    def __init__(self, to: Path) -> None:
        self._to = to

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        os.chdir(self._to)
        return torch.full((6,), float(index)), index % 3


def test_a_relative_path_leads_where_it_led_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path)
    data, config = Wanders(tmp_path / "else"), pipeline.TrainConfig(loss="pred", epochs=1, batch_size=4, threads=1)
    pipeline.train(pipeline.blocks_from(network()), data, data, config, output="run", trace="trace.json")
    assert (tmp_path / "run" / "summary.json").exists() and (tmp_path / "trace.json").exists()
    assert not list((tmp_path / "else").iterdir())
    monkeypatch.chdir(tmp_path)
    pipeline.train(pipeline.blocks_from(network()), data, data, replace(config, epochs=2), resume="run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2


def test_a_working_folder_that_has_been_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    train, test = toy()
    with pytest.raises(pipeline.ConfigError, match="the working folder has been removed; change to one that is there"):
        pipeline.train(pipeline.blocks_from(network()), train, test)


def test_a_configuration_of_a_module_that_was_loaded_anew_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a notebook does it; the class is another one then."""
    name = "pipeline.config.schema"
    monkeypatch.setattr(name, sys.modules[name])  # which puts it back in the end, as does
    monkeypatch.delitem(sys.modules, name)
    train, test = toy()
    config = importlib.import_module(name).TrainConfig(loss="pred", epochs=1, batch_size=50)
    assert type(config) is not TrainConfig
    pipeline.train(pipeline.blocks_from(network()), train, test, config)


def images(samples: int = 24) -> TensorDataset:
    return TensorDataset(torch.randn(samples, 2, 4, 4), torch.arange(samples) % 3)


def convolutions() -> nn.Sequential:
    first = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def layouts(module: nn.Module) -> list[tuple[int, ...]]:
    return [parameter.stride() for parameter in module.parameters()]


@pytest.mark.parametrize("format_of_the_user", [torch.contiguous_format, torch.channels_last])
def test_weights_come_back_in_the_memory_format_that_they_had(format_of_the_user: torch.memory_format) -> None:
    """They used to stay channels last, which LBFGS and `parameters_to_vector` cannot flatten."""
    given, data = convolutions().to(memory_format=format_of_the_user), images()
    before = layouts(given)
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1, norm_momentum=0.5, decoder_dim=16)
    pipeline.train(pipeline.blocks_from(given), data, data, config)
    assert layouts(given) == before
    assert cast(nn.BatchNorm2d, given[1]).momentum == 0.3
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in given.parameters())
    if format_of_the_user is torch.contiguous_format:
        nn.utils.parameters_to_vector(given.parameters())


def test_a_network_with_convolutions_computes_the_same_when_it_is_loaded(tmp_path: Path) -> None:
    data = images()
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1, decoder_dim=16)
    trained = pipeline.train(pipeline.blocks_from(convolutions()), data, data, config, output=tmp_path / "run").model
    loaded, x = pipeline.load_model(tmp_path / "run", pipeline.blocks_from(convolutions())), data.tensors[0]
    assert torch.equal(loaded(x), trained(x))


def test_a_run_that_fails_gives_the_network_back_too() -> None:
    given, data = convolutions(), images()
    before = layouts(given)
    config = pipeline.TrainConfig(epochs=9, batch_size=8, threads=1, lr=1e30, norm_momentum=0.5, decoder_dim=16)
    with pytest.raises(pipeline.StageFailure):
        pipeline.train(pipeline.blocks_from(given), data, data, config)
    assert layouts(given) == before
    assert cast(nn.BatchNorm2d, given[1]).momentum == 0.3


@pytest.mark.parametrize("scores", [2, 1000])
def test_scores_of_another_width_than_the_classes_are_refused(scores: int) -> None:
    train, test = toy()
    told = rf"the data has 3 classes, but the output layer gives scores of shape \[{scores}\]; make it \[3\]"
    with pytest.raises(pipeline.DataError, match=told):
        pipeline.train(pipeline.blocks_from(nn.Sequential(nn.Linear(6, scores))), train, test)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_batch_is_never_larger_than_the_data(stages: int) -> None:
    """Nothing is allocated for 300,000 samples: a similarity matrix of them would take 360 GB."""
    torch.manual_seed(2)
    (train, test), found = toy(), []
    for size in (300_000, 100):
        torch.manual_seed(3)
        config = pipeline.TrainConfig(epochs=2, batch_size=size, threads=1, stages=stages)
        found.append(pipeline.train(pipeline.blocks_from(network()), train, test, config).summary)
    assert found[0].state_sha256 == found[1].state_sha256
    assert found[0].batch_size == 300_000, "as it was asked for"


def test_heads_that_no_machine_can_hold_are_refused_before_training() -> None:
    data = TensorDataset(torch.randn(8, 1, 100_000), torch.arange(8) % 2)
    layers = nn.Conv1d(1, 64, 9), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(256, 2)
    with pytest.raises(pipeline.ConfigError, match=r"block 0 \(conv1d 0\): 655\.\d TB .*; give --loss pred"):
        pipeline.train(pipeline.blocks_from(nn.Sequential(*layers)), data, data, pipeline.TrainConfig(threads=1))


OWN = """
import os, sys, torch, pipeline
from torch import nn
from torch.utils.data import TensorDataset

class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x.relu_() + self.two(self.norm(self.one(x)))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.ReLU(inplace=True))
        self.body = nn.Sequential(Residual(4), Residual(4))
        self.head = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(16, 3))

    def forward(self, x):
        n = x.size(0)
        h = nn.functional.max_pool2d(self.body(self.stem(x)), 4)
        return self.head(h.view(n, -1))

torch.manual_seed(4)
data = TensorDataset(torch.randn(40, 2, 8, 8), torch.arange(40) % 3)
blocks = pipeline.blocks_from(Own())
config = pipeline.TrainConfig(epochs=2, batch_size=16, threads=1, decoder_dim=32)
print(len(blocks), pipeline.train(blocks, data, data, config).summary.state_sha256)
"""


def test_a_residual_network_that_writes_in_place_has_the_same_bits_in_two_processes(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(OWN)
    alone = call(script, cwd=tmp_path)
    ends = spawn([str(script)], 2, 60)
    assert alone.stderr == "" and alone.stdout.startswith("4 ")
    assert {end.stdout for end in ends} == {alone.stdout}


DIFFERENT = """
import os, torch, pipeline
from torch import nn
from torch.utils.data import TensorDataset
rank = int(os.environ["RANK"])
class Table(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("drawn", torch.randn(width), persistent=False)

    def forward(self, x):
        return x * self.drawn

torch.manual_seed(rank)  # different weights in every process: process 0's count
data = TensorDataset(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3)
layers = nn.Linear(6, 8), AFTER, nn.Linear(8, WIDTH), Table(WIDTH), nn.ReLU(), nn.Linear(8, 3)
blocks = pipeline.blocks_from(nn.Sequential(*layers))
config = pipeline.TrainConfig(epochs=2, batch_size=8, loss="pred", lr=LR, threads=1, split=(SPLIT))
try:
    result = pipeline.train(blocks, data, data, config)
    state = {f"{i}.{k}": v for i, b in enumerate(blocks) for k, v in b.state_dict().items()}
    from pipeline.runtime.checkpoint import digest
    print(result.summary.weights_sha256, digest(state), digest(dict(blocks[1].named_buffers())))
except pipeline.ConfigError as error:
    print("ConfigError", error)
"""


def different(tmp_path: Path, **ways: str) -> list[str]:
    text = DIFFERENT
    for name, way in ({"width": "8", "lr": "0.01", "after": "nn.ReLU()", "split": "2, 1"} | ways).items():
        text = text.replace(name.upper(), way)
    script = tmp_path / "different.py"
    script.write_text(text)
    return [end.stdout.strip() for end in spawn([str(script)], 2, 60)]


def test_process_0s_weights_count_and_every_process_gets_the_result(tmp_path: Path) -> None:
    first, second = different(tmp_path)
    assert first == second
    promised, held, _table = first.split()
    assert promised == held


def test_processes_with_different_flags_are_refused(tmp_path: Path) -> None:
    expected = "ConfigError process 1 has lr = 0.2, but process 0 has 0.1; start all processes with the same flags"
    assert different(tmp_path, lr="0.1 * (rank + 1)") == [expected] * 2


@pytest.mark.parametrize(
    ("ways", "told"),
    [
        (
            {"width": "8 + rank"},
            "Linear at 1.body.2 with in_features=8, out_features=9, bias=True, but process 0 has "
            "Linear at 1.body.2 with in_features=8, out_features=8, bias=True",
        ),
        (
            {"after": "[nn.ReLU(), nn.GELU()][rank]"},
            "GELU at 0.body.1, but process 0 has ReLU at 0.body.1",
        ),
        (
            {"after": "nn.Dropout(0.5 * rank)"},
            "Dropout at 0.tail.1 with p=0.5, inplace=False, but process 0 has "
            "Dropout at 0.tail.1 with p=0.0, inplace=False",
        ),
    ],
    ids=["width", "class", "rate"],
)
def test_processes_with_different_blocks_are_refused(ways: dict[str, str], told: str, tmp_path: Path) -> None:
    expected = f"ConfigError process 1 has {told}; build the same blocks in all processes"
    assert different(tmp_path, **ways) == [expected] * 2


def test_a_lazy_layer_may_have_its_weights_in_process_0_alone(tmp_path: Path) -> None:
    loaded = "(lambda lazy: (rank or lazy.load_state_dict(nn.Linear(8, 8).state_dict()), lazy)[1])(nn.LazyLinear(8))"
    first, second = different(tmp_path, after=f"nn.ReLU(), {loaded}", split="2, 2")
    assert first == second and "Error" not in first


FLAGS_BY_RANK = """
import os, runpy, sys
sys.argv[1:] += OWN if os.environ["RANK"] == "1" else []
sys.argv[0] = SCRIPT
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (["--nonlinearity", "gelu"], "nonlinearity = 'gelu', but process 0 has 'auto'"),
        (["--dropout", "0.5"], "dropout = 0.5, but process 0 has 0.1"),
        (["--hidden-units", "9"], "hidden_units = 9, but process 0 has 16"),
    ],
)
def test_processes_with_different_networks_by_name_are_refused(own: list[str], told: str, tmp_path: Path) -> None:
    script = tmp_path / "by_rank.py"
    script.write_text(FLAGS_BY_RANK.replace("OWN", repr(own)).replace("SCRIPT", repr(SCRIPT)))
    ends = spawn([str(script), *QUICK], 2, 60, cwd=tmp_path)
    assert [end.status for end in ends] == [2, 2]
    printed = f"error: process 1 has {told}; start all processes with the same flags\n"
    assert "".join(end.stderr for end in ends) == printed
    assert not (tmp_path / "runs").exists(), "nothing has begun"


class Squeezes(nn.Module):
    """Drops the batch, too, where it is one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x).unsqueeze(2).squeeze()


def test_a_last_test_batch_of_one_sample_that_a_block_does_not_keep_is_told_before_training() -> None:
    data, _ = toy()
    blocks, config = [Squeezes(), nn.Linear(8, 3)], pipeline.TrainConfig(epochs=1, batch_size=20, threads=1)
    one_left = torch.utils.data.Subset(data, range(21))
    with pytest.raises(pipeline.ConfigError, match=r"a tensor of shape \[8\] for a batch of 1 sample in evaluation"):
        pipeline.train(blocks, data, one_left, config)
    assert pipeline.train(blocks, data, data, config).summary.epochs == 1


def command(*flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return call(SCRIPT, *flags, cwd=cwd)


def test_the_command_trains_and_writes_its_folder(tmp_path: Path) -> None:
    done = command(*QUICK, "--trace", "t.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^epoch 1/1: .* test error", done.stdout, re.MULTILINE)
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-digits-vgg8b-predsim", folder.name)
    assert json.loads((folder / "summary.json").read_text())["epochs"] == 1
    assert (tmp_path / "t.json").exists() and (tmp_path / "t.png").exists()


@pytest.mark.lowest
def test_torchrun_gives_the_weights_of_one_process(tmp_path: Path) -> None:
    """The two commands of the README, on a small network."""
    flags = [SCRIPT, *QUICK, "--threads", "1", "--output"]
    for start, folder in (([], "one"), (torchrun(4), "four")):
        done = call(*start, *flags, folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, four = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "four"))
    assert (one["processes"], four["processes"], len(four["stage"])) == (1, 4, 4)
    assert one["state_sha256"] == four["state_sha256"]
    assert four["stage"][0]["bytes_sent"] > 0 and four["stage"][3]["bytes_sent"] == 0


def test_the_frequency_of_evaluation_never_changes_the_weights() -> None:
    often, rarely = (run(vary(BASE, loss="pred", eval_every=every), Options()).summary for every in (1, 2))
    assert often.state_sha256 == rarely.state_sha256


class Counting(nn.Module):
    """Counts batches in whatever mode it is, and computes with the count."""

    seen: Tensor

    def __init__(self, *, anew: bool) -> None:
        super().__init__()
        self.layer, self.anew = nn.Linear(6, 8), anew
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.anew:
            self.seen = self.seen + 1
        else:
            self.seen.add_(1)
        result: Tensor = torch.relu(self.layer(x)) * (1 + 0.1 * self.seen)
        return result


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("anew", [False, True], ids=["in place", "anew"])
def test_a_block_that_writes_to_its_buffers_in_evaluation_is_left_as_it_was(anew: bool, ema: float) -> None:
    """How often is evaluated would decide weights, and so would how far an evaluation was when a run was stopped."""
    torch.manual_seed(1)
    assert_evaluations_leave_it(Counting(anew=anew), ema=ema)


class Remembering(nn.Module):
    """Computes with the mean of the batch before, and keeps what it has computed, in whatever mode it is."""

    mean: Tensor
    last: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("last", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x - self.mean)
        self.mean, self.last = x.detach().mean(0), result.detach()
        return result


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_block_that_keeps_the_batch_before_is_left_as_it_was(ema: float) -> None:
    """It writes the same numbers where it sees the same batch twice, and other sizes where batches have others."""
    torch.manual_seed(1)
    block = Remembering()
    assert_evaluations_leave_it(block, ema=ema)
    assert block.last is None


def assert_evaluations_leave_it(block: nn.Module, **values: Any) -> None:
    data = TensorDataset(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3)
    test, states = TensorDataset(*data[:13]), []
    last = nn.Linear(8, 3)
    for every in (1, 3):
        blocks = [copy.deepcopy(block), copy.deepcopy(last)]
        config = pipeline.TrainConfig(epochs=3, batch_size=8, threads=1, eval_every=every, **values)
        states.append(pipeline.train(blocks, data, test, config).summary.state_sha256)
        if isinstance(blocks[0], Counting) and not values.get("ema"):
            assert blocks[0].seen == 15, "the batches of training"
    assert states[0] == states[1]


def test_overwrite_replaces_a_run(tmp_path: Path) -> None:
    for flags, status in (([], 0), ([], 2), (["--overwrite"], 0)):
        assert command(*QUICK, "--output", "same", *flags, cwd=tmp_path).returncode == status


def test_dry_run_shows_the_split_and_reads_no_data(tmp_path: Path) -> None:
    flags = ["--dry-run", "--dataset", "cifar10", "--width", "0.0625", "--stages", "3", "--batch-size", "8"]
    done = command(*flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'dataset = "cifar10"' in done.stdout and "output 1024-10" in done.stdout
    assert not list(tmp_path.iterdir())


def test_print_config_and_list_recipes_answer_without_training(tmp_path: Path) -> None:
    printed = command("--print-config", "--epochs", "3", cwd=tmp_path).stdout
    assert tomllib.loads(printed)["train"]["epochs"] == 3
    assert command("--list-recipes", cwd=tmp_path).stdout.startswith("digits\npaper/mnist/mlp/glob ")
    assert "--queue-depth N" in command("--help", cwd=tmp_path).stdout
    for flag in ("--print-config", "--list-recipes", "--help"):
        first, second = spawn([SCRIPT, flag], 2, 60, cwd=tmp_path)
        assert first.status == second.status == 0
        assert first.stdout and not second.stdout
    assert not list(tmp_path.iterdir())


def test_cores_follow_the_cost_and_their_number_comes_back_with_the_configuration(tmp_path: Path) -> None:
    flags = [*QUICK, "--split", "7,1", "--loss", "pred"]
    first = spawn(["-m", "tests.runs.uneven_cores_run", *flags, "--output", str(tmp_path / "first")], 2, 120)
    again = ["--config", str(tmp_path / "first" / "config.toml"), "--output", str(tmp_path / "again")]
    second = spawn(["-m", "tests.runs.uneven_cores_run", *again], 2, 120)
    assert [end.status for end in (*first, *second)] == [0] * 4, (first, second)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "again")]
    assert [[stage["threads"] for stage in summary["stage"]] for summary in summaries] == [[5, 1], [5, 1]]
    assert read_toml(again[1]).train.threads == (5, 1)
    assert summaries[0]["state_sha256"] == summaries[1]["state_sha256"]
    wrong = call(SCRIPT, "--config", again[1], "--split", "auto", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--threads 5,1 is for 2 processes, but there are 1; give one number for all of them" in wrong.stderr
