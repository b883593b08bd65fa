"""What happens after the last step, or beside all steps, costs itself alone: weights and summary are there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import get_cachedir
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pipeline
from pipeline.report import trace_file
from tests.support.processes import ROOT, spawn
from tests.support.traces import read_chrome, spans_of

pytestmark = pytest.mark.runs

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")
SMALL = ["--model", "mlp", "--hidden-units", "8", "--train-limit", "200", "--test-limit", "20", "--threads", "1"]
COMPLETE = [
    *("checkpoints", "config.toml", "curves.png", "exits.safetensors", "metrics.jsonl", "model.safetensors"),
    "summary.json",
]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_that_leaves_costs_nothing_whatever_the_folder_is_called(tmp_path: Path) -> None:
    """As `| head -1` does, on a terminal that knows ASCII only."""
    told = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    told["MPLCONFIGDIR"] = get_cachedir()  # its list of fonts takes seconds to make
    command = [sys.executable, SCRIPT, *SMALL, "--epochs", "4", "--output=~/lä 🙂\x1b[31m", "--trace=~/ü.json"]
    with subprocess.Popen(
        command, env=os.environ | told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline().startswith("mlp on digits")
        run.stdout.close()
        _, said = run.communicate(timeout=120)
    assert (run.returncode, said) == (0, "")
    assert names_in(tmp_path) == ["lä 🙂\x1b[31m", "ü.json", "ü.png"]
    assert names_in(tmp_path / "lä 🙂\x1b[31m") == COMPLETE


class Tied(nn.Module):
    """A layer and an activation used twice, layers that share a bias, buffers in one memory, and an expanded one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(8, 8), nn.PReLU()
        self.again = self.first
        self.own = nn.Linear(8, 8)
        self.own.bias = self.first.bias
        table = torch.arange(8.0)
        self.register_buffer("table", table)
        self.register_buffer("part", table[2:4])
        self.register_buffer("wide", torch.ones(1).expand(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.own(self.again(self.act(self.first(x))))) * self.wide  # type: ignore[no-any-return]


def network() -> list[nn.Module]:
    torch.manual_seed(1)
    return [nn.Sequential(nn.Linear(6, 8), nn.ReLU()), Tied(), nn.Linear(8, 3)]


def data() -> TensorDataset:
    return TensorDataset(torch.randn(40, 6, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 3)


def train(folder: Path, **values: Any) -> pipeline.TrainResult:
    config = pipeline.TrainConfig(epochs=2, batch_size=8, threads=1, split=(1, 2), timeout=20)
    return pipeline.train(network(), data(), data(), config, output=folder / "rün", **values)


def test_what_a_block_shares_within_itself_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    done = train(tmp_path)
    x = data().tensors[0]
    again = pipeline.load_model(tmp_path / "rün", network())
    with torch.no_grad():
        assert torch.equal(again(x), done.model(x))


SHARED = """
import os, sys
from pathlib import Path
from tests.runs.test_last_step import train
folder = Path(sys.argv[1])
# A program may ask in one process only: process 0 decides.
done = train(folder, **({"trace": folder / "t.json"} if os.environ["RANK"] == "0" else {}))
print(done.summary.state_sha256)
"""


def test_two_processes_share_nothing_but_give_the_same_weights_and_one_trace(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    expected = train(tmp_path / "one").summary.state_sha256
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    ends = spawn([str(script), str(tmp_path)], 2, 120)
    assert [(end.status, end.stdout) for end in ends] == [(0, f"{expected}\n")] * 2, ends
    spans = read_chrome(tmp_path / "t.json")
    assert [len(spans_of(spans, stage=stage, name="evaluate")) for stage in (0, 1)] == [10, 10]
    assert names_in(tmp_path / "rün") == COMPLETE


FULL = """
import sys
import pipeline
from pathlib import Path
from pipeline.report.run_folder import RunFolder
from tests.runs.test_last_step import data, network

def full(*_):
    raise OSError(28, "No space left on device")

RunFolder.finish = full
blocks = network()
before = [p.detach().clone() for block in blocks for p in block.parameters()]
config = pipeline.TrainConfig(epochs=2, batch_size=8, threads=1, split=(1, 2), timeout=20)
try:
    pipeline.train(blocks, data(), data(), config, output=Path(sys.argv[1]) / "run")
except pipeline.StageFailure as failure:
    print("No space left" in str(failure))
after = [p for block in blocks for p in block.parameters()]
print([not one.equal(other) for one, other in zip(before, after)])
"""


def test_a_disk_that_is_full_at_the_end_leaves_the_caller_the_trained_weights(tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL)
    ends = spawn([str(script), str(tmp_path)], 2, 120)
    changed = str([True] * sum(1 for block in network() for _ in block.parameters()))
    assert [end.stdout.splitlines() for end in ends] == [["True", changed]] * 2, ends


def test_a_trace_that_cannot_be_written_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trace_file, "write_chrome", full)
    with caplog.at_level(logging.WARNING, "pipeline"):
        train(tmp_path, trace=tmp_path / "t.json")
    assert [record.getMessage() for record in caplog.records] == [
        f"the trace {tmp_path}/t.json could not be written ([Errno 28] No space left on device)"
    ]
    assert names_in(tmp_path / "rün") == COMPLETE


def test_a_run_that_diverges_leaves_no_weights_and_only_json(tmp_path: Path) -> None:
    config = pipeline.TrainConfig(epochs=2, batch_size=8, threads=1, optimizer="sgd", lr=1e30)
    with pytest.raises(pipeline.StageFailure, match=r"the loss of block 0 \(linear 0\) became nan or infinite in"):
        pipeline.train(network(), data(), data(), config, output=tmp_path / "run")
    assert names_in(tmp_path / "run") == ["config.toml", "metrics.jsonl"]


def test_outputs_that_are_not_finite_in_a_test_alone_are_null_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fragile(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else super().forward(x) * torch.inf

    blocks = [nn.Linear(6, 8), Fragile(8, 3)]
    config = pipeline.TrainConfig(epochs=1, batch_size=8, threads=1)
    with caplog.at_level(logging.WARNING, "pipeline"):
        done = pipeline.train(blocks, data(), data(), config, output=tmp_path / "run")
    assert done.summary.test_error_percent != done.summary.test_error_percent, "nan"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["test_error_percent"] is summary["best_test_error_percent"] is None
    assert summary["block_test_error_percent"][-1] is None
    metrics = json.loads((tmp_path / "run" / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert metrics["test_error_percent"] is None
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 1 has no test error: the outputs for the test data are not finite"
    ]
