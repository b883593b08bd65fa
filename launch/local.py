"""Start all processes of a run on this host, and keep what they say to each other on its loopback interface.

    python launch/local.py --processes 4 [flags of pipeline_train.py]

torchrun does the same for several hosts too; its store listens on all interfaces. This one knows no restarts.
Exit status: that of the process which ended first with another one than 0; 1 for one that a signal has ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType

__all__ = ["main"]

_SCRIPT = str(Path(__file__).with_name("pipeline_train.py"))
_LOOPBACK = "127.0.0.1"
_MOST = 1024
_POLL_S = 0.1
_ORDER_S = 3.0  # for the others to end in order after one has failed
_KILL_S = 30.0  # for them to end once asked to


class _Children:
    """The processes of one run."""

    def __init__(self, arguments: Sequence[str], size: int, port: int) -> None:
        shared = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": _LOOPBACK,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store outlives the processes
        }
        if loopback := [name for _, name in socket.if_nameindex() if name in {"lo", "lo0"}]:
            shared["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", loopback[0])
        self._processes = [
            subprocess.Popen(
                [sys.executable, _SCRIPT, *arguments],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
            )
            for rank in range(size)
        ]

    def signal(self, number: int, _: FrameType | None = None) -> None:
        """Pass a signal on to those that are left."""
        for process in self._processes:
            process.send_signal(number)

    def wait(self) -> int:
        """Until all have ended, which they are asked to once one has failed; the exit status of all."""
        failed_at, asked = None, False
        while running := [process for process in self._processes if process.poll() is None]:
            if failed_at is None and self._failures():
                failed_at, status = time.monotonic(), self._failures()[0]
            passed_s = 0.0 if failed_at is None else time.monotonic() - failed_at
            if passed_s > _ORDER_S and not asked:
                asked = True
                self.signal(signal.SIGTERM)
            if passed_s > _ORDER_S + _KILL_S:
                for process in running:
                    process.kill()
            time.sleep(_POLL_S)
        return status if failed_at is not None else max(self._failures(), default=0)

    def _failures(self) -> list[int]:
        ended = [process.returncode for process in self._processes if process.returncode]
        return [status if status > 0 else 1 for status in ended]


def main(arguments: Sequence[str]) -> int:
    """Start them and wait for their end."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, add_help=False)
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    known, rest = parser.parse_known_args(arguments)
    if not 1 <= known.processes <= _MOST:
        parser.error(f"--processes is {known.processes}; give 1 to {_MOST}")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by itself it kills; the processes begin likewise
    from torch._C._distributed_c10d import TCPStore  # not before the flags are known

    listener = socket.create_server((_LOOPBACK, 0))
    port = listener.getsockname()[1]
    store = TCPStore(
        _LOOPBACK, port, None, True, timedelta(seconds=30), wait_for_workers=False, master_listen_fd=listener.detach()
    )
    children = _Children(rest, known.processes, port)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, children.signal)
    try:
        return children.wait()
    finally:
        del store  # it has lived as long as they


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
