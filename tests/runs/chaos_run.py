"""Kills processes of a run at random until it ends by itself; prints what it took.

    python -m tests.runs.chaos_run [--mean SECONDS] [--seed N] [--processes K] [--epochs N]

Real torchrun with --max-restarts; the same run undisturbed comes first, for its weights and its time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.runtime.checkpoint_files import checkpoints_in
from tests.support.torchrun import Torchrun, kill, torchrun

LIMIT_S = 1200.0


@dataclass
class Outcome:
    """Of one run under torchrun."""

    status: int = -1
    seconds: float = 0.0
    kills: int = 0
    back_s: list[float] = field(default_factory=list)  # from a kill to the first checkpoint after it
    lost_steps: list[int] = field(default_factory=list)  # trained since the checkpoint before a kill
    steps: int = 0
    state: str = ""


def run(folder: Path, flags: list[str], processes: int, mean_s: float | None, seed: int) -> Outcome:
    """The run in `folder`; with a mean time, processes of it are killed so long after the first new checkpoint."""
    folder.mkdir()
    output, draw, made = folder / "run", random.Random(seed), Outcome()
    with torchrun(processes, ["--max-restarts=99", *flags, "--output", "run"], folder) as launcher:
        start = time.monotonic()
        while launcher.process.poll() is None and time.monotonic() - start < LIMIT_S:
            if mean_s is None:
                time.sleep(0.1)
                continue
            since = time.monotonic()
            if not new_checkpoint(output, launcher):
                break
            if made.kills:
                made.back_s.append(round(time.monotonic() - since, 1))
            end = time.monotonic() + draw.uniform(0.67, 1.33) * mean_s
            while launcher.process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            workers = sorted(launcher.workers().items())
            if launcher.process.poll() is None and workers:
                at = launcher.step(made.kills)
                kill(draw.choice(workers)[1])
                made.lost_steps.append(max(0, at - newest_step(output)))
                made.kills += 1
        made.seconds = time.monotonic() - start
        made.status = launcher.process.wait(30)
        if (summary := output / "summary.json").exists():
            told = json.loads(summary.read_text())
            made.state, made.steps = told["state_sha256"], newest_step(output)
        else:
            print(launcher.printed.read_text()[-4000:], file=sys.stderr)
    return made


def newest_step(output: Path) -> int:
    """The step of the newest checkpoint; 0 before the first."""
    return max((int(path.name.rpartition("-")[2]) for path in checkpoints_in(output / "checkpoints")), default=0)


def new_checkpoint(output: Path, launcher: Torchrun) -> bool:
    """Wait for one that is not there yet; False if the run ends before."""
    before = newest_step(output)
    while newest_step(output) <= before:
        if launcher.process.poll() is not None:
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
    equal = clean.state == chaos.state != ""
    goodput = {
        "of steps": chaos.steps / max(1, chaos.steps + sum(chaos.lost_steps)),
        "of time": clean.seconds / chaos.seconds,
    }
    print(json.dumps({"clean": asdict(clean), "chaos": asdict(chaos), "equal": equal, "goodput": goodput}, indent=2))
    sys.exit(0 if equal and chaos.kills else 1)


if __name__ == "__main__":
    main()
