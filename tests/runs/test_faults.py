"""The third promise, as far as it goes without checkpoints: a failure ends the run within seconds, and says why."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Team, spawn, started
from tests.support.torchrun import SCRIPT, gone, torchrun

pytestmark = pytest.mark.runs

LONG = shlex.split(
    "--epochs 9000 --threads 1 --quiet --eval-every 50 --loss pred --width 0.125 --hidden-units 16 --train-limit 200"
)  # an epoch is short, so that the first is soon over
SAVED = r"error: interrupted at epoch \d+, step \d+ of the run; go on with --resume run"


def wait_for_training(folder: Path, timeout_s: float = 90) -> None:
    """Until the first epoch is in metrics.jsonl."""
    deadline = time.monotonic() + timeout_s
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline, "no epoch within the time"
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """SIGHUP does what it does by default, also where the tests are run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ctrl_c_ends_all_processes_with_a_short_message(tmp_path: Path, name: str) -> None:
    with torchrun(2, [*LONG, "--output", "run"], tmp_path) as launcher:
        wait_for_training(tmp_path / "run")
        ranks = launcher.workers()
        assert sorted(ranks) == [0, 1]
        launcher.process.send_signal(signal.Signals[name])
        printed = launcher.wait(20)
        assert gone(list(ranks.values()), within_s=2), "an orphan is left"
    (ours,) = [line for line in printed.splitlines() if line.startswith(("interrupted", "error:"))]
    assert re.fullmatch(SAVED, ours)
    assert "pipeline/" not in printed, "a traceback of ours"


