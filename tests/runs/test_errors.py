"""How a mistake is told: one line, status 2, no traceback; under torchrun the line exactly once.

What is said of each mistake is held by tests/config/test_flag_errors.py and tests/test_late_errors.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.config.test_flag_errors import FLAGS, ONE_PROCESS
from tests.support.mistakes import write_mistakes
from tests.support.processes import ROOT, Finished, call, fresh, spawn, torchrun

pytestmark = pytest.mark.runs

SCRIPT = str(ROOT / "launch" / "pipeline_train.py")
MISSING_DATA = ("--dataset mnist --data-dir nowhere", r"mnist .*nowhere.*--download")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_mistakes(tmp_path)


def check(ends: list[Finished], message: str) -> None:
    assert [end.status for end in ends] == [2] * len(ends), ends
    printed = "".join(end.stderr for end in ends)
    assert printed.count("error: ") == 1, printed
    assert printed.count("\n") == 1 and printed.startswith("error: "), printed
    assert re.search(message, printed), printed
    assert not any(end.stdout for end in ends)


@pytest.mark.parametrize(
    ("flags", "message"),
    [("--epochs 0", r"--epochs is 0; give a whole number at least 1"), MISSING_DATA],
    ids=["by the flags", "by the run"],
)
def test_a_mistake_is_one_line_with_status_2(folder: Path, flags: str, message: str) -> None:
    check(spawn([SCRIPT, *flags.split()], 1, 200, cwd=folder), message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs 0", r"--epochs is 0; give a whole number at least 1"),
        ("--split 3,3,2", r"--split 3,3,2 makes 3 stages, but there are 2 processes, one stage each"),
        MISSING_DATA,
        ("--device cuda:99", r"--device is cuda:99, but .* GPU"),
    ],
    ids=["by the flags", "by the layout", "by process 0 alone", "by each process"],
)
def test_under_torchrun_the_line_is_printed_once_whoever_found_it(folder: Path, flags: str, message: str) -> None:
    check(spawn([SCRIPT, *flags.split()], 2, 200, cwd=folder), message)


def torch_is_a_trap(folder: Path) -> None:
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')")


LAUNCH = f"""
import runpy, sys
sys.path[:0] = [".", {str(ROOT)!r}]
sys.argv[0] = {SCRIPT!r}
runpy.run_path({SCRIPT!r}, run_name="__main__")
"""


def test_a_flag_error_is_told_before_torch_is_imported(folder: Path) -> None:
    torch_is_a_trap(folder)
    done = fresh("-I", "-c", LAUNCH, "--epochs", "0", cwd=folder)
    check([Finished(done.returncode, done.stdout, done.stderr)], r"--epochs is 0")


PARSE_ALL = f"""
import json, sys
sys.path[:0] = [".", {str(ROOT)!r}]
from pipeline.config.cli import parse
from pipeline.errors import ConfigError
for flags in json.loads(sys.argv[1]):
    try:
        parse(flags.split()).config.check_world(1)
    except ConfigError:
        continue
    sys.exit(f"{{flags}} is taken")
"""


def test_no_flag_error_needs_torch(folder: Path) -> None:
    """One process for all of them."""
    torch_is_a_trap(folder)
    rows = json.dumps([flags for flags, _ in (*FLAGS, *ONE_PROCESS)])
    done = fresh("-I", "-c", PARSE_ALL, rows, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_real_torchrun_reports_status_2_and_shows_the_line_once(folder: Path) -> None:
    done = call(*torchrun(3), SCRIPT, *MISSING_DATA[0].split(), cwd=folder)
    assert done.returncode == 1, "torchrun turns every failure into status 1"
    assert done.stderr.count("error: mnist") == 1, done.stderr
    assert re.findall(r"exitcode +: (-?\d+)", done.stderr) == ["2"] * 3, done.stderr
    assert "pipeline/" not in done.stderr, "a traceback of ours"
