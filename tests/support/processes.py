"""Start a script in several processes, as torchrun would, and end every one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch._C._distributed_c10d import TCPStore

__all__ = ["ROOT", "Finished", "call", "spawn"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    """How one process ended."""

    status: int
    stdout: str
    stderr: str


def call(*command: str | Path, cwd: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run one Python command from `cwd` to its end and keep what it prints."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def spawn(arguments: Sequence[str], world_size: int, timeout_s: float, cwd: Path = ROOT) -> list[Finished]:
    """Run `python arguments` once per rank, as torchrun does: when one fails, the others get SIGTERM.

    Every process is killed when the time is up; its status is then -9.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        processes: list[subprocess.Popen[bytes]] = []
        for rank in range(world_size):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            environment = {k: str(v) for k, v in places.items()} | (meeting if world_size > 1 else {})
            processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=cwd,
                    env=os.environ
                    | environment
                    | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                    stdin=subprocess.DEVNULL,
                    stdout=stack.enter_context((folder / f"{rank}.out").open("w")),
                    stderr=stack.enter_context((folder / f"{rank}.err").open("w")),
                )
            )
            stack.callback(_end, processes[-1])
        _wait(processes, time.monotonic() + timeout_s)
        return [
            Finished(process.wait(), (folder / f"{rank}.out").read_text(), (folder / f"{rank}.err").read_text())
            for rank, process in enumerate(processes)
        ]


def _wait(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> None:
    told = False
    while any(process.poll() is None for process in processes):
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        failed = any(process.poll() not in (None, 0) for process in processes)
        if failed and not told:
            told = True
            for process in processes:
                process.terminate()
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
