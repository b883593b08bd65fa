"""The runner of the paper's experiments with real trainings: kept, gone on with after a stop, told where they fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.paper.command import main
from benchmarks.paper.results import read
from tests.support.data_files import write_mnist_like
from tests.support.processes import ROOT, children

pytestmark = [pytest.mark.runs, pytest.mark.bench]

MLP = "paper/fashion_mnist/mlp"
LABEL = "shortened to 2 of 200 epochs, hidden units 8"
FOLDERS = {"--data-dir": "data", "--runs": "runs", "--results": "results"}


def arguments(folder: Path, *rows: str, scale: float = 0.01, processes: int = 1) -> list[str]:
    places = [text for flag, name in FOLDERS.items() for text in (flag, str(folder / name))]
    given = ["--rows", *rows, "--epoch-scale", str(scale), "--processes", str(processes)]
    return [*given, *places, "--", "--hidden-units", "8", "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, runs and results of two rows."""
    folder = tmp_path_factory.mktemp("paper")
    write_mnist_like(folder / "data", "FashionMNIST")
    assert main(arguments(folder, f"{MLP}/glob", f"{MLP}/predsim")) == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_rows_are_kept_and_shown(trained: Path) -> None:
    kept = read(trained / "results")
    assert {row: list(found) for row, found in kept.items()} == {f"{MLP}/glob": [LABEL], f"{MLP}/predsim": [LABEL]}
    _, (run,) = kept[f"{MLP}/predsim"][LABEL]
    assert len(run.test_curve) == len(run.train_curve) == 2 and run.test_curve[-1] == run.test_error_percent
    assert run.command == (
        f"python -m benchmarks paper --rows {MLP}/glob {MLP}/predsim --seeds 1 --epoch-scale 0.01 -- --hidden-units 8 "
        "--threads 1"
    ), "no folder of this machine"
    page = (trained / "results" / "README.md").read_text()
    assert f"| {MLP}/predsim | 8.54 | {run.test_error_percent:.2f} | 1 | 2 of 200 | shortened, " in page


def test_what_is_kept_is_not_trained_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "runs")
    assert main(arguments(copy, f"{MLP}/glob", f"{MLP}/predsim")) == 0
    said = capsys.readouterr()
    assert said.err == "2 of 2 trainings are kept already\n" and not list((copy / "runs").iterdir())
    assert said.out == f"{copy / 'results' / 'README.md'}\n"


def test_a_training_that_had_ended_before_a_stop_is_kept(copy: Path) -> None:
    result = copy / "results" / "paper-fashion_mnist-mlp-predsim.json"
    before = json.loads(result.read_text())["rows"][0]["runs"][0]
    result.unlink()
    (summary,) = (copy / "runs" / MLP / "predsim").rglob("summary.json")
    written = summary.stat().st_mtime_ns
    assert main(arguments(copy, f"{MLP}/predsim")) == 0
    after = json.loads(result.read_text())["rows"][0]["runs"][0]
    assert after == {**before, "command": after["command"]} and summary.stat().st_mtime_ns == written


def test_a_folder_with_another_run_is_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "results")
    (config,) = (copy / "runs" / MLP / "predsim").rglob("config.toml")
    config.write_text(config.read_text().replace("dropout = 0.025", "dropout = 0.5"))
    assert main(arguments(copy, f"{MLP}/predsim")) == 1
    assert f"{config.parent} holds another run ({{'dropout': 0.5}}); remove it" in capsys.readouterr().err


def test_a_row_that_cannot_be_run_does_not_keep_the_others_from_it(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "results")
    assert main(arguments(copy, "paper/mnist/mlp/pred", f"{MLP}/glob")) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "not run" in line]
    assert len(lines) == 1 and lines[0].startswith("1/2 paper/mnist/mlp/pred, seed 1: not run: mnist is not found in ")
    assert list(read(copy / "results")) == [f"{MLP}/glob"]


def test_a_stopped_row_goes_on_from_where_it_was(trained: Path, copy: Path) -> None:
    """In several processes now, and to the bits of a row that nothing has stopped."""
    row, scale = f"{MLP}/predsim", 1.0
    asked = arguments(copy, row, scale=scale)
    command = [sys.executable, "-m", "benchmarks", "paper", *asked]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        metrics = copy / "runs" / row / "epochs-200-hidden-units-8-seed-1" / "metrics.jsonl"
        deadline = time.monotonic() + 100
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        (training,) = children(process.pid)
        os.kill(training, signal.SIGSTOP)  # a fast machine trains all of it before it is asked to end
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 30
        while not is_asked_to_end(training):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(training, signal.SIGCONT)
        _, told = process.communicate(timeout=100)
    assert process.returncode == 1
    assert told.splitlines()[-1] == f"error: {row}, seed 1: stopped; the same command goes on from there"
    assert 3 <= len(metrics.read_text().splitlines()) < 200
    assert list(read(copy / "results")[row]) == [LABEL], "nothing is kept of it yet"

    assert main(arguments(copy, row, scale=scale, processes=2)) == 0
    assert main(arguments(trained, row, scale=scale)) == 0
    (_, (ours,)), (_, (undisturbed,)) = (read(folder / "results")[row]["hidden units 8"] for folder in (copy, trained))
    assert (ours.processes, undisturbed.processes, len(ours.test_curve)) == (2, 1, 200)
    assert ours.state_sha256 == undisturbed.state_sha256 and ours.test_curve == undisturbed.test_curve


def is_asked_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a stopped process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (pending,) = [int(line.split()[1], 16) for line in status if line.startswith("ShdPnd:")]
    return bool(pending >> (signal.SIGTERM - 1) & 1)
