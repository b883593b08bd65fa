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

started, name, limit_s, apart_s = sys.argv[1:]
ending._SAVE_S = float(limit_s)
requests = Requests()
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
how = ending.Ending(Environment(agent_store=started == "launched"))
how.heed(requests)
requests.heard.set()
number = signal.Signals[name]
try:
    os.kill(os.getpid(), number)
    print(requests.stop.is_set(), flush=True)
    time.sleep(float(apart_s))
    os.kill(os.getpid(), number)
    time.sleep(1)
    print("went on", flush=True)
except KeyboardInterrupt:
    print("ended at once", flush=True)
"""
AT_EVERY_LINE = """
import os, signal, sys
from pipeline.config.environment import Environment
from pipeline.runtime.ending import Ending
from pipeline.runtime.requests import Requests

requests = Requests()
how = Ending(Environment())
if sys.argv[1] == "early":
    os.kill(os.getpid(), signal.SIGUSR1)
how.heed(requests)
requests.heard.set()

def send(*_):
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    return send

if sys.argv[1] == "within":
    how._requests, how._asked_at = requests, 1e18  # of a run that ends already: a further signal is the same one
    sys.settrace(send)
    requests.save.clear()
    sys.settrace(None)
print("went on", requests.save.is_set())
"""
LATE = "error: the run was asked to end and has not within 0.1 s; go on with --resume from its newest checkpoint\n"


@pytest.mark.parametrize(
    ("how", "out", "status", "told"),
    [
        pytest.param(
            ("launched", "SIGINT", "30", "0"), "True\nwent on\n", 0, "", id="a launcher passes on the terminal's"
        ),
        pytest.param(("launched", "SIGTERM", "0.1", "0"), "True\n", 1, LATE, id="told before a launcher kills"),
        pytest.param(("by hand", "SIGINT", "0.1", "0"), "True\nended at once\n", 0, "", id="a second Ctrl-C ends"),
        pytest.param(("by hand", "SIGHUP", "0.1", "0"), "True\nwent on\n", 0, "", id="two at a time are one"),
        pytest.param(
            ("by hand", "SIGTERM", "0.1", "1.2"),
            "True\n",
            1,
            "interrupted (SIGTERM); the run was ended before its last epoch\n",
            id="a later one ends a run that is stuck",
        ),
    ],
)
def test_a_run_that_is_asked_to_end(how: tuple[str, ...], out: str, status: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "signals.py").write_text(SCRIPT)
    done = fresh(tmp_path / "signals.py", *how, cwd=tmp_path, timeout_s=60)
    assert (done.stdout, done.returncode, done.stderr) == (out, status, told)


def test_to_save_is_not_the_end_of_a_process_that_has_not_begun(tmp_path: Path) -> None:
    """By itself the signal kills: such as while torch was imported, where there is nothing to save yet."""
    (tmp_path / "signals.py").write_text(AT_EVERY_LINE)
    done = fresh(tmp_path / "signals.py", "early", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("went on False\n", 0)


def test_a_signal_while_the_one_before_is_heeded_stops_nothing(tmp_path: Path) -> None:
    """Both go through one event, whose lock the thread that the signal interrupts may hold: it waited for itself."""
    (tmp_path / "signals.py").write_text(AT_EVERY_LINE)
    done = fresh(tmp_path / "signals.py", "within", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("went on True\n", 0)
