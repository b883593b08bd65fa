"""What signals do to a process of the launcher, tried in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import fresh

SCRIPT = """
import os, signal, sys, time
from pipeline.config.environment import Environment
from pipeline.runtime import ending
from pipeline.runtime.requests import Requests

ending._SAVE_S = float(sys.argv[2])
requests = Requests()
how = ending.Ending(Environment(agent_store=sys.argv[1] == "launched"))
how.heed(requests)
requests.heard.set()
try:
    os.kill(os.getpid(), signal.SIGINT)
    print(requests.stop.is_set(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
    print("went on", flush=True)
except KeyboardInterrupt:
    print("ended at once", flush=True)
"""


@pytest.mark.parametrize(
    ("started", "limit_s", "out", "status", "told"),
    [
        pytest.param("launched", "30", "True\nwent on\n", 0, "", id="a launcher passes on what the terminal has sent"),
        pytest.param("by hand", "0.1", "True\nended at once\n", 0, "", id="a second one by hand ends it"),
        pytest.param(
            "launched",
            "0.1",
            "True\n",
            1,
            "error: the present step and its checkpoint took over 0.1 s once the run was asked to end; go on with "
            "--resume from the checkpoint before\n",
            id="who is too slow is told before a launcher kills",
        ),
    ],
)
def test_a_run_that_is_asked_to_end(
    started: str, limit_s: str, out: str, status: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "signals.py").write_text(SCRIPT)
    done = fresh(tmp_path / "signals.py", started, limit_s, cwd=tmp_path, timeout_s=60)
    assert (done.stdout, done.returncode, done.stderr) == (out, status, told)
