"""Processes started otherwise than by torchrun, or by a torchrun that starts them anew."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch._C._distributed_c10d import TCPStore

from tests.support.processes import ROOT, Finished, call, children, free_port, spawn_with

pytestmark = pytest.mark.runs

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")
QUICK = (
    *("--model", "mlp", "--hidden-units", "8", "--epochs", "1", "--train-limit", "64", "--test-limit", "32"),
    *("--threads", "1", "--timeout", "10", "--quiet"),
)


def launch(variables: list[dict[str, str]], folder: Path, *flags: str) -> list[Finished]:
    return spawn_with(variables, SCRIPT, *QUICK, *flags, "--output", "run", timeout_s=100, cwd=folder)


def one_line(ends: list[Finished]) -> str:
    """What is printed by only one of them; all of them have found it before training."""
    assert [end.status for end in ends] == [2] * len(ends), ends
    printed = "".join(end.stderr for end in ends)
    assert printed.startswith("error: ") and printed.count("\n") == 1, printed
    return printed


def test_a_group_of_the_callers_is_used_as_torchruns_would_be(tmp_path: Path) -> None:
    """Each process used to train the whole network alone."""
    script = str(ROOT / "tests" / "runs" / "grouped_run.py")
    ends = spawn_with([{}, {}], script, str(tmp_path / "meet"), "2", timeout_s=100, cwd=tmp_path)
    told = [json.loads(end.stdout) for end in ends if end.stdout]
    assert sorted(told) == [[0, True, 2.0], [1, True, 2.0]], ends


def test_a_group_that_contradicts_the_environment_is_refused(tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "runs" / "grouped_run.py")
    own = {"RANK": "0", "WORLD_SIZE": "1"}
    ends = spawn_with([own, own], script, str(tmp_path / "meet"), "2", timeout_s=100, cwd=tmp_path)
    assert any("ConfigError: RANK is 0, but the process group is of 2 processes, this one 1" in e.stderr for e in ends)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, "error: RANK is 1, but WORLD_SIZE is not set"),
        ({"RANK": "2", "WORLD_SIZE": "3"}, "error: WORLD_SIZE is 3, but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "many"}, "error: WORLD_SIZE is 'many'; give a whole number"),
    ],
)
def test_variables_that_make_no_sense_are_one_line(variables: dict[str, str], message: str, tmp_path: Path) -> None:
    """They used to end in a traceback, or in a wait for a process that was not there."""
    assert one_line(launch([variables], tmp_path)).startswith(message)


def test_several_tasks_of_srun_are_not_several_runs(tmp_path: Path) -> None:
    tasks = [{"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": rank} for rank in "01"]
    assert one_line(launch(tasks, tmp_path)).startswith("error: srun has started 2 processes (SLURM_NTASKS), which")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ends = launch([task | meeting for task in tasks], tmp_path)
    assert [end.status for end in ends] == [0, 0], ends
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2


def test_an_interface_that_is_not_there_is_told_once_by_the_process_that_misses_it(tmp_path: Path) -> None:
    """It used to end in a traceback of each process."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    names = ({"RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}, {"RANK": "1", "GLOO_SOCKET_IFNAME": "nosuch0"})
    line = one_line(launch([meeting | own for own in names], tmp_path))
    assert line.startswith("error: GLOO_SOCKET_IFNAME is 'nosuch0', but ")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_restart_begins_the_folders_of_its_launch_anew(processes: int, tmp_path: Path) -> None:
    """It used to stop at the folder that the first attempt had left, and to dial the addresses of the dead."""
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    launched = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "1",
    }
    script, ends = str(ROOT / "tests" / "runs" / "restarted_run.py"), []
    for attempt in "01":
        variables = [
            launched | {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": attempt}
            for rank in range(processes)
        ]
        ends.append(spawn_with(variables, script, str(tmp_path), timeout_s=100, cwd=tmp_path))
    assert ends[0][0].status == 1, "the first attempt dies"
    assert [end.status for end in ends[1]] == [0] * processes, ends[1]
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "broken"))
    assert first["state_sha256"] == second["state_sha256"]


def local(processes: int, *flags: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "launch" / "local.py")
    return call(script, "--processes", str(processes), *flags, cwd=cwd, timeout_s=100)


def test_the_local_launcher_gives_the_weights_of_one_process(tmp_path: Path) -> None:
    done = local(2, *QUICK, "--output", "two", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert call(SCRIPT, *QUICK, "--output", "one", cwd=tmp_path).returncode == 0
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["state_sha256"] == two["state_sha256"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--epochs", "0"], "error: --epochs is 0; "),
        (["--dataset", "mnist", "--data-dir", "nowhere"], "error: mnist"),
    ],
)
def test_the_local_launcher_ends_as_its_processes_do(tmp_path: Path, flags: list[str], line: str) -> None:
    done = local(2, *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_the_local_launcher_names_what_it_cannot_start(tmp_path: Path) -> None:
    done = local(0, cwd=tmp_path)
    assert done.returncode == 2 and "--processes is 0; give 1 to 1024" in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_local_launcher_listens_to_nobody_else_and_ends_with_what_it_has_started(
    tmp_path: Path, name: str
) -> None:
    command = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", *QUICK, "--epochs", "9000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        ["env", "--default-signal=HUP", *command, "--output", "run"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            told = tmp_path / "run" / "metrics.jsonl"
            while not told.exists() or not told.read_text():
                assert process.poll() is None
                time.sleep(0.1)
            ours = [process.pid, *children(process.pid)]
            assert len(ours) == 3 and {address for pid in ours for address in listening(pid)} == {"0100007F"}
            process.send_signal(signal.Signals[name])
            _, printed = process.communicate(timeout=40)
        finally:
            process.kill()
    assert process.returncode == 1
    assert re.fullmatch(r"error: interrupted at epoch \d+, step \d+ of the run; go on with --resume run\n", printed)


def listening(pid: int) -> set[str]:
    """Addresses on which a process takes connections, as /proc spells them: in hexadecimal, backwards."""
    sockets = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    rows = [
        row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
