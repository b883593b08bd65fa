"""Kills one process of a run at a random moment, time after time; prints how soon each run ended, and by what line.

    python -m tests.runs.kills_run [--times N] [--seed N] [--processes K] [--within SECONDS]

Real torchrun. The moments are from its start on: imports, meeting, data, training.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.support.torchrun import gone, kill, torchrun

FLAGS = "--epochs 9000 --threads 1 --quiet --loss pred --width 0.125 --hidden-units 16 --train-limit 200 --output run"


def once(folder: Path, processes: int, victim: int, after_s: float) -> dict[str, object]:
    """Kill one process so long after the start of all; what came of it."""
    with torchrun(processes, FLAGS.split(), folder) as launcher:
        while len(workers := launcher.workers()) < processes:
            time.sleep(0.02)
        time.sleep(after_s)
        kill(workers[victim])
        start, told_s = time.monotonic(), None
        while launcher.process.poll() is None and time.monotonic() < start + 120:
            if told_s is None and launcher.errors():
                told_s = time.monotonic() - start
            time.sleep(0.02)
        ended_s = time.monotonic() - start
        orphans = not gone(list(workers.values()), within_s=2)
        lines = launcher.errors()
        named = [f"stage {victim} (process {victim}) died" in line for line in lines]
        epochs = (folder / "run" / "metrics.jsonl").exists()
    return {
        "victim": victim,
        "after_s": round(after_s, 2),
        "trained": epochs,
        "told_s": told_s,
        "ended_s": ended_s,
        "lines": lines,
        "right": named == [True] and not orphans and launcher.process.returncode == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--within", type=float, default=14.0, help="seconds from the start of the processes")
    given = parser.parse_args()
    draw, all_of_them = random.Random(given.seed), []
    for number in range(given.times):
        with tempfile.TemporaryDirectory() as root:
            victim, after_s = draw.randrange(given.processes), draw.uniform(0, given.within)
            found = once(Path(root), given.processes, victim, after_s)
        all_of_them.append(found)
        print(number, json.dumps(found), file=sys.stderr, flush=True)
    ended = [float(str(found["ended_s"])) for found in all_of_them]
    told = [float(str(found["told_s"])) for found in all_of_them if found["told_s"] is not None]
    summary = {
        "kills": given.times,
        "right": sum(bool(found["right"]) for found in all_of_them),
        "while training": sum(bool(found["trained"]) for found in all_of_them),
        "told_s": {"median": statistics.median(told), "greatest": max(told)},
        "ended_s": {"median": statistics.median(ended), "greatest": max(ended)},
    }
    print(json.dumps(summary, indent=2))
    sys.exit(0 if summary["right"] == given.times else 1)


if __name__ == "__main__":
    main()
