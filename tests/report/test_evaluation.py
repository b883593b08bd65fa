"""An evaluation of a finished run: figures that are the run's, files that are whole, and what stands in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pipeline
from pipeline.config.evaluation import THRESHOLDS, Evaluation
from pipeline.errors import ConfigError
from pipeline.learning.exit_figures import Confusion, ThresholdFigures
from pipeline.report import evaluation
from pipeline.report.evaluation import evaluate
from pipeline.report.exit_plot import save_exits
from pipeline.report.exit_records import Evaluated, ExitRecord
from pipeline.report.exit_tables import evaluation_lines
from tests.support.data import message
from tests.support.run_folders import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A run to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def evaluated(folder: Path, **values: Any) -> Evaluated:
    return evaluate(Evaluation(run=str(folder), **values), lambda: pipeline.load_model(folder, exits=True))


def test_errors_are_those_of_the_run_and_files_hold_all_figures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    found = evaluated(folder, confusion=True, thresholds=(1.0, 0.5, 0.5), command="launch/evaluate.py run")
    summary = json.loads((folder / "summary.json").read_text())
    assert [each.error_percent for each in found.exits] == pytest.approx(summary["block_test_error_percent"])
    assert (found.samples, found.batch_size, found.device) == (50, 32, "cpu")
    assert [each.threshold for each in found.thresholds] == [0.5, 1.0]
    kept = json.loads((folder / "exits.json").read_text(), parse_constant=pytest.fail)
    assert set(kept) == {
        *("schema", "command", "dataset", "model", "loss", "weights_sha256", "device", "batch_size", "samples"),
        *("exits", "average_error_percent", "thresholds", "confusion"),
    }
    assert (kept["schema"], kept["command"], kept["samples"]) == (1, "launch/evaluate.py run", 50)
    assert kept["weights_sha256"] == summary["weights_sha256"]
    assert set(kept["exits"][0]) == {"exit", "block", "layer", "error_percent", "cost", "cumulative_cost"}
    assert kept["average_error_percent"][0] == kept["exits"][-1]["error_percent"]
    assert sum(map(sum, kept["confusion"]["matrix"])) == 50
    assert (folder / "exits.png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mlp on digits, predsim: 50 test images, on cpu"
    assert lines[-1] == f"written: {folder}/exits.json, {folder}/exits.png"
    assert torch.get_num_threads() == threads


def test_the_runs_own_test_set_and_batches_are_taken_unless_others_are_asked_for(folder: Path) -> None:
    plain = evaluated(folder)
    assert (plain.samples, plain.batch_size, plain.confusion) == (50, 32, None)
    assert tuple(each.threshold for each in plain.thresholds) == THRESHOLDS
    other = evaluated(folder, test_limit=20, batch_size=7, device="cpu")
    assert (other.samples, other.batch_size) == (20, 7)


def test_results_go_where_they_are_asked_to(folder: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    evaluated(folder, output=str(tmp_path / "else" / "where"))
    assert sorted(path.name for path in (tmp_path / "else" / "where").iterdir()) == ["exits.json", "exits.png"]
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_loss_without_classifiers_has_the_network_alone(tmp_path: Path) -> None:
    found = evaluated(train(tmp_path / "run", "--loss", "sim"))
    assert [(each.block, each.cost) for each in found.exits] == [(3, 1.0)]
    assert {each.error_percent for each in found.thresholds} == {found.exits[0].error_percent}


def test_a_picture_that_cannot_be_drawn_is_a_note(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "save_exits", no)
    evaluated(folder)
    told = f"note: {folder}/exits.png could not be written ([Errno 28] No space left on device)"
    assert capsys.readouterr().out.splitlines()[-2:] == [f"written: {folder}/exits.json", told]
    assert not (folder / "exits.png").exists()


def test_a_run_in_a_half_precision_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(train(tmp_path / "run", "--precision", "bf16", "--epochs", "1"))
    assert capsys.readouterr().out.startswith("note: trained in bf16, evaluated in fp32: errors may differ from the")


def test_a_link_in_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    for name in ("exits.json", "exits.png", "exits.json.part"):
        (folder / name).symlink_to(tmp_path / "victim")
    evaluated(folder)
    assert (tmp_path / "victim").read_text() == "mine" and not (folder / "exits.json").is_symlink()


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    told = message(lambda: evaluated(tmp_path / "nowhere"))
    assert (
        told == f"{tmp_path}/nowhere holds no finished run (no config.toml); give the folder of a run that has ended"
    )


def test_a_run_that_has_not_ended_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "holds no finished run (model.safetensors: it is missing)" in message(lambda: evaluated(folder))


def test_a_users_own_data_are_told(tmp_path: Path) -> None:
    data = TensorDataset(torch.randn(8, 6), torch.arange(8) % 3)
    layers = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    config = pipeline.TrainConfig(epochs=1, batch_size=4, threads=1)
    pipeline.train(pipeline.blocks_from(layers), data, data, config, output=tmp_path / "run")
    told = message(lambda: evaluated(tmp_path / "run"), ConfigError)
    assert told == (
        f"the data of {tmp_path}/run were your own; evaluate it with pipeline.load_model('{tmp_path}/run', blocks, "
        "exits=True)"
    )


def test_data_of_other_images_are_told(folder: Path) -> None:
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('dataset = "digits"', 'dataset = "synthetic"'))
    told = message(lambda: evaluated(folder))
    assert told.startswith("the data are images of [3, 32, 32] in 10 classes, but the network of ")
    assert told.endswith(" is for [1, 16, 16] and 10; point --data-dir at the data that it was trained on")


def test_data_that_are_missing_are_told(folder: Path, tmp_path: Path) -> None:
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('dataset = "digits"', 'dataset = "mnist"'))
    told = message(lambda: evaluated(folder, data_dir=str(tmp_path / "empty")))
    assert told.startswith("mnist is ") and "--download" in told


def test_a_configuration_with_another_versions_entries_is_read(folder: Path) -> None:
    text = (folder / "config.toml").read_text()
    text = text.replace("[train]", '[train]\noptimizer_of_old = "x"').replace("[data]", "[data]\ngone = 1")
    (folder / "config.toml").write_text(text)
    assert evaluated(folder).samples == 50


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    asked = Evaluation(run=str(folder), output=str(tmp_path / "file" / "in"))
    told = message(lambda: evaluate(asked, lambda: pytest.fail("loaded")), ConfigError)
    assert told == f"{tmp_path}/file/in cannot be written (Not a directory); choose another folder with --output"


def test_figures_that_cannot_be_written_are_an_error(folder: Path) -> None:
    (folder / "exits.json").mkdir()
    told = message(lambda: evaluated(folder), ConfigError)
    assert told == f"{folder} cannot be written (Is a directory); choose another folder with --output"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(folder: Path) -> None:
    told = message(lambda: evaluated(folder, device="cuda"), ConfigError)
    assert told == f"--device is cuda, but torch {torch.__version__} finds no GPU; use --device cpu"


def record(exits: int, thresholds: tuple[float, ...] = (0.5, 0.9), classes: int = 3, error: float = 50.0) -> Evaluated:
    return Evaluated(
        command="",
        dataset="digits",
        model="vgg8b",
        loss="predsim",
        weights_sha256="ab" * 32,
        device="cpu",
        batch_size=128,
        samples=1,
        exits=tuple(ExitRecord(i, 2 * i, f"conv {i}", error / (i + 1), (i + 1) / exits, 1.5) for i in range(exits)),
        average_error_percent=tuple(error + i for i in range(exits)),
        thresholds=tuple(ThresholdFigures(t, error, t, (1.0,) * exits) for t in thresholds),
        confusion=Confusion(((1,) * classes,) * classes, (None, *(error,) * (classes - 1))),
    )


def test_tables_are_aligned_and_mark_the_network() -> None:
    assert list(evaluation_lines(record(2, classes=2))) == [
        "vgg8b on digits, predsim: 1 test image, on cpu",
        "",
        "every exit alone; cost: multiply-accumulates of a sample, relative to the network alone",
        "exit  block  layer   error %   cost",
        "   0      0  conv 0    50.00  0.500",
        "   1      2  conv 1    25.00  1.000  <- network",
        "",
        "averaged probabilities of the last exits",
        "last  error %",
        "   1    50.00",
        "   2    51.00",
        "",
        "every image leaves at the first exit whose greatest probability is at least the threshold",
        "threshold  error %   cost",
        "      0.5    50.00  0.500",
        "      0.9    50.00  0.900",
        "",
        "images of each class (row) that the network takes for each class (column)",
        "class  0  1  error %",
        "    0  1  1        -",
        "    1  1  1    50.00",
    ]


@pytest.mark.parametrize("found", [record(8), record(1), record(1, ()), record(3, (0.5,), error=0.0)])
def test_the_picture_is_drawn_whatever_there_is(found: Evaluated, tmp_path: Path) -> None:
    save_exits(found, tmp_path / "exits.png")
    assert (tmp_path / "exits.png").stat().st_size > 5_000
