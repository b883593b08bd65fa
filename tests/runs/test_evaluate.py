"""The evaluation as a command: status, one line for a mistake; the same classifiers from one process and from two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, call, fresh, spawn, spawn_with

pytestmark = pytest.mark.runs

TRAIN, EVALUATE = (str(ROOT / "launch" / f"{name}.py") for name in ("pipeline_train", "evaluate"))
SMALL = [
    *("--model", "mlp", "--hidden-units", "8", "--train-limit", "120", "--test-limit", "50", "--batch-size", "32"),
    *("--epochs", "1", "--threads", "1", "--loss", "predsim-bio", "--target-projection", "8", "--output"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `one`, the run of one process."""
    folder = tmp_path_factory.mktemp("finished")
    (done,) = spawn([TRAIN, *SMALL, "one"], 1, 120, cwd=folder)
    assert done.status == 0, done.stderr
    return folder


def test_two_processes_leave_the_classifiers_of_one(finished: Path) -> None:
    ends = spawn([TRAIN, *SMALL, "two"], 2, 120, cwd=finished)
    assert [end.status for end in ends] == [0, 0], ends
    for name in ("exits.safetensors", "model.safetensors"):
        assert (finished / "two" / name).read_bytes() == (finished / "one" / name).read_bytes()
    states = [json.loads((finished / name / "summary.json").read_text())["state_sha256"] for name in ("one", "two")]
    assert states[0] == states[1]


def test_the_command_prints_tables_and_writes_both_files(finished: Path, tmp_path: Path) -> None:
    done = call(
        EVALUATE, finished / "one", "--confusion", "--output", "out", "--thresholds", "0.9", "0.5", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    kept = json.loads((tmp_path / "out" / "exits.json").read_text())
    summary = json.loads((finished / "one" / "summary.json").read_text())
    errors = [each["error_percent"] for each in kept["exits"]]
    assert errors == pytest.approx(summary["block_test_error_percent"])
    assert [each["threshold"] for each in kept["thresholds"]] == [0.5, 0.9]
    assert kept["command"].startswith("launch/evaluate.py ") and kept["command"].endswith("--thresholds 0.9 0.5")
    for line in ("last  error %", "threshold  error %   cost", "written: out/exits.json, out/exits.png"):
        assert line in done.stdout.splitlines()
    assert (tmp_path / "out" / "exits.png").exists()


def test_overwrite_removes_what_was_evaluated(finished: Path) -> None:
    (again,) = spawn([TRAIN, *SMALL, "again"], 1, 120, cwd=finished)
    evaluated = call(EVALUATE, "again", cwd=finished)
    assert (again.status, evaluated.returncode) == (0, 0), evaluated.stderr
    assert (finished / "again" / "exits.json").exists()
    (other,) = spawn([TRAIN, *SMALL, "again", "--loss", "sim", "--overwrite"], 1, 120, cwd=finished)
    assert other.status == 0, other.stderr
    assert not [path.name for path in (finished / "again").iterdir() if path.name.startswith("exits")]


LAUNCH = f"""
import runpy, sys
sys.path[:0] = [".", {str(ROOT)!r}]
sys.argv[0] = {EVALUATE!r}
runpy.run_path({EVALUATE!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["x", "--thresholds", "2"], "error: --thresholds has 2.0; give probabilities, from 0 to 1\n"),
        ([], "error: the following arguments are required: RUN; see --help\n"),
    ],
)
def test_a_mistake_in_a_flag_is_told_before_torch_is_imported(flags: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = fresh("-I", "-c", LAUNCH, *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_mistakes_are_one_line_with_status_2(tmp_path: Path) -> None:
    for flags, told in (
        (
            ["nowhere"],
            "error: nowhere holds no finished run (no config.toml); give the folder of a run that has ended\n",
        ),
        (["x", "--device", "tpu"], "error: --device is tpu; choose one of auto, cpu, cuda\n"),
        (["x", "--batch-size", "many"], "error: argument --batch-size: 'many' is not a whole number; see --help\n"),
    ):
        done = call(EVALUATE, *flags, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    place = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    (done,) = spawn_with([place], EVALUATE, "x", timeout_s=60, cwd=tmp_path)
    told = "error: evaluate.py runs in one process, but there are 2; start it by itself\n"
    assert (done.status, done.stderr) == (2, told)


def test_help_answers_without_a_run(tmp_path: Path) -> None:
    done = call(EVALUATE, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "--thresholds F" in done.stdout


def test_a_reader_that_leaves_costs_nothing(finished: Path, tmp_path: Path) -> None:
    """As `| head -1` does, on a terminal that knows ASCII only."""
    out = tmp_path / "lä 🙂"
    command = [sys.executable, EVALUATE, str(finished / "one"), "--output", str(out)]
    told = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        command, env=os.environ | told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
        assert (run.wait(120), said) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["exits.json", "exits.png"]
