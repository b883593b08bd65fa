"""Kills processes of a run at random until it ends by itself; prints what it took.

    python -m tests.runs.chaos_run [--mean SECONDS] [--seed N] [--processes K]

Real torchrun with --max-restarts; the same run undisturbed comes first, for its weights and its time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.runtime.checkpoint_files import checkpoints_in
from tests.support.processes import ROOT

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")
LIMIT_S = 1200.0


@dataclass(frozen=True)
class Outcome:
    """Of one run under torchrun."""

    status: int
    seconds: float
    kills: int
    back_s: tuple[float, ...]  # from a kill to the first checkpoint after it
    state: str


def workers(parent: int) -> list[int]:
    """Processes that a torchrun has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, environment = (entry / "status").read_text(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in status and re.search(rb"(?:^|\0)RANK=\d+", environment):
            found.append(int(entry.name))
    return found


def run(folder: Path, flags: list[str], processes: int, mean_s: float | None, seed: int) -> Outcome:
    """The run in `folder`; with a mean time, processes of it are killed so long after the first new checkpoint."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["--max-restarts=99", SCRIPT, *flags, "--output", str(folder)]
    draw, start, kills, back = random.Random(seed), time.monotonic(), 0, list[float]()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as printed:
        launcher = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed, start_new_session=True)
        try:
            while launcher.poll() is None and time.monotonic() - start < LIMIT_S:
                if mean_s is None:
                    time.sleep(0.1)
                    continue
                since = time.monotonic()
                if not _new_checkpoint(folder, launcher):
                    break
                if kills:
                    back.append(time.monotonic() - since)
                end = time.monotonic() + draw.uniform(0.67, 1.33) * mean_s
                while launcher.poll() is None and time.monotonic() < end:
                    time.sleep(0.05)
                alive = workers(launcher.pid)
                if launcher.poll() is None and alive:
                    os.kill(draw.choice(alive), signal.SIGKILL)
                    kills += 1
        finally:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)
            launcher.wait()
        seconds = time.monotonic() - start
        summary = folder / "summary.json"
        if not summary.exists():
            printed.seek(0)
            print(printed.read()[-4000:], file=sys.stderr)
            return Outcome(launcher.returncode, seconds, kills, tuple(back), "")
    return Outcome(launcher.returncode, seconds, kills, tuple(back), json.loads(summary.read_text())["state_sha256"])


def _new_checkpoint(folder: Path, launcher: subprocess.Popen[bytes]) -> bool:
    """Wait for one that is not there yet; False if the run ends before."""
    before = {path.name for path in checkpoints_in(folder / "checkpoints")}
    while {path.name for path in checkpoints_in(folder / "checkpoints")} <= before:
        if launcher.poll() is not None:
            return False
        time.sleep(0.05)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mean", type=float, default=15.0, help="seconds to a kill after the first new checkpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    flags = ["--epochs", str(given.epochs), "--train-limit", "800", "--width", "0.125", "--threads", "1", "--quiet"]
    flags += ["--checkpoint-every", "5", "--batch-size", "32", "--timeout", "20"]
    with tempfile.TemporaryDirectory() as root:
        clean = run(Path(root, "clean"), flags, given.processes, None, given.seed)
        chaos = run(Path(root, "chaos"), flags, given.processes, given.mean, given.seed)
    told = {"clean": asdict(clean), "chaos": asdict(chaos), "equal": clean.state == chaos.state != ""}
    print(json.dumps(told | {"goodput": clean.seconds / chaos.seconds}, indent=2))
    sys.exit(0 if told["equal"] else 1)


if __name__ == "__main__":
    main()