ENDED_BY = """
import runpy, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_ctrl_c_or_a_closed_terminal_ends_a_single_process(tmp_path: Path, name: str) -> None:
    """SIGHUP used to end it at once, and nothing was saved."""
    (tmp_path / "ended.py").write_text(ENDED_BY)
    with started(["ended.py", SCRIPT, *LONG, "--output", "run"], 1, tmp_path) as team:
        wait_for_training(tmp_path / "run")
        (process,) = team.processes
        assert process.pid is not None
        os.kill(process.pid, signal.Signals[name])
        (end,) = team.finish(10)
    assert end.status == 1 and re.fullmatch(SAVED + "\n", end.stderr)


def until_told(team: Team, within_s: float) -> float:
    """Seconds until one of them has said why the run ends."""
    start = time.monotonic()
    while not team.errors():
        assert time.monotonic() < start + within_s, "nothing said within the time"
        time.sleep(0.05)
    return time.monotonic() - start


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_process_is_named_by_those_that_are_left(tmp_path: Path, victim: int) -> None:
    """Nobody ends them here before one has said it."""
    with started([SCRIPT, *LONG, "--output", "run"], 3, tmp_path) as team:
        wait_for_training(tmp_path / "run")
        team.processes[victim].kill()
        until_told(team, within_s=15)
        ends = team.finish(30)
        (line,) = team.errors()
    assert [end.status for end in ends] == [-9 if rank == victim else 1 for rank in range(3)]
    assert line.startswith(f"error: stage {victim} (process {victim}) died")


@pytest.mark.parametrize(("victim", "early"), [(1, False), (0, True)])
def test_a_killed_process_ends_the_run(tmp_path: Path, victim: int, early: bool) -> None:
    """torchrun notices the death as fast as the neighbours do, which say so before it does, at whatever they are."""
    with torchrun(3, [*LONG, "--output", "run"], tmp_path) as launcher:
        if early:
            while len(launcher.workers()) < 3:
                time.sleep(0.05)
            time.sleep(0.5)  # they import torch
        else:
            wait_for_training(tmp_path / "run")
        ranks = launcher.workers()
        os.kill(ranks[victim], signal.SIGKILL)
        printed = launcher.wait(60)
        assert gone(list(ranks.values()), within_s=2)
    assert launcher.process.returncode == 1
    lines = [line for line in printed.splitlines() if "Sending process" not in line]
    assert lines[0].startswith(f"error: stage {victim} (process {victim}) died: its process "), lines[:3]
    assert sum(line.startswith("error:") for line in lines) == 1
    assert re.search(rf"rank +: {victim}\b", printed)
    assert "pipeline/" not in printed, "a traceback of ours"


def test_a_process_that_hangs_is_named_after_the_timeout(tmp_path: Path) -> None:
    with started([SCRIPT, *LONG, "--output", "run", "--timeout", "3"], 3, tmp_path) as team:
        wait_for_training(tmp_path / "run")
        hung = team.processes[1]
        assert hung.pid is not None
        os.kill(hung.pid, signal.SIGSTOP)
        assert until_told(team, within_s=30) > 2  # from its last heartbeat on
        hung.kill()
        ends = team.finish(30)
        (line,) = team.errors()
    assert [end.status for end in ends] == [1, -9, 1]
    assert line.startswith("error: stage 1 (process 1) has been silent for 3 s")


@pytest.mark.parametrize("after_s", [0.3, 2.5])
def test_a_process_that_is_stopped_before_it_comes_is_named(tmp_path: Path, after_s: float) -> None:
    with started([SCRIPT, *LONG, "--output", "run", "--timeout", "3"], 3, tmp_path) as team:
        time.sleep(after_s)
        (pid,) = [process.pid for process in team.processes[1:2] if process.pid is not None]
        os.kill(pid, signal.SIGSTOP)
        until_told(team, within_s=60)
        team.processes[1].kill()
        team.finish(30)
        (line,) = team.errors()
    assert line.startswith("error: stage 1 (process 1) has been ") and "for 3 s" in line


def test_a_stopped_torchrun_makes_no_stage_guilty(tmp_path: Path) -> None:
    with torchrun(2, [*LONG, "--output", "run", "--timeout", "3"], tmp_path) as launcher:
        wait_for_training(tmp_path / "run")
        ranks = launcher.workers()
        launcher.process.send_signal(signal.SIGSTOP)
        assert gone(list(ranks.values()), within_s=40)
        launcher.process.kill()
        printed = launcher.wait(10)
    (line,) = printed.splitlines()
    assert line.startswith("error: torchrun's store has not answered stage 0 (process 0) for 3 s")


def test_processes_that_lose_torchrun_do_not_outlive_it(tmp_path: Path) -> None:
    with torchrun(2, [*LONG, "--output", "run"], tmp_path) as launcher:
        wait_for_training(tmp_path / "run")
        ranks = launcher.workers()
        launcher.process.kill()
        assert gone(list(ranks.values()), within_s=15)
        printed = launcher.wait(10)
    (line,) = printed.splitlines()
    assert line.startswith("error: stage 0 (process 0) lost torchrun's store")


FAILING = """
import sys, torch
from torch import nn
from torch.utils.data import TensorDataset
import pipeline

class Fuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), 0
    def forward(self, x):
        self.calls += self.training
        if self.calls == 20:
            raise RuntimeError("the fuse has blown")
        return self.layer(x)

data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))
blocks = pipeline.blocks_from(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Fuse(), nn.Linear(4, 2)))
try:
    pipeline.train(blocks, data, data, pipeline.TrainConfig(epochs=9, batch_size=8, split=(1, 1, 1), timeout=10))
except Exception as error:
    print(type(error).__name__, error)
    sys.stdout.flush()
    import os
    os._exit(3)
"""


def test_an_exception_in_one_stage_is_raised_in_all(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    start = time.monotonic()
    ends = spawn([str(script)], 3, 60)
    assert time.monotonic() - start < 40
    assert ends[1].stdout.startswith("RuntimeError the fuse has blown"), ends[1]
    for rank in (0, 2):
        if ends[rank].status == 3:  # unless it was ended before it could print, as torchrun does
            assert ends[rank].stdout == "StageFailure stage 1 (process 1) failed: RuntimeError: the fuse has blown\n"
