"""The methods that are compared train the same network on the same batches; their experiments run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

from benchmarks.contenders.common import Trained
from benchmarks.contenders.methods import Method, baselines
from benchmarks.contenders.schedules import SCHEDULES
from benchmarks.experiments.heads import difference
from benchmarks.experiments.time_to_accuracy import reached
from benchmarks.harness.crew import Crew
from pipeline.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig, override
from tests.support.processes import ROOT

CONFIG = RunConfig(
    data=DataConfig(dataset="digits", train_limit=256, test_limit=100),
    model=ModelConfig(model="vgg8b", width=0.125, nonlinearity="relu"),
    train=TrainConfig(loss="glob", batch_size=32, epochs=4, decoder_dim=256, lr=2e-3, threads=1),
)


def test_time_to_an_error_ends_with_the_first_epoch_that_is_good_enough() -> None:
    trained = Trained((2.0, 3.0, 4.0), (50.0, None, 20.0))
    assert reached(trained, 50) == 2.0
    assert reached(trained, 30) == 9.0
    assert reached(trained, 10) is None


def test_difference_of_means_has_welchs_standard_error() -> None:
    found = difference([1.0, 3.0], [10.0, 10.0, 13.0])
    assert found.mean == pytest.approx(-9.0)
    assert found.standard_error == pytest.approx((2.0 / 2 + 3.0 / 3) ** 0.5)


@pytest.mark.bench
def test_all_baselines_learn_alike() -> None:
    """Global backprop is the same maths in one process, in stages that take turns and, batch norm apart, elsewhere."""
    found: dict[str, list[Trained]] = {}
    with Crew(1) as solo, Crew(2) as team:
        for method in baselines(2, 4):
            found[method.label] = method.train(solo if method.processes == 1 else team, CONFIG)
        pred = Method("pred", "ours", 2, (("loss", "pred"),)).train(team, CONFIG)
        common = Method("commonly", "reference", 1).train(solo, override(CONFIG, {"loss": "predsim"}))
    errors = {label: trained[0].errors for label, trained in found.items()}
    seconds = [trained.seconds for runs in found.values() for trained in runs]
    assert all(len(each) == CONFIG.train.epochs and min(each) > 0 for each in seconds)
    assert all(trained.errors == runs[0].errors for runs in found.values() for trained in runs[1:]), "all are told"
    alone, in_turn = errors["backprop, one process"], errors["backprop, stages in turn"]
    assert alone[:2] == pytest.approx(in_turn[:2], abs=3), "other sums of floats drive them apart later"
    assert errors["backprop, GPipe"] == errors["backprop, 1F1B"], "two orders of the same sums"
    finals = {label: error[-1] for label, error in errors.items()}
    assert all(final is not None and final < 40 for final in finals.values()), finals  # chance is 90
    assert [stage.rank for stage in pred[0].stages] == [0, 1] and pred[0].stages[0].bytes_sent > 0
    assert common[0].errors[-1] is not None and common[0].errors[-1] < 85


def quick(name: str, folder: Path) -> dict[str, Any]:
    """The report of `python -m benchmarks NAME --quick`, run in a folder of its own."""
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--output", str(folder)]
    environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    done = run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / f"{name}.png").stat().st_size > 5000
    report: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert report["command"] == f"python -m benchmarks {name} --quick"
    return report


@pytest.mark.bench
def test_throughput_experiment(tmp_path: Path) -> None:
    report = quick("throughput", tmp_path)
    rows = {row["label"]: row for row in report["rows"]}
    for label in ("backprop, one process", "backprop, DDP", *(f"backprop, {name}" for name in SCHEDULES)):
        assert rows[label]["samples_per_second"]["n"] == 3 and rows[label]["samples_per_second"]["minimum"] > 0
    for loss in ("pred", "predsim", "predsim, cheap head"):
        for way in ("one process", "pipeline", "pipeline, a loss a stage"):
            assert rows[f"{loss}, {way}"]["speed_ratio_to_backprop"]["minimum"] > 0
    assert rows["pred, pipeline: process 1"]["busy_percent"]["maximum"] <= 100
    assert [target["name"][:2] for target in report["targets"][:5]] == ["1.", "1.", "2.", "5.", "5."]


@pytest.mark.bench
def test_time_to_accuracy_experiment(tmp_path: Path) -> None:
    report = quick("time-to-accuracy", tmp_path)
    assert len(report["rows"]) == len(baselines(2, 4)) + 6
    assert all(len(row["curve_seconds_error"]) == row["epochs"] for row in report["rows"])
    assert all(target["name"].startswith("6.") for target in report["targets"])


@pytest.mark.bench
def test_heads_experiment_goes_on_where_it_stopped(tmp_path: Path) -> None:
    report = quick("heads", tmp_path)
    rows = {row["label"]: row for row in report["rows"]}
    assert set(rows) == {"digits: conv", "digits: pool-4x4", "digits: pred"}
    assert all(row["test_error_percent"]["n"] == 2 for row in rows.values())
    assert next(target["name"].split(":")[0] for target in report["targets"]) == "2. digits"
    assert "standard_error" in rows["digits: pool-4x4"] and "standard_error" not in rows["digits: conv"]
    done = tmp_path / "runs" / "benchmarks" / "heads" / "quick" / "digits-pred-1" / "summary.json"
    summary = json.loads(done.read_text(encoding="utf-8"))
    done.write_text(json.dumps(summary | {"test_error_percent": 1.25}), encoding="utf-8")
    again = {row["label"]: row for row in quick("heads", tmp_path)["rows"]}
    assert again["digits: pred"]["test_error_percent"]["minimum"] == 1.25, "a run that is done is not run again"
