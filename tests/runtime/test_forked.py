"""A fork whose parent has computed with several threads: torch would wait there without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import call

pytestmark = pytest.mark.runs

SCRIPT = """
import multiprocessing, sys
import torch
from torch import nn
from torch.utils.data import TensorDataset
import pipeline
import pipeline.training  # before the fork

data = TensorDataset(torch.ones(8, 4), torch.arange(8) % 2)

def compute():
    torch.set_num_threads(2)
    torch.ones(1 << 17).add_(1)

def train(answers, threads, computed):
    if computed:
        compute()
    try:
        config = pipeline.TrainConfig(loss="pred", epochs=1, batch_size=4, threads=threads)
        pipeline.train(pipeline.blocks_from(nn.Sequential(nn.Linear(4, 2))), data, data, config)
        answers.put("trained")
    except pipeline.ConfigError as error:
        answers.put(str(error))

def child(method, threads, computed=False):
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=train, args=(answers, threads, computed), daemon=True)
    process.start()
    print(method, threads, answers.get(timeout=50))
    process.join()

if __name__ == "__main__":
    child("fork", 2)
    child("fork", 2, computed=True)
    compute()
    child("fork", 2)
    child("fork", 1)
    child("spawn", 2)
"""


def test_a_fork_that_cannot_compute_with_several_threads_is_told_and_no_other(tmp_path: Path) -> None:
    """It used to hang."""
    script = tmp_path / "forks.py"
    script.write_text(SCRIPT)
    done = call(script, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "fork 2 trained",
        "fork 2 trained",
        "fork 2 this process was forked by one that had computed with several threads, for which torch would wait "
        "here without end; give threads=1, or start it by the method spawn of multiprocessing",
        "fork 1 trained",
        "spawn 2 trained",
    ]
