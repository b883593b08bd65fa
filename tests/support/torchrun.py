"""A real torchrun and what it starts, for those who kill some of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from pipeline.transport.watch import read_beat
from tests.support.processes import ROOT, free_port
from tests.support.processes import torchrun as arguments_of_torchrun

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")


@dataclass
class Torchrun:
    """One that runs, and the file of all that goes to standard error."""

    process: subprocess.Popen[str]
    printed: Path
    port: int

    def workers(self) -> dict[int, int]:
        """Process id of each rank that it has started."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                status, environment = (entry / "status").read_text(), (entry / "environ").read_bytes()
            except OSError:
                continue
            rank = re.search(rb"(?:^|\0)RANK=(\d+)", environment)
            if f"PPid:\t{self.process.pid}\n" in status and rank:
                found[int(rank[1])] = int(entry.name)
        return found

    def wait(self, timeout_s: float) -> str:
        """What has been printed to standard error once it has ended."""
        self.process.wait(timeout_s)
        return self.printed.read_text()

    def errors(self) -> list[str]:
        """Lines of ours that tell of a failure."""
        return [line for line in self.printed.read_text().splitlines() if line.startswith(("error:", "interrupted"))]

    def step(self, attempt: int) -> int:
        """The step of the run that process 0 of an attempt has last told its heartbeat."""
        store = TCPStore("127.0.0.1", self.port, None, False, timedelta(seconds=10), wait_for_workers=False)
        beat = read_beat(PrefixStore(f"attempt {attempt}", store), 0)
        return 0 if beat is None else beat.step


@contextmanager
def torchrun(processes: int, flags: list[str], folder: Path) -> Iterator[Torchrun]:
    """Start one in `folder`, in a session of its own; nothing of it is left afterwards.

    Flags that begin with `--max-restarts` are its own, the others the script's.
    """
    port = free_port()
    own = [flag for flag in flags if flag.startswith("--max-restarts")]
    command = [sys.executable, *arguments_of_torchrun(processes, port), *own, SCRIPT]
    command += [flag for flag in flags if flag not in own]
    printed = folder / "printed"
    with printed.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=out,
            text=True,
            start_new_session=True,
        )
    made = Torchrun(process, printed, port)
    try:
        yield made
    finally:
        left = [process.pid, *made.workers().values()]
        for pid in left:
            kill(pid)
        process.wait()


def kill(pid: int) -> None:
    """End a process, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def alive(pid: int) -> bool:
    """Whether a process is there, and has not ended without being buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], within_s: float) -> bool:
    """Wait for the end of all."""
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
